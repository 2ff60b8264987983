"""Fixtures that make small stores in the same way as an extraction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.parts import PartWriter
from features.row_format import RowFormat
from features.store_writing import begin, merge, only_writer, pending, resume

DESCRIPTION = {"backbone": "small", "grid": [2, 3], "channels": 4, "dtype": "float16"}


def features(image_id: int, kind: RowFormat) -> tuple[np.ndarray, np.ndarray]:
    """The grid [views, regions, channels], half of it zero, and pooled features of an image."""
    random = np.random.default_rng(image_id)
    shape = (len(kind.views), kind.regions, kind.channels)
    grid = np.maximum(random.standard_normal(shape), 0).astype(np.float32)
    return grid, random.standard_normal((shape[0], shape[2])).astype(np.float32)


def extract(
    path: Path,
    image_ids: Sequence[int],
    kind: RowFormat,
    failed: Mapping[int, str],
    finish: bool = True,
    force: bool = False,
    prune: bool = False,
) -> list[int]:
    """Extract as pipeline.extract does; return what was pending. Unless `finish`, do not merge."""
    with only_writer(path):
        old, kind = resume(path, kind, force)
        if kind.dtype.kind == "i" and kind.scale is None:
            kind = replace(kind, scale=np.linspace(0.01, 0.03, kind.channels, dtype=np.float32))
        todo = pending(path, kind, old, image_ids)
        if todo:
            writer = PartWriter(begin(path, kind, old), kind)
            for image_id in todo:
                if image_id in failed:
                    writer.fail(image_id, failed[image_id])
                else:
                    grid, pooled = features(image_id, kind)
                    writer.put([image_id], grid[None], pooled[None])
            writer.close()
        if finish:
            merge(path, kind, old, image_ids, {"numpy": np.__version__}, prune)
    return todo


@pytest.fixture
def kind() -> RowFormat:
    """Two by three regions of four channels, one view, float16, deflated."""
    return RowFormat(DESCRIPTION)


@pytest.fixture
def make(tmp_path: Path, kind: RowFormat) -> Callable[..., list[int]]:
    """`extract` to tmp_path / "features.h5", with defaults."""

    def make(image_ids: Sequence[int], kind: RowFormat = kind, **options) -> list[int]:
        return extract(
            tmp_path / "features.h5", image_ids, kind, options.pop("failed", {}), **options
        )

    return make
