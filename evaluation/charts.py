"""Lay out curves over epochs for SVG; the page that shows them sets the colours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 30  # margins, with room for the labels of the axes


@dataclass(frozen=True)
class Line:
    """A curve: its name, its SVG points, where it ends, and its last value."""

    name: str
    points: str
    end: tuple[float, float]
    last: float


@dataclass(frozen=True)
class Chart:
    """A chart in SVG units, `WIDTH` by `HEIGHT`. A tick is a position and a label."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    boundary: float | None
    """Where REINFORCE starts; None if the chart shows one phase only."""
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def chart(
    title: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    reinforce_from: int | None = None,
) -> Chart | None:
    """Lay out curves, each a list of (epoch, value). Return None if no curve has a point.

    `reinforce_from` is the first epoch of REINFORCE. If the chart also has earlier epochs, it marks
    the boundary between the phases.
    """
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    epochs = [epoch for points in curves.values() for epoch, _ in points]
    values = [value for points in curves.values() for _, value in points]
    y_values = _ticks(min(values), max(values), 5)
    first, last = min(epochs), max(epochs)
    low, high = y_values[0], y_values[-1]

    def x(epoch: float) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        share = (value - low) / (high - low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    lines = [
        Line(
            name,
            " ".join(f"{x(epoch)},{y(value)}" for epoch, value in points),
            (x(points[-1][0]), y(points[-1][1])),
            points[-1][1],
        )
        for name, points in curves.items()
    ]
    x_values = _ticks(first, last, 8, least_step=1)
    both = reinforce_from is not None and first < reinforce_from <= last
    return Chart(
        title,
        lines,
        [(x(value), f"{value:g}") for value in x_values if first <= value <= last],
        [(y(value), f"{value:.3g}") for value in y_values],
        x(reinforce_from - 0.5) if both and reinforce_from is not None else None,
    )


def _ticks(low: float, high: float, most: int, least_step: float = 0) -> list[float]:
    """Return round numbers at equal distances, from `low` or below to `high` or above.

    Args:
        low: the smallest value shown.
        high: the largest.
        most: the most steps between them.
        least_step: no step is smaller.
    """
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    power = math.floor(math.log10(max((high - low) / most, least_step)))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * 10.0**power
        start, end = math.floor(low / step), math.ceil(high / step)
        if end - start <= most and step >= least_step and (least_step == 0 or step % 1 == 0):
            break
    return [float(f"{i * step:.12g}") for i in range(start, end + 1)]
