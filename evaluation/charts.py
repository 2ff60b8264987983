"""Curves over epochs, laid out for an SVG picture that the page draws in its own colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 30  # margins, for the labels of the axes


@dataclass(frozen=True)
class Line:
    """One curve: its name, its SVG points and what its last point is worth."""

    name: str
    points: str
    end: tuple[float, float]
    last: float


@dataclass(frozen=True)
class Chart:
    """A chart in SVG units, `WIDTH` by `HEIGHT`; ticks are pairs of position and label."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    boundary: float | None
    """Where REINFORCE starts; None where the chart has one phase only."""
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def chart(
    title: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    reinforce_from: int | None = None,
) -> Chart | None:
    """Lay out curves, each a list of (epoch, value); None if none has a point.

    `reinforce_from` is the first epoch of REINFORCE; if the chart has epochs before it, too, the
    boundary between the phases is marked.
    """
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    epochs = [epoch for points in curves.values() for epoch, _ in points]
    values = [value for points in curves.values() for _, value in points]
    y_values = MaxNLocator(5).tick_values(min(values), max(values))
    first, last = min(epochs), max(epochs)
    low, high = float(y_values[0]), float(y_values[-1])

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
    x_values = MaxNLocator(8, integer=True).tick_values(first, last)
    both = reinforce_from is not None and first < reinforce_from <= last
    return Chart(
        title,
        lines,
        [(x(value), f"{value:g}") for value in x_values if first <= value <= last],
        [(y(value), f"{value:.3g}") for value in y_values],
        x(reinforce_from - 0.5) if both and reinforce_from is not None else None,
    )
