"""Drawn pictures with which a visitor can try the page without one of their own."""

import io
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.shapes.pen import Colour, Pen, darker, lighter, mix

_WIDTH, _HEIGHT = 480, 320
_SMOOTH = 3  # drawn this number of times as large, and reduced
_SKIN: Colour = (224, 172, 136)


def _sky(pen: Pen, top: Colour, bottom: Colour, down_to: float) -> None:
    steps = 60
    for step in range(steps):
        y = down_to * step / steps
        pen.rectangle(0, y, 1, y + down_to / steps + 0.01, mix(top, bottom, step / steps))


def _skier(pen: Pen) -> None:
    snow: Colour = (244, 248, 253)
    _sky(pen, (92, 152, 220), (196, 224, 246), 0.7)
    pen.polygon(
        [(0, 0.5), (0.18, 0.2), (0.34, 0.46), (0.5, 0.24), (0.78, 0.6), (0, 0.75)], (122, 142, 172)
    )
    pen.polygon([(0.18, 0.2), (0.25, 0.32), (0.2, 0.3), (0.16, 0.35), (0.1, 0.33)], snow)
    pen.polygon([(0.5, 0.24), (0.58, 0.35), (0.52, 0.33), (0.47, 0.38), (0.43, 0.34)], snow)
    pen.blob([(-0.3, 0.5), (0.2, 0.58), (0.6, 0.76), (1.3, 1.0), (1.3, 1.6), (-0.3, 1.6)], snow)
    pen.blob([(-0.3, 0.72), (0.2, 0.76), (0.7, 1.0), (0.4, 1.4), (-0.3, 1.4)], darker(snow, 0.08))
    for x, y in ((0.86, 0.5), (0.95, 0.6), (0.76, 0.52)):
        for top, half in ((0, 0.03), (0.08, 0.045), (0.16, 0.06)):
            pen.polygon(
                [(x, y + top), (x + half, y + top + 0.15), (x - half, y + top + 0.15)], (44, 92, 74)
            )
    pen.line([(0.30, 0.80), (0.62, 0.93), (0.66, 0.92)], (40, 44, 60), 0.016)
    pen.line([(0.27, 0.83), (0.58, 0.97), (0.62, 0.96)], (40, 44, 60), 0.016)
    trousers: Colour = (36, 42, 64)
    pen.line([(0.44, 0.60), (0.50, 0.72), (0.46, 0.85)], trousers, 0.07)
    pen.line([(0.44, 0.60), (0.47, 0.74), (0.42, 0.87)], darker(trousers), 0.07)
    red: Colour = (208, 50, 46)
    pen.blob(
        [(0.42, 0.38), (0.50, 0.40), (0.50, 0.52), (0.47, 0.64), (0.40, 0.62), (0.39, 0.48)], red
    )
    pen.line([(0.46, 0.45), (0.54, 0.54), (0.60, 0.51)], darker(red), 0.05)
    pen.line([(0.60, 0.47), (0.52, 0.86)], (60, 60, 70), 0.01)
    pen.line([(0.42, 0.45), (0.40, 0.56), (0.47, 0.58)], lighter(red, 0.1), 0.05)
    pen.line([(0.48, 0.55), (0.34, 0.84)], (60, 60, 70), 0.01)
    pen.circle(0.475, 0.32, 0.062, _SKIN)
    pen.half_disc(0.43, 0.24, 0.52, 0.40, (34, 40, 60))
    pen.rectangle(0.462, 0.30, 0.52, 0.335, (246, 172, 60), 0.015)


def _walkers(pen: Pen) -> None:
    _sky(pen, (70, 84, 140), (250, 176, 96), 0.52)
    pen.veil(0.42, -0.05, 1.02, 0.9, (255, 214, 140), 0.9)
    pen.circle(0.72, 0.42, 0.075, (255, 240, 200))
    sea: Colour = (118, 96, 112)
    pen.rectangle(0, 0.5, 1, 0.74, sea)
    for i in range(46):
        y = 0.51 + 0.23 * i / 46
        x = 0.72 + ((i * 0.618034) % 1 - 0.5) * (0.08 + 0.3 * i / 46)
        pen.line([(x - 0.03, y), (x + 0.03, y)], (255, 212, 150), 0.006)
    sand: Colour = (92, 68, 62)
    pen.blob(
        [(-0.3, 0.7), (0.2, 0.72), (0.6, 0.69), (1.3, 0.72), (1.3, 1.5), (-0.3, 1.5)],
        (190, 160, 150),
    )
    pen.blob([(-0.3, 0.73), (0.2, 0.75), (0.6, 0.72), (1.3, 0.75), (1.3, 1.5), (-0.3, 1.5)], sand)
    dark: Colour = (26, 22, 34)
    for x, scale in ((0.30, 1.0), (0.42, 0.88)):

        def at(dx: float, dy: float, x: float = x, scale: float = scale) -> tuple[float, float]:
            return x + dx * scale, 0.86 - dy * scale

        pen.line([at(0, 0.24), at(0.022, 0.13), at(0.03, 0)], dark, 0.045 * scale)
        pen.line([at(0, 0.24), at(-0.012, 0.13), at(-0.034, 0.01)], dark, 0.045 * scale)
        pen.blob(
            [at(-0.03, 0.43), at(0.03, 0.43), at(0.027, 0.33), at(0.025, 0.22), at(-0.025, 0.22)],
            dark,
        )
        pen.line([at(-0.028, 0.41), at(-0.045, 0.32), at(-0.04, 0.22)], dark, 0.03 * scale)
        pen.line([at(0.028, 0.41), at(0.042, 0.32), at(0.06, 0.25)], dark, 0.03 * scale)
        pen.circle(*at(0, 0.495), 0.045 * scale, dark)


def _dog(pen: Pen) -> None:
    grass: Colour = (92, 152, 66)
    _sky(pen, (140, 190, 232), (224, 238, 246), 0.4)
    for x, r in (
        (0.05, 0.17),
        (0.2, 0.14),
        (0.36, 0.18),
        (0.55, 0.14),
        (0.7, 0.17),
        (0.88, 0.19),
        (1, 0.15),
    ):
        pen.circle(x, 0.34, r, (58, 104, 62))
    pen.rectangle(0, 0.4, 1, 1, grass)
    for i in range(160):
        x, y = (i * 0.618034) % 1, 0.42 + 0.58 * ((i * 0.754878) % 1)
        pen.line(
            [(x, y), (x + 0.006, y - 0.035)], (darker if i % 2 else lighter)(grass, 0.14), 0.008
        )
    pen.veil(0.2, 0.8, 0.75, 0.95, (30, 60, 30), 0.6)
    coat: Colour = (150, 100, 58)
    for points in (
        [(0.32, 0.58), (0.24, 0.74), (0.20, 0.88)],
        [(0.60, 0.60), (0.70, 0.74), (0.76, 0.84)],
    ):
        pen.line(points, darker(coat, 0.3), 0.055)
    for points in (
        [(0.34, 0.60), (0.32, 0.76), (0.26, 0.90)],
        [(0.58, 0.62), (0.64, 0.78), (0.70, 0.88)],
    ):
        pen.line(points, coat, 0.06)
    pen.line([(0.29, 0.52), (0.21, 0.42), (0.17, 0.30)], coat, 0.04)
    pen.blob(
        [
            (0.28, 0.50),
            (0.40, 0.45),
            (0.55, 0.46),
            (0.64, 0.46),
            (0.64, 0.62),
            (0.5, 0.66),
            (0.36, 0.66),
            (0.28, 0.62),
        ],
        coat,
    )
    pen.blob([(0.58, 0.44), (0.66, 0.34), (0.72, 0.42), (0.66, 0.58), (0.58, 0.60)], coat)
    pen.blob(
        [
            (0.64, 0.30),
            (0.72, 0.26),
            (0.78, 0.32),
            (0.86, 0.38),
            (0.85, 0.44),
            (0.76, 0.45),
            (0.68, 0.44),
            (0.63, 0.38),
        ],
        lighter(coat, 0.08),
    )
    pen.blob(
        [(0.67, 0.28), (0.70, 0.30), (0.68, 0.44), (0.63, 0.46), (0.62, 0.36)], darker(coat, 0.4)
    )
    pen.circle(0.855, 0.385, 0.026, (30, 26, 26))
    pen.circle(0.755, 0.335, 0.017, (30, 26, 26))
    pen.line([(0.80, 0.425), (0.84, 0.432)], (60, 36, 30), 0.01)
    pen.blob([(0.80, 0.44), (0.83, 0.44), (0.83, 0.50), (0.81, 0.50)], (220, 110, 110))
    pen.line([(0.60, 0.45), (0.655, 0.58)], (200, 40, 40), 0.03)


class _Sample(NamedTuple):
    draw: Callable[[Pen], None]
    grain: float
    """Standard deviation of a texture like that of the photographs the captioner learnt from."""


_SAMPLES = {"skier": _Sample(_skier, 12), "walkers": _Sample(_walkers, 0), "dog": _Sample(_dog, 20)}

NAMES = tuple(_SAMPLES)
"""The names of the drawings."""


@cache
def sample(name: str) -> bytes:
    """Return a drawing as a JPEG of about 20 kB.

    Raises:
        KeyError: no drawing has this name.
    """
    draw, grain = _SAMPLES[name]
    size = (_WIDTH * _SMOOTH, _HEIGHT * _SMOOTH)
    image = Image.new("RGB", size, "white")
    draw(Pen(image, (0, 0, *size)))
    image = image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    if grain:
        image = _grainy(image, grain)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _grainy(image: Image.Image, grain: float) -> Image.Image:
    """Add a coarse and a fine texture to a drawing."""
    drawn = np.random.default_rng(0)
    coarse = Image.fromarray(
        drawn.normal(128, 50, (_HEIGHT // 4, _WIDTH // 4)).clip(0, 255).astype(np.uint8)
    )
    texture = (np.asarray(coarse.resize(image.size), dtype=np.float32) - 128) * grain / 50
    texture += drawn.normal(0, grain / 2, texture.shape)
    pixels = np.asarray(image, dtype=np.float32) + texture[..., None]
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
