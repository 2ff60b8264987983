"""Paint a scene: the sky, the land, then the things from far to near."""

from collections.abc import Callable
from math import pi, sin
from random import Random

from PIL import Image

from pipeline.shapes.layout import HORIZON, Layout, Thing
from pipeline.shapes.pen import PALETTE, Colour, Pen, Point, darker, lighter, mix
from pipeline.shapes.things import DRAWERS, GLASS, LAMPLIGHT

_OVERSAMPLING = 3

# From the zenith down to the horizon.
SKY_COLOURS: dict[str, tuple[Colour, ...]] = {
    "sunny": ((104, 178, 228), (160, 210, 238), (226, 242, 244)),
    "cloudy": ((140, 164, 186), (182, 198, 210), (222, 228, 230)),
    "sunset": ((98, 86, 156), (226, 124, 130), (254, 206, 140)),
    "night": ((20, 26, 64), (42, 54, 108), (86, 98, 156)),
}
CLOUDS = {"sunny": (2, 3), "cloudy": (5, 7), "sunset": (2, 3), "night": (1, 2)}
CLOUD_COLOURS: dict[str, Colour] = {
    "sunny": (250, 252, 252),
    "cloudy": (236, 240, 242),
    "sunset": (246, 168, 150),
    "night": (64, 74, 128),
}
# The light on the land and on the things.
LAND_LIGHT: dict[str, Colour] = {
    "sunny": (255, 255, 255),
    "cloudy": (228, 234, 238),
    "sunset": (250, 214, 204),
    "night": (134, 136, 214),
}
THING_LIGHT: dict[str, Colour] = {
    "sunny": (255, 255, 255),
    "cloudy": (244, 246, 248),
    "sunset": (255, 238, 228),
    "night": (224, 226, 250),
}
# Water mirrors the sky.
WATER: dict[str, Colour] = {
    "sunny": (96, 168, 202),
    "cloudy": (104, 156, 184),
    "sunset": (158, 118, 170),
    "night": (92, 142, 180),
}
SAND: Colour = (240, 214, 160)
SNOW: Colour = (238, 244, 250)


def paint(layout: Layout, random: Random, size: int) -> Image.Image:
    """Return the picture of `layout`, RGB, `size` x `size` pixels.

    `random` decides what captions do not mention: clouds, hills, stars and shades of a colour.
    """
    side = size * _OVERSAMPLING
    image = _gradient(SKY_COLOURS[layout.sky], side, side)
    air = Pen(image, (0, 0, side, side))
    _paint_sky(air, layout, random)
    land = Pen(image, (0, 0, side, side), LAND_LIGHT[layout.sky])
    _LANDS[layout.place.name](land, random, layout.sky)
    perched = [layout.things[link.subject] for link in layout.links if link.name == "on"]
    for thing in sorted(layout.things, key=lambda thing: (thing in perched, thing.box.bottom)):
        _paint_thing(image, thing, random, layout.sky)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _gradient(colours: tuple[Colour, ...], width: int, height: int) -> Image.Image:
    column = Image.new("RGB", (1, len(colours)))
    column.putdata(colours)
    tall = column.resize((1, height), Image.Resampling.BILINEAR)
    return tall.resize((width, height), Image.Resampling.NEAREST)


def _paint_sky(pen: Pen, layout: Layout, random: Random) -> None:
    x, y = layout.lamp
    if layout.sky == "night":
        for _ in range(random.randint(35, 50)):
            star = (random.random(), random.uniform(0, HORIZON - 0.08))
            pen.circle(*star, random.choice((0.0025, 0.004, 0.006)), (238, 236, 214))
        pen.veil(x - 0.22, y - 0.22, x + 0.22, y + 0.22, (250, 240, 200), 0.35)
        pen.circle(x, y, 0.07, (250, 240, 206))
        for dx, dy, r in ((-0.025, -0.015, 0.014), (0.02, 0.025, 0.018), (0.025, -0.03, 0.009)):
            pen.circle(x + dx, y + dy, r, (228, 216, 182))
    elif layout.sky == "sunset":
        pen.veil(x - 0.45, y - 0.45, x + 0.45, y + 0.45, (255, 226, 160), 0.75)
        pen.circle(x, y, 0.1, (255, 228, 150))
    elif layout.sky == "sunny":
        pen.veil(x - 0.24, y - 0.24, x + 0.24, y + 0.24, (255, 246, 196), 0.8)
        pen.circle(x, y, 0.07, (255, 220, 100))
    colour = CLOUD_COLOURS[layout.sky]
    for _ in range(random.randint(*CLOUDS[layout.sky])):
        _paint_cloud(pen, random, colour, large=layout.sky == "cloudy")


def _paint_cloud(pen: Pen, random: Random, colour: Colour, large: bool) -> None:
    x, y = random.uniform(0, 1), random.uniform(0.05, 0.42)
    unit = random.uniform(0.035, 0.055) if large else random.uniform(0.018, 0.03)
    shade = darker(colour, 0.1)
    for lift, fill in ((0.25, shade), (0, colour)):
        for dx, radius in ((-1.6, 0.7), (-0.6, 1.1), (0.6, 1), (1.6, 0.65)):
            pen.circle(x + dx * unit, y + (lift - radius) * unit, radius * unit, fill)
        pen.rectangle(
            x - 2.3 * unit,
            y + (lift - 0.9) * unit,
            x + 2.25 * unit,
            y + lift * unit,
            fill,
            0.4 * unit,
        )


def _ridge(random: Random, level: float, height: float) -> Callable[[float], float]:
    """Return a rolling skyline as a function from x to y."""
    phase, wide = random.uniform(0, 2 * pi), random.uniform(0.8, 1.3)
    return lambda x: (
        level
        - height * (0.6 * sin(2 * pi * wide * x + phase) + 0.4 * sin(2 * pi * 2.3 * x + 2 * phase))
    )


def _hills(pen: Pen, ridge: Callable[[float], float], colour: Colour) -> None:
    points: list[Point] = [(i / 40, ridge(i / 40)) for i in range(41)]
    pen.polygon([*points, (1, 1), (0, 1)], colour)


def _paint_meadow(pen: Pen, random: Random, sky: str) -> None:
    _hills(pen, _ridge(random, 0.58, 0.05), (150, 196, 150))
    _hills(pen, _ridge(random, 0.64, 0.03), (134, 190, 112))
    _hills(pen, _ridge(random, 0.74, 0.015), (152, 204, 110))
    for _ in range(26):
        x, y = random.random(), random.uniform(0.79, 0.99)
        for lean in (-0.008, 0, 0.008):
            pen.line([(x, y), (x + lean, y - 0.018)], (118, 176, 88), 0.005)
    for _ in range(14):
        petal = random.choice(((255, 250, 240), (252, 224, 130), (244, 178, 196)))
        pen.circle(random.random(), random.uniform(0.8, 0.99), 0.007, petal)


def _paint_water(pen: Pen, random: Random, sky: str, bottom: float) -> None:
    tint = WATER[sky]
    steps = 12
    for i in range(steps):
        top = HORIZON + (bottom - HORIZON) * i / steps
        pen.rectangle(0, top, 1, bottom, mix(lighter(tint, 0.35), tint, i / (steps - 1)))
    for _ in range(round(70 * (bottom - HORIZON))):
        y = random.uniform(HORIZON + 0.015, bottom)
        x, half = random.random(), 0.012 + 0.06 * (y - HORIZON)
        pen.line([(x - half, y), (x, y - half / 4), (x + half, y)], lighter(tint, 0.5), 0.006)


def _paint_beach(pen: Pen, random: Random, sky: str) -> None:
    _paint_water(pen, random, sky, 0.76)
    shore = _ridge(random, 0.74, 0.008)
    _hills(pen, lambda x: shore(x) - 0.012, (236, 246, 246))
    _hills(pen, shore, darker(SAND, 0.08))
    _hills(pen, lambda x: shore(x) + 0.02, SAND)
    for _ in range(40):
        pen.circle(random.random(), random.uniform(0.79, 1), 0.004, darker(SAND, 0.12))
    for _ in range(4):
        x, y = random.random(), random.uniform(0.84, 0.98)
        pen.half_disc(x - 0.014, y - 0.014, x + 0.014, y + 0.014, (246, 190, 176))


def _paint_sea(pen: Pen, random: Random, sky: str) -> None:
    _paint_water(pen, random, sky, 1)


def _paint_snow(pen: Pen, random: Random, sky: str) -> None:
    rock: Colour = (150, 166, 196)
    for _ in range(4):
        x, y, half = random.random(), random.uniform(0.36, 0.46), random.uniform(0.2, 0.3)
        pen.polygon([(x, y), (x + half, 0.7), (x - half, 0.7)], rock)
        pen.polygon([(x, y), (x + half, 0.7), (x + half / 4, 0.7)], darker(rock, 0.12))
        cap = y + (0.7 - y) * 0.35
        cut = 0.35 * half
        edge = [(x + cut, cap), (x + cut / 3, cap - 0.025), (x, cap), (x - cut / 2, cap - 0.03)]
        pen.polygon([(x, y), *edge, (x - cut, cap)], SNOW)
    _hills(pen, _ridge(random, 0.62, 0.025), mix(SNOW, rock, 0.3))
    _hills(pen, _ridge(random, 0.7, 0.02), mix(SNOW, rock, 0.14))
    _hills(pen, _ridge(random, 0.77, 0.012), SNOW)
    for _ in range(50):
        pen.circle(random.random(), random.random(), random.choice((0.003, 0.005)), (255, 255, 255))


def _paint_desert(pen: Pen, random: Random, sky: str) -> None:
    mesa: Colour = (214, 142, 104)
    for _ in range(2):
        x, top, half = random.random(), random.uniform(0.44, 0.5), random.uniform(0.07, 0.14)
        foot = half + 0.06
        pen.polygon([(x - half, top), (x + half, top), (x + foot, 0.66), (x - foot, 0.66)], mesa)
        pen.polygon(
            [(x + half * 0.4, top), (x + half, top), (x + foot, 0.66), (x + half * 0.6, 0.66)],
            darker(mesa, 0.14),
        )
    _hills(pen, _ridge(random, 0.61, 0.025), (232, 178, 122))
    _hills(pen, _ridge(random, 0.69, 0.02), (240, 196, 138))
    _hills(pen, _ridge(random, 0.77, 0.015), (246, 210, 154))
    for _ in range(12):
        x, y = random.random(), random.uniform(0.8, 0.99)
        pen.ellipse(x - 0.012, y - 0.005, x + 0.012, y + 0.005, (222, 176, 122))


def _paint_city(pen: Pen, random: Random, sky: str) -> None:
    haze = SKY_COLOURS[sky][2]
    for share, low, high in ((0.35, 0.28, 0.42), (0.6, 0.4, 0.52)):
        wall = mix(haze, (122, 134, 168), share)
        window = (255, 214, 120) if sky == "night" else lighter(wall, 0.4)
        x = -random.uniform(0, 0.08)
        while x < 1:
            width, top = random.uniform(0.09, 0.15), random.uniform(low, high)
            pen.rectangle(x, top, x + width, 0.8, wall)
            for row in range(int((0.7 - top) / 0.045)):
                for column in (0.25, 0.6):
                    if random.random() < 0.55:
                        left, upper = x + column * width, top + 0.025 + row * 0.045
                        pen.rectangle(left, upper, left + 0.02, upper + 0.022, window)
            x += width + random.uniform(-0.005, 0.015)
    pen.rectangle(0, 0.72, 1, 0.8, (148, 190, 126))
    pen.rectangle(0, 0.78, 1, 0.88, (214, 208, 200))
    pen.rectangle(0, 0.865, 1, 0.88, (184, 178, 174))
    pen.rectangle(0, 0.88, 1, 1, (112, 114, 128))
    offset = random.uniform(0, 0.2)
    for i in range(-1, 6):
        pen.rectangle(i * 0.2 + offset, 0.955, i * 0.2 + offset + 0.1, 0.965, (232, 226, 206))


_LANDS: dict[str, Callable[[Pen, Random, str], None]] = {
    "meadow": _paint_meadow,
    "beach": _paint_beach,
    "sea": _paint_sea,
    "snow": _paint_snow,
    "desert": _paint_desert,
    "city": _paint_city,
}


def _paint_thing(image: Image.Image, thing: Thing, random: Random, sky: str) -> None:
    """Draw each member of `thing`, with its shadow on the land or its ripples on the water."""
    side = image.width
    name = "sitting bird" if thing.kind.name == "bird" and thing.pose == "sit" else thing.kind.name
    colour = _varied(random, PALETTE[thing.colour or "white"])
    window = LAMPLIGHT if sky == "night" else GLASS
    for box in thing.members():
        pixels = (box.left * side, box.top * side, box.right * side, box.bottom * side)
        pen = Pen(image, pixels, THING_LIGHT[sky], window, thing.mirrored)
        if thing.kind.zone == "land":
            pen.veil(-0.1, 0.88, 1.1, 1.12, (40, 40, 70), 0.45)
        DRAWERS[name](pen, colour)
        if thing.kind.zone == "water":
            ripple = Pen(image, pixels, LAND_LIGHT[sky])
            tint = WATER[sky]
            ripple.ellipse(-0.06, 0.93, 1.06, 1.07, tint)
            for x0, x1, y in ((0.0, 0.36, 0.955), (0.5, 0.8, 0.95), (0.24, 0.66, 1.0)):
                ripple.line([(x0, y), (x1, y)], lighter(tint, 0.6), 0.02)


def _varied(random: Random, colour: Colour) -> Colour:
    red, green, blue = (max(0, min(255, c + random.randint(-8, 8))) for c in colour)
    return red, green, blue
