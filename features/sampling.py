"""Some of many items, evenly spaced: a sample that needs no random numbers."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return `count` evenly spaced `items`, the first and the last among them; at most all."""
    indices = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[index] for index in indices.round().astype(int)]
