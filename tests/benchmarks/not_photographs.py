"""Pictures that are no photographs, drawn at random: ten kinds that people send to a captioner.

python -m tests.benchmarks.not_photographs FOLDER [--each N] [--seed SEED]
"""

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

_WORDS = (
    *("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by"),
    *("this", "have", "from", "which", "one", "you", "were", "all", "there", "would", "their"),
    *("been", "has", "when", "who", "will", "more", "what", "about", "into", "only", "other"),
)
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#111111", "#e4b400")


def _font(size: float) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(_WORDS, k=words)).capitalize()


def scan(draw: random.Random) -> Image.Image:
    """A scanned page of text: uneven paper, a slight turn, sometimes two columns."""
    paper = draw.randint(225, 255)
    picture = Image.new("L", (850, 1100), paper)
    pen = ImageDraw.Draw(picture)
    size, columns = draw.randint(14, 24), draw.choice((1, 1, 2))
    width = (850 - 120) // columns
    for column in range(columns):
        y = 70
        if column == 0 and draw.random() < 0.6:
            pen.text((60, 40), _sentence(draw, 4), fill=20, font=_font(2 * size))
            y = 130
        while y < 1030:
            if draw.random() < 0.12:
                y += size
            words = int(width / size / 3.2)
            line = _sentence(draw, words)
            pen.text(
                (60 + column * (width + 10), y), line, fill=draw.randint(10, 60), font=_font(size)
            )
            y += int(1.4 * size)
    turned = picture.rotate(draw.uniform(-2, 2), fillcolor=paper, resample=Image.Resampling.BICUBIC)
    return (
        _noisy(turned, draw, 6).filter(ImageFilter.GaussianBlur(draw.uniform(0, 1))).convert("RGB")
    )


def screenshot(draw: random.Random) -> Image.Image:
    """A window of a program: title bar, side bar, rows of text and buttons."""
    dark = draw.random() < 0.4
    ground, ink, bar = (
        ("#1e1e1e", "#dddddd", "#333333") if dark else ("white", "#222222", "#e8e8e8")
    )
    picture = Image.new("RGB", (1280, 800), ground)
    pen = ImageDraw.Draw(picture)
    accent = draw.choice(_COLOURS)
    pen.rectangle((0, 0, 1280, 40), fill=accent if draw.random() < 0.5 else bar)
    pen.text((20, 10), _sentence(draw, 3), fill=ink, font=_font(18))
    side = draw.choice((0, 200, 280))
    pen.rectangle((0, 40, side, 800), fill=bar)
    for y in range(60, 780, draw.randint(26, 44)):
        if side:
            pen.text((16, y), _sentence(draw, 2), fill=ink, font=_font(15))
        if draw.random() < 0.8:
            line = _sentence(draw, draw.randint(3, 14))
            pen.text((side + 30, y), line, fill=ink, font=_font(15))
    for _ in range(draw.randint(1, 5)):
        x, y = draw.randint(side + 300, 1100), draw.randint(80, 720)
        pen.rounded_rectangle((x, y, x + 120, y + 36), 6, fill=accent)
        pen.text((x + 20, y + 9), draw.choice(_WORDS).capitalize(), fill="white", font=_font(15))
    return picture


def plot(draw: random.Random) -> Image.Image:
    """A diagram with axes: lines, bars, points or a pie."""
    picture = Image.new("RGB", (640, 480), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((200, 15), _sentence(draw, 4), fill="black", font=_font(18))
    kind = draw.choice(("lines", "bars", "points", "pie"))
    if kind == "pie":
        start = 0.0
        while start < 360:
            end = min(360, start + draw.uniform(20, 120))
            pen.pieslice(
                (150, 70, 490, 410), start, end, fill=draw.choice(_COLOURS), outline="white"
            )
            start = end
        return picture
    pen.line((70, 50, 70, 420, 600, 420), fill="black", width=2)
    for step in range(8):
        y = 420 - 45 * step
        pen.line((64, y, 70, y), fill="black")
        pen.text((30, y - 8), str(step * 5), fill="black", font=_font(13))
        if draw.random() < 0.5:
            pen.line((70, y, 600, y), fill="#dddddd")
    for series in range(draw.randint(1, 4)):
        colour = _COLOURS[series]
        level = draw.uniform(100, 380)
        values = []
        for _ in range(20):
            level = min(410, max(60, level + draw.gauss(0, 30)))
            values.append(level)
        xs = range(80, 600, 26)
        if kind == "lines":
            pen.line(list(zip(xs, values, strict=True)), fill=colour, width=3)
        elif kind == "bars":
            for x, y in zip(xs, values, strict=True):
                pen.rectangle((x + 5 * series, y, x + 5 * series + 5, 419), fill=colour)
        else:
            for x, y in zip(xs, values, strict=True):
                pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    return picture


def map_(draw: random.Random) -> Image.Image:
    """A street map: ground, water, parks, roads with casings and names."""
    picture = Image.new("RGB", (800, 800), "#f2efe9")
    pen = ImageDraw.Draw(picture)
    for colour, count in (("#aad3df", 2), ("#c8facc", 4), ("#d9d0c9", 12)):
        for _ in range(count):
            x, y, r = draw.randint(0, 800), draw.randint(0, 800), draw.randint(30, 200)
            pen.polygon(_blob(draw, x, y, r), fill=colour)
    for width, colour in ((4, "#ffffff"), (7, "#ffffff"), (12, "#fcd6a4"), (14, "#e892a2")):
        for _ in range(draw.randint(3, 9)):
            ends = [(draw.randint(-50, 850), draw.randint(-50, 850)) for _ in range(3)]
            pen.line(ends, fill="#999999", width=width + 2, joint="curve")
            pen.line(ends, fill=colour, width=width, joint="curve")
    for _ in range(draw.randint(8, 25)):
        place = (draw.randint(0, 700), draw.randint(0, 780))
        pen.text(
            place,
            draw.choice(_WORDS).capitalize(),
            fill="#444444",
            font=_font(draw.randint(11, 22)),
        )
    return picture


def logo(draw: random.Random) -> Image.Image:
    """A sign of a company: plain shapes and a name on a plain ground."""
    ground = draw.choice(("white", "white", "black", *_COLOURS))
    picture = Image.new("RGB", (600, 600), ground)
    pen = ImageDraw.Draw(picture)
    colours = [colour for colour in (*_COLOURS, "white") if colour != ground]
    for _ in range(draw.randint(1, 4)):
        x, y, r = draw.randint(200, 400), draw.randint(150, 350), draw.randint(40, 160)
        box, colour = (x - r, y - r, x + r, y + r), draw.choice(colours)
        shape = draw.choice(("ellipse", "ring", "square", "polygon"))
        if shape == "ellipse":
            pen.ellipse(box, fill=colour)
        elif shape == "ring":
            pen.ellipse(box, outline=colour, width=draw.randint(10, 40))
        elif shape == "square":
            pen.rounded_rectangle(box, draw.randint(0, 40), fill=colour)
        else:
            pen.regular_polygon((x, y, r), draw.randint(3, 8), draw.randint(0, 360), fill=colour)
    if draw.random() < 0.7:
        pen.text((150, 470), draw.choice(_WORDS).upper(), fill=draw.choice(colours), font=_font(80))
    return picture


def xray(draw: random.Random) -> Image.Image:
    """A radiograph: bright bones that blur into dark tissue."""
    tissue = Image.new("L", (512, 512), 8)
    bones = Image.new("L", (512, 512), 0)
    pen, bone = ImageDraw.Draw(tissue), ImageDraw.Draw(bones)
    if draw.random() < 0.5:  # a chest
        pen.ellipse((60, 40, 452, 600), fill=90)
        for side in (-1, 1):
            x = 256 + side * 95
            pen.ellipse((x - 70, 110, x + 70, 420), fill=25)
            for rib in range(9):
                y = 110 + 36 * rib
                bone.arc((x - 90, y - 40, x + 90, y + 60), 180, 360, fill=110, width=11)
        bone.rectangle((240, 30, 272, 500), fill=150)
    else:  # a hand or a limb
        for finger in range(draw.choice((2, 5))):
            angle = math.radians(-150 + 30 * finger + draw.uniform(-8, 8))
            x, y = 256.0, 400.0
            for length in (130, 80, 55):
                to = (x + length * math.cos(angle), y + length * math.sin(angle))
                pen.line((x, y, *to), fill=70, width=56)
                bone.line((x, y, *to), fill=170, width=24)
                x, y = to[0] + 12 * math.cos(angle), to[1] + 12 * math.sin(angle)
    soft = tissue.filter(ImageFilter.GaussianBlur(14))
    hard = bones.filter(ImageFilter.GaussianBlur(draw.uniform(2, 4)))
    return _noisy(ImageChops.add(soft, hard), draw, 5).convert("RGB")


def drawing(draw: random.Random) -> Image.Image:
    """A child's drawing: a house, a tree, a sun and people in strokes of a crayon."""
    picture = Image.new("RGB", (700, 500), "white")
    pen = ImageDraw.Draw(picture)

    def stroke(points: list[tuple[float, float]], colour: str, width: int = 5) -> None:
        shaky = [(x + draw.gauss(0, 3), y + draw.gauss(0, 3)) for x, y in points]
        pen.line(shaky, fill=colour, width=width, joint="curve")

    for _ in range(draw.randint(2, 5)):
        x, colour = draw.randint(50, 600), draw.choice(_COLOURS)
        kind = draw.choice(("house", "tree", "person", "sun"))
        if kind == "house":
            stroke([(x, 400), (x, 280), (x + 100, 280), (x + 100, 400), (x, 400)], colour)
            stroke([(x - 10, 280), (x + 50, 210), (x + 110, 280)], draw.choice(_COLOURS))
        elif kind == "tree":
            stroke([(x, 400), (x, 300)], "#8c564b", 12)
            for _ in range(12):
                stroke(_blob(draw, x, 260, 50), "#2ca02c", 4)
        elif kind == "person":
            pen.ellipse((x - 18, 290, x + 18, 326), outline=colour, width=4)
            stroke([(x, 326), (x, 370), (x - 20, 410)], colour)
            stroke([(x, 370), (x + 20, 410)], colour)
            stroke([(x - 28, 340), (x + 28, 345)], colour)
        else:
            pen.ellipse((x - 30, 40, x + 30, 100), outline="#e4b400", width=6)
            for ray in range(8):
                a = ray * math.pi / 4
                c, s = math.cos(a), math.sin(a)
                stroke([(x + 40 * c, 70 + 40 * s), (x + 70 * c, 70 + 70 * s)], "#e4b400")
    stroke([(20 * step, 405.0) for step in range(36)], "#2ca02c")
    return picture


def gradient(draw: random.Random) -> Image.Image:
    """A smooth change between two or three colours."""
    colours = np.array([[draw.randint(0, 255) for _ in range(3)] for _ in range(3)], float)
    y, x = np.mgrid[0:1:400j, 0:1:600j]
    if draw.random() < 0.4:
        place = np.hypot(x - draw.random(), y - draw.random())
    else:
        angle = draw.uniform(0, math.pi)
        place = x * math.cos(angle) + y * math.sin(angle)
    place = (place - place.min()) / np.ptp(place)
    channels = [np.interp(place, (0, 0.5, 1), colours[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, 2).astype(np.uint8))


def noise(draw: random.Random) -> Image.Image:
    """Random pixels, in colour or grey, fine or in blocks."""
    generator = np.random.default_rng(draw.randrange(2**32))
    block = draw.choice((1, 1, 2, 4, 16))
    shape = (480 // block, 640 // block, draw.choice((1, 3)))
    if draw.random() < 0.5:
        values = generator.integers(0, 256, shape)
    else:
        values = generator.normal(128, draw.uniform(15, 60), shape)
    pixels = np.broadcast_to(values.clip(0, 255).astype(np.uint8), (*shape[:2], 3))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (640, 480), Image.Resampling.NEAREST
    )


def spacer(draw: random.Random) -> Image.Image:
    """What old web pages hold to keep things apart: a few pixels, one colour, or transparent."""
    size = draw.choice(((1, 1), (2, 2), (1, 40), (300, 200), (640, 480)))
    if draw.random() < 0.3:
        return Image.new("RGBA", size, (0, 0, 0, 0))
    return Image.new("RGB", size, draw.choice(("white", "black", "#cccccc", *_COLOURS)))


KINDS: dict[str, Callable[[random.Random], Image.Image]] = {
    "scan": scan,
    "screenshot": screenshot,
    "plot": plot,
    "map": map_,
    "logo": logo,
    "x-ray": xray,
    "drawing": drawing,
    "gradient": gradient,
    "noise": noise,
    "spacer": spacer,
}


def _blob(draw: random.Random, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Return an uneven closed outline around a point."""
    turns = [math.tau * step / 12 for step in range(13)]
    radii = [radius * draw.uniform(0.6, 1.2) for _ in range(12)]
    radii.append(radii[0])
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(turns, radii, strict=True)]


def _noisy(picture: Image.Image, draw: random.Random, deviation: float) -> Image.Image:
    generator = np.random.default_rng(draw.randrange(2**32))
    pixels = np.asarray(picture, float)
    return Image.fromarray(
        (pixels + generator.normal(0, deviation, pixels.shape)).clip(0, 255).astype(np.uint8)
    )


def write(folder: Path, each: int = 5, seed: int = 1) -> list[Path]:
    """Draw `each` pictures of each kind into `folder`, and return their paths, KIND_NUMBER.png."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, paint in KINDS.items():
        draw = random.Random(f"{kind} {seed}")
        for number in range(each):
            paths.append(folder / f"{kind}_{number}.png")
            paint(draw).save(paths[-1])
    return paths


def main() -> None:
    """Run the command line above."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{len(write(arguments.folder, arguments.each, arguments.seed))} pictures")


if __name__ == "__main__":
    main()
