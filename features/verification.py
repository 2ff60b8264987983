"""Checks of a store: every row against its checksum, some rows against their pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from features.backbones import Backbone
from features.errors import UserError
from features.extraction import extract
from features.progress import track
from features.store import STORED, FeatureStore, differences, fingerprint

SAMPLE = 64  # number of images to recompute
# Largest difference, relative to the norm of the row. Rounding, other backends and other picture
# decoders stay below a tenth of it; features of another picture differ by more than 1.
_TOLERANCE = 0.05


class _Recomputed:
    """A writer (see `features.extraction.Writer`) that keeps the features in memory.

    Attributes:
        features: float32 [views, regions, channels] and [views, channels] for each image.
        failed: why pictures can no longer be read, by image id.
    """

    def __init__(self) -> None:
        self.features: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.failed: dict[int, str] = {}

    def put(self, image_ids: Sequence[int], grid: np.ndarray, pooled: np.ndarray) -> None:
        """Keep the features of images."""
        self.features.update(zip(image_ids, zip(grid, pooled, strict=True), strict=True))

    def fail(self, image_id: int, reason: str) -> None:
        """Record why a picture cannot be read."""
        self.failed[image_id] = reason


def damaged(store: FeatureStore) -> dict[int, str]:
    """Read every row of a store and return what is wrong with each damaged image, by image id."""
    rows = np.flatnonzero(store.status == STORED).tolist()
    checked = ((row, store.check(row)) for row in track(rows, "verify", "image"))
    return {int(store.image_ids[row]): why for row, why in checked if why}


def recompute(
    store: FeatureStore,
    backbone: Backbone,
    pictures: Mapping[int, Path],
    batch_size: int,
    workers: int | None,
) -> tuple[dict[int, str], int]:
    """Compute the features of `pictures`, by image id, again and compare them with the store.

    Returns:
        What is wrong with each image whose features differ, and the number of images compared.
        Pictures that are missing or can no longer be read are not compared.

    Raises:
        UserError: `backbone` is not the CNN that made the store.
    """
    description = {**backbone.description, "dtype": store.description["dtype"]}
    if fingerprint(description) != store.fingerprint:
        raise UserError(
            f"{store.path} was made by a different {store.description['backbone']}: "
            f"{differences(description, store.description)}; install the version that made it, or "
            "extract again with --force and the options of the first extraction"
        )
    recomputed = _Recomputed()
    views = store.row_format.views
    extract(backbone, list(pictures.items()), recomputed, views, batch_size, workers)
    wrong: dict[int, str] = {}
    for image_id, (grid, pooled) in recomputed.features.items():
        row = store.rows([image_id])
        for view, name in enumerate(views):
            # Rounded as in the store, where values beyond the largest int8 are clipped.
            new = np.empty_like(grid[view])
            store.row_format.dequantise(store.row_format.quantise(grid[view]), new)
            difference = max(
                _difference(new, store.grid(row, [view])[0]),
                _difference(pooled[view], store.pooled(row, [view])[0]),
            )
            if not difference <= _TOLERANCE:
                why = f"view {name}: its features differ from those of its picture by"
                wrong.setdefault(image_id, f"{why} {difference:.0%}")
    return wrong, len(recomputed.features)


def _difference(new: np.ndarray, old: np.ndarray) -> float:
    return float(np.linalg.norm(new - old) / (np.linalg.norm(old) + 1e-6))
