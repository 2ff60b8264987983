"""Whether a store is what its pictures say: checks every row, and recomputes some."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from features.backbones import Backbone
from features.errors import UserError
from features.extraction import extract
from features.store import STORED, FeatureStore, differences

SAMPLE = 64
# Of the norm of a row. Rounding, other backends and other decoders stay below a tenth of it;
# another picture's features are further away than their own norm.
_TOLERANCE = 0.05


class Recomputed:
    """Takes features as `features.parts.PartWriter` does, and keeps them.

    Attributes:
        features: of each image, float32 [views, regions, channels] and [views, channels].
        failed: the images whose pictures cannot be read any more.
    """

    def __init__(self) -> None:
        self.features: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.failed: dict[int, str] = {}

    def put(self, image_ids: Sequence[int], grid: np.ndarray, pooled: np.ndarray) -> None:
        """Keep the features of images."""
        self.features.update(zip(image_ids, zip(grid, pooled, strict=True), strict=True))

    def fail(self, image_id: int, reason: str) -> None:
        """Keep why a picture cannot be read."""
        self.failed[image_id] = reason


def damaged(store: FeatureStore) -> dict[int, str]:
    """Read the whole store and return what is wrong with each damaged image."""
    rows = np.flatnonzero(store.status == STORED).tolist()
    checked = ((row, store.check(row)) for row in tqdm(rows, unit="image", disable=None))
    return {int(store.image_ids[row]): why for row, why in checked if why}


def spread(image_ids: Sequence[int], count: int = SAMPLE) -> list[int]:
    """Return `count` of `image_ids`, or all if there are fewer, spread evenly."""
    places = np.linspace(0, len(image_ids) - 1, min(count, len(image_ids)))
    return [image_ids[place] for place in places.round().astype(int)]


def recompute(
    store: FeatureStore,
    backbone: Backbone,
    pictures: Mapping[int, Path],
    batch_size: int,
    workers: int | None,
) -> tuple[dict[int, str], int]:
    """Compute the features of `pictures`, by image id, again and compare.

    Returns:
        What is wrong with each image whose features differ, and how many could be compared:
        pictures that are gone or cannot be read any more say nothing about the store.

    Raises:
        UserError: the CNN here is not the one that made the store.
    """
    description = {**backbone.description, "dtype": store.description["dtype"]}
    if description != store.description:
        raise UserError(
            f"{store.path} was made by another {store.description['backbone']}: "
            f"{differences(description, store.description)}; install the version that made it, or "
            "extract again with --force"
        )
    found = Recomputed()
    views = store.row_format.views
    extract(backbone, list(pictures.items()), found, views, batch_size, workers)
    wrong: dict[int, str] = {}
    for image_id, (grid, pooled) in found.features.items():
        row = store.rows([image_id])
        for view, name in enumerate(views):
            # Values beyond the largest int8 are clipped in the store, too.
            new = np.empty_like(grid[view])
            store.row_format.dequantise(store.row_format.quantise(grid[view]), new)
            difference = max(
                _difference(new, store.grid(row, [view])[0]),
                _difference(pooled[view], store.pooled(row, [view])[0]),
            )
            if not difference <= _TOLERANCE:
                why = f"view {name}: its features differ from those of its picture by"
                wrong.setdefault(image_id, f"{why} {difference:.0%}")
    return wrong, len(found.features)


def _difference(new: np.ndarray, old: np.ndarray) -> float:
    return float(np.linalg.norm(new - old) / (np.linalg.norm(old) + 1e-6))
