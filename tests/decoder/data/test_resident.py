"""Features and captions in memory are those of the store, wherever they are kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder.data import readers, resident
from decoder.data.batches import Features
from decoder.data.readers import SplitReader, keep_in_memory
from decoder.data.resident import NotExact, ResidentFeatures
from decoder.data.single_store import SingleStoreReader
from features.errors import UserError
from features.parts import PartWriter
from features.row_format import RowFormat
from features.store import FeatureStore
from features.store_writing import begin, merge
from pipeline.captions import Caption, CaptionTable, Image
from pipeline.vocabulary import SPECIAL, Vocabulary
from tests.decoder.test_cider import Captured

CPU = torch.device("cpu")
IMAGES, VIEWS = 75, 3
DESCRIPTION = {"backbone": "small", "grid": [3, 4], "channels": 40}
STORES = {
    "float16": ({"dtype": "float16"}, VIEWS),
    "int8": ({"dtype": "int8"}, VIEWS),
    "varying": ({"dtype": "float16", "regions": "varying boxes"}, 1),
}
EVERY_STORE = pytest.mark.parametrize("store", STORES, indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    """A store of `IMAGES` images, one of the kinds in `STORES`."""
    fields, views = STORES[getattr(request, "param", "float16")]
    kind = RowFormat({**DESCRIPTION, **fields}, [f"view {i}" for i in range(views)])
    random = np.random.default_rng(0)
    if kind.dtype.kind == "i":
        kind = replace(kind, scale=random.uniform(0.01, 0.03, kind.channels).astype(np.float32))
    path = tmp_path / "features.h5"
    writer = PartWriter(begin(path, kind, None), kind)
    for image_id in range(IMAGES):
        grid = random.standard_normal((1, views, kind.regions, kind.channels)).astype(np.float32)
        counts = None
        if kind.varies:
            counts = [int(random.integers(1, kind.regions + 1))]
            grid[:, :, counts[0] :] = 0
        writer.put([image_id], grid, grid.mean(2), counts)
    writer.close()
    merge(path, kind, None, list(range(IMAGES)), {})
    return FeatureStore(path)


def table() -> CaptionTable:
    """Five validation images; the others have from one to six captions of up to eight words."""
    random = np.random.default_rng(1)
    images = []
    for number in range(IMAGES):
        lengths = random.integers(1, 9, random.integers(1, 7))
        texts = [tuple(f"w{i}" for i in random.integers(0, 9, length)) for length in lengths]
        captions = tuple(Caption(" ".join(tokens), tokens) for tokens in texts)
        split = "val" if number < 5 else "train"
        images.append(Image(number, f"{number}.jpg", split, captions))
    return CaptionTable("random", Path(), tuple(images))


VOCABULARY = Vocabulary((*SPECIAL, *(f"w{i}" for i in range(9))), (0,) * 13, 1, 8)


def assert_equal(found: Features, expected: Features) -> None:
    assert (found.mask_IR is None) == (expected.mask_IR is None)
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


@EVERY_STORE
@pytest.mark.parametrize("grid", [True, False])
def test_resident_features_are_the_stores(store: FeatureStore, grid: bool) -> None:
    """With batches of an epoch and of a split, in either of two readers."""
    kept, plain = (
        SingleStoreReader(store, table(), VOCABULARY, 8, seed=1, grid=grid) for _ in range(2)
    )
    kept.keep(CPU, CPU)
    store_rows = store.grid
    batches = list(kept.epoch("xe", 2, 3))
    for batch, expected in zip(batches, plain.epoch("xe", 2, 3), strict=True):
        assert_equal(batch.features, expected.features)
        for one, other in zip(batch, expected, strict=True):
            if isinstance(one, torch.Tensor):
                assert torch.equal(one, other)
    assert store.grid == store_rows

    kept, plain = (SplitReader(store, table(), "val", grid=grid) for _ in range(2))
    kept.keep(CPU, CPU)
    for (images, features), (others, expected) in zip(
        kept.batches(2), plain.batches(2), strict=True
    ):
        assert images == others
        assert_equal(features, expected)


@EVERY_STORE
def test_gathering_can_be_captured(store: FeatureStore) -> None:
    """Its shapes are those of the largest image, and nothing waits for a GPU."""
    rows = np.arange(IMAGES)
    kept = ResidentFeatures(store, rows, 1, True, CPU, CPU)
    shapes = []
    for chosen in ([5, 2, 60], [7, 7, 1]):
        place_I = torch.from_numpy(kept.places(chosen))
        with Captured() as captured:
            found = kept.gather(place_I)
        expected = readers.read_features(store, np.array(chosen), every_region=True)
        assert_equal(found, expected)
        shapes.append(captured.shapes)
    assert shapes[0] == shapes[1]


def test_a_damaged_row_is_named(store: FeatureStore) -> None:
    with store.path.open("r+b") as file:
        file.seek(store._offsets[30, 1])
        file.write(bytes(int(store._sizes[30, 1])))
    reader = SingleStoreReader(store, table(), VOCABULARY, 8, seed=1)
    with pytest.raises(UserError, match="image 30, view view 1"):
        reader.keep(CPU, CPU)


@pytest.mark.parametrize("store", ["int8"], indirect=True)
def test_features_of_another_scale_are_not_kept(store: FeatureStore) -> None:
    """As where a set of stores answers with the scale of its first one."""

    class Other(FeatureStore):
        def grid(self, *args) -> np.ndarray:
            return super().grid(*args) * np.float32(1.3)

    with pytest.raises(NotExact, match="different scales"):
        ResidentFeatures(Other(store.path), np.arange(9), 1, True, CPU, CPU)


def test_features_are_kept_where_they_fit_and_for_gpus_only(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, free = torch.device("cuda", 0), {"cuda": 100, "cpu": 1000}
    monkeypatch.setattr(resident, "free_memory", lambda device: free[device.type])
    assert [resident.choose_memory(n, gpu) for n in (60, 61, 600, 601)] == [gpu, CPU, CPU, None]
    reader = SplitReader(store, table(), "val")
    assert keep_in_memory([reader], CPU) == ""
    expected = "features of 5 images are read from the disk in each epoch (0.01 MB: more than is"
    assert keep_in_memory([reader], gpu).startswith(expected)
    assert reader.resident is None
