"""Show how far a long task is: a bar on a terminal, a line now and then in a log.

Both say how much time is left. A task that ends within a second (in a log, ten) shows nothing.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

BAR_AFTER = 1.0  # seconds
LINE_AFTER, LINE_EVERY = 10.0, 30.0  # seconds

T = TypeVar("T")

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Show no progress from now on, or show it again."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether no progress is to be shown."""
    return _quiet


class Progress:
    """How far a task is, on standard error; a context manager.

    Args:
        what: what is done, such as "extract".
        total: number of items; None if it is not known.
        unit: an item in the singular, such as "image".
        done: number of items that were done before.
        hidden: show nothing.
        scale: write large numbers as 1.2M, for bytes.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        hidden: bool = False,
        scale: bool = False,
    ) -> None:
        self._what = what
        self._unit = unit
        self._hidden = hidden or _quiet
        self._scale = scale
        self._done = done
        # When the first items were done, and how many: before that, networks are loaded.
        self._first: tuple[float, int] | None = None
        self._next_line = time.monotonic() + LINE_AFTER
        self._bar = tqdm(
            desc=what,
            total=total,
            initial=done,
            unit=unit if scale else f" {unit}",
            unit_scale=scale,
            delay=BAR_AFTER,
            disable=self._hidden or not sys.stderr.isatty(),
        )
        self.total = total

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int = 1) -> None:
        """Count further items as done."""
        self._done += count
        self._bar.total = self.total
        self._bar.update(count)
        if not self._bar.disable or self._hidden:
            return
        now = time.monotonic()
        self._first = self._first or (now, self._done)
        if now >= self._next_line and self._done != self.total:
            self._next_line = now + LINE_EVERY
            print(self._line(now, *self._first), file=sys.stderr, flush=True)

    def _line(self, now: float, start: float, first: int) -> str:
        """Return a line such as "extract: 1,200 of 8,000 images, 03:12 left"."""
        left = ""
        counts = [self._done] if self.total is None else [self._done, self.total]
        number = tqdm.format_sizeof if self._scale else "{:,}".format
        if self.total is not None and self._done > first:
            remaining = (self.total - self._done) * (now - start) / (self._done - first)
            left = f", {tqdm.format_interval(max(0, remaining))} left"
        unit = self._unit if self._scale else f" {self._unit}s"
        return f"{self._what}: {' of '.join(map(number, counts))}{unit}{left}"


def track(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show how many of them are done; `total` is their number by default."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()
