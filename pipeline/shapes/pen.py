"""Draw with the colours of a palette, in coordinates relative to a box, under a given light."""

from collections.abc import Iterable, Sequence
from functools import cache

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: dict[str, Colour] = {
    "red": (214, 69, 58),
    "orange": (238, 134, 54),
    "yellow": (246, 201, 69),
    "green": (78, 154, 88),
    "blue": (58, 115, 190),
    "purple": (132, 88, 168),
    "pink": (240, 148, 176),
    "white": (250, 247, 240),
    "black": (48, 48, 60),
    "brown": (142, 92, 58),
    "gray": (142, 149, 162),
}
CREAM: Colour = (252, 243, 222)
INK: Colour = (45, 48, 64)
WOOD: Colour = (131, 92, 68)
BEAK: Colour = (243, 150, 52)


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """Return `colour` with a share (0 to 1) of `other` mixed in."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float = 0.18) -> Colour:
    """Return the shaded side of `colour`; shadows lean to blue."""
    return mix(colour, (40, 40, 80), share)


def lighter(colour: Colour, share: float = 0.25) -> Colour:
    """Return the lit side of `colour`."""
    return mix(colour, (255, 252, 240), share)


def is_dark(colour: Colour) -> bool:
    """Whether ink would not be visible on `colour`."""
    return max(colour) < 80


def is_pale(colour: Colour) -> bool:
    """Whether cream would not be visible on `colour`."""
    return min(colour) > 200


@cache
def path(text: str) -> tuple[Point, ...]:
    """Return the points of e.g. "0,.5 1,.7", written as in the `points` of an SVG polygon."""
    pairs = (pair.split(",") for pair in text.split())
    return tuple((float(x), float(y)) for x, y in pairs)


def smooth(points: Sequence[Point], closed: bool = True, steps: int = 6) -> list[Point]:
    """Return a Catmull-Rom curve through `points`."""
    n = len(points)
    curve = []
    for i in range(n if closed else n - 1):
        if closed:
            p0, p1, p2, p3 = (points[(i + k) % n] for k in (-1, 0, 1, 2))
        else:
            p0, p1, p2, p3 = (points[min(max(i + k, 0), n - 1)] for k in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            a = ((-t + 2) * t - 1) * t / 2
            b = ((3 * t - 5) * t * t + 2) / 2
            c = ((-3 * t + 4) * t + 1) * t / 2
            d = (t - 1) * t * t / 2
            curve.append(
                (
                    a * p0[0] + b * p1[0] + c * p2[0] + d * p3[0],
                    a * p0[1] + b * p1[1] + c * p2[1] + d * p3[1],
                )
            )
    return curve if closed else [*curve, points[-1]]


@cache
def _soft_disc(alpha: float) -> Image.Image:
    fade = [round(max(0.0, 1 - value / 180) * 255 * alpha) for value in range(256)]
    return Image.radial_gradient("L").point(fade)


class Pen:
    """Draws inside a box: x and y run from 0 to 1 over its width and height.

    Radii and line widths are fractions of the height of the box. Every colour is multiplied by the
    colour of the light, `light` (white by day). `window` is the colour of windows in that light.
    """

    def __init__(
        self,
        image: Image.Image,
        box: tuple[float, float, float, float],
        light: Colour = (255, 255, 255),
        window: Colour = (196, 226, 236),
        mirrored: bool = False,
    ) -> None:
        self.window = window
        self._image = image
        self._draw = ImageDraw.Draw(image)
        self._left, self._top = box[0], box[1]
        self._width, self._height = box[2] - box[0], box[3] - box[1]
        self._light = light
        self._mirrored = mirrored

    def polygon(self, points: Iterable[Point], fill: Colour) -> None:
        """Fill a polygon."""
        self._draw.polygon([self._pixel(point) for point in points], self._lit(fill))

    def blob(self, points: Sequence[Point], fill: Colour) -> None:
        """Fill the smooth shape through `points`."""
        self.polygon(smooth(points), fill)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        """Fill the ellipse within a rectangle."""
        self._draw.ellipse(self._rectangle(x0, y0, x1, y1), self._lit(fill))

    def circle(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """Fill a circle."""
        (px, py), r = self._pixel((x, y)), radius * self._height
        self._draw.ellipse((px - r, py - r, px + r, py + r), self._lit(fill))

    def half_disc(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        """Fill the upper half of the ellipse within a rectangle."""
        self._draw.pieslice(self._rectangle(x0, y0, x1, y1), 180, 360, self._lit(fill))

    def rectangle(
        self, x0: float, y0: float, x1: float, y1: float, fill: Colour, radius: float = 0
    ) -> None:
        """Fill a rectangle, its corners rounded by `radius`."""
        pixels = self._rectangle(x0, y0, x1, y1)
        self._draw.rounded_rectangle(pixels, radius * self._height, self._lit(fill))

    def line(self, points: Sequence[Point], fill: Colour, width: float) -> None:
        """Draw the smooth line through `points` with round ends."""
        curve = points if len(points) == 2 else smooth(points, closed=False)
        pixels = [self._pixel(point) for point in curve]
        thick = max(1, round(width * self._height))
        colour = self._lit(fill)
        self._draw.line(pixels, colour, thick, "curve")
        for x, y in (pixels[0], pixels[-1]):
            r = thick / 2
            self._draw.ellipse((x - r, y - r, x + r, y + r), colour)

    def veil(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, alpha: float) -> None:
        """Lay a soft disc over a rectangle; `alpha` (0 to 1) is its opacity in the centre."""
        left, top, right, bottom = map(round, self._rectangle(x0, y0, x1, y1))
        size = (max(1, right - left), max(1, bottom - top))
        mask = _soft_disc(alpha).resize(size, Image.Resampling.BILINEAR)
        self._image.paste(fill, (left, top), mask)

    def _lit(self, colour: Colour) -> Colour:
        red, green, blue = (c * light // 255 for c, light in zip(colour, self._light, strict=True))
        return red, green, blue

    def _pixel(self, point: Point) -> Point:
        x = 1 - point[0] if self._mirrored else point[0]
        return self._left + x * self._width, self._top + point[1] * self._height

    def _rectangle(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
        (left, top), (right, bottom) = self._pixel((x0, y0)), self._pixel((x1, y1))
        return min(left, right), top, max(left, right), bottom
