"""Weights of the sources: how often the images of each data set are drawn in an epoch."""

from collections.abc import Mapping, Sequence

import numpy as np

from features.errors import UserError

LARGEST = 100.0


def parse_weights(text: str) -> dict[str, float]:
    """Return the weight of each source from text such as "flickr8k=1,everyday=2.5".

    Raises:
        UserError: an entry is not NAME=WEIGHT, names a source again, or its weight is not a number
            above 0 and at most 100.
    """
    weights: dict[str, float] = {}
    for entry in text.split(","):
        name, _, value = entry.rpartition("=")
        name = name.strip()
        try:
            weight = float(value)
        except ValueError:
            weight = 0.0
        if not name or name in weights or not 0 < weight <= LARGEST:
            raise UserError(
                f"--source-weights: expected NAME=WEIGHT, separated by commas, each name once and "
                f"each weight above 0 and at most {LARGEST:g}, found {entry!r}"
            )
        weights[name] = weight
    return weights


class WeightedDraws:
    """Draws the images of an epoch by the weights of their sources.

    A source of n images and weight w gives round(w * n) images an epoch, at least one: each image
    floor(w) times, and as many distinct ones again as are missing. So every image of a source is
    drawn w times an epoch in the mean.

    Args:
        sources: the source of each image.
        weights: of the sources; those that are missing have weight 1.

    Raises:
        UserError: a weight names a source that no image has.
    """

    def __init__(self, sources: Sequence[str], weights: Mapping[str, float]) -> None:
        if unknown := weights.keys() - set(sources):
            raise UserError(
                f"--source-weights names {', '.join(map(repr, sorted(unknown)))}, but the training "
                f"images are from {', '.join(map(repr, sorted(set(sources))))}"
            )
        names, index_N = np.unique(np.array(sources), return_inverse=True)
        self._groups = [
            (np.flatnonzero(index_N == index), weights.get(str(name), 1.0))
            for index, name in enumerate(names)
        ]

    def __len__(self) -> int:
        return sum(_size(len(members), weight) for members, weight in self._groups)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Return the indices of an epoch's images, int64 [len(self)], in ascending order.

        If every weight is a whole number, no random number is used.
        """
        parts = []
        for members, weight in self._groups:
            parts.append(np.repeat(members, int(weight)))
            if missing := _size(len(members), weight) - len(parts[-1]):
                parts.append(generator.choice(members, missing, replace=False))
        return np.sort(np.concatenate(parts))


def _size(images: int, weight: float) -> int:
    return max(1, int(images * weight + 0.5))
