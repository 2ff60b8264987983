import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.errors import UserError
from features.store import FeatureStore, StoreWriter, fingerprint, open_for_writing, store_bytes

DESCRIPTION = {"format": 1, "backbone": "small", "grid": [2, 3], "channels": 4, "dtype": "float16"}
IDS = [30, 10, 20, 40]


def features(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    grid = random.standard_normal((count, 6, 4), np.float32)
    return grid, random.standard_normal((count, 4), np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of four images: the first and third are stored, the second failed."""
    path = tmp_path / "features.h5"
    with open_for_writing(path, DESCRIPTION, IDS, {"numpy": np.__version__}) as writer:
        writer.put([0, 2], *features(2))
        writer.fail(1, "the file is émpty")
    return path


def test_reads_what_was_written_in_any_order(path: Path) -> None:
    store = FeatureStore(path)
    assert store.description == DESCRIPTION
    assert store.fingerprint == fingerprint(DESCRIPTION)
    assert store.image_ids.tolist() == IDS
    assert store.status.tolist() == [1, 2, 1, 0]
    assert store.failures() == {10: "the file is émpty"}
    rows = store.rows([20, 30, 20])
    assert rows.tolist() == [2, 0, 2]
    grid, pooled = features(2)
    np.testing.assert_array_equal(store.grid(rows), grid[[1, 0, 1]].astype(np.float16))
    np.testing.assert_array_equal(store.pooled(rows), pooled[[1, 0, 1]].astype(np.float16))
    assert store.grid(rows[:0]).shape == (0, 6, 4)


def test_any_hdf5_library_reads_it(path: Path) -> None:
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["grid"][2], features(2)[0][1].astype(np.float16))
        assert file["failure"][1].decode() == "the file is émpty"
        assert json.loads(file.attrs["backbone"]) == "small"
        assert file["grid"].chunks is None
        assert set(file) == {"image_id", "grid", "pooled", "status", "failure"}


def test_rows_names_images_that_are_missing_or_not_stored(path: Path) -> None:
    store = FeatureStore(path)
    with pytest.raises(UserError, match="2 images are not in the store: 7, 99"):
        store.rows([30, 7, 99])
    with pytest.raises(UserError, match="1 images failed: 10"):
        store.rows([30, 10])
    with pytest.raises(UserError, match="1 images are not extracted yet: 40"):
        store.rows([40])
    with pytest.raises(IndexError):
        store.grid(np.array([4]))


def test_processes_open_the_file_for_themselves(path: Path) -> None:
    store = FeatureStore(path)
    expected = store.grid(np.array([2]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).grid(np.array([2])), expected)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(store.grid(np.array([2])), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_expect_names_the_fields_that_differ(path: Path) -> None:
    store = FeatureStore(path)
    store.expect(fingerprint(DESCRIPTION), "the run")
    other = DESCRIPTION | {"backbone": "large", "channels": 8}
    with pytest.raises(
        UserError, match=r"the run .*backbone small instead of large, channels 4 in"
    ):
        store.expect(fingerprint(other), "the run", other)


def test_values_beyond_float16_are_clipped_and_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    grid, pooled = features(1)
    grid[0, 0] = [1e6, -1e6, np.inf, 65519]
    with open_for_writing(path, DESCRIPTION, [1, 2], {}) as writer:
        writer.put([0], grid, pooled)
        with pytest.raises(UserError, match="no numbers for 1 images: 2"):
            writer.put([1], np.full_like(grid, np.nan), pooled)
    store = FeatureStore(path)
    assert store.grid(np.array([0]))[0, 0].tolist() == [65504, -65504, 65504, 65504]
    assert store.status.tolist() == [1, 0]


def test_continues_where_it_stopped(path: Path) -> None:
    with open_for_writing(path, DESCRIPTION, IDS, {}) as writer:
        assert writer.status.tolist() == [1, 2, 1, 0]
        writer.put([1, 3], *features(2, seed=1))
    store = FeatureStore(path)
    assert (store.status == 1).all()
    assert store.failures() == {}
    np.testing.assert_array_equal(store.pooled([1]), features(2, seed=1)[1][:1].astype(np.float16))
    np.testing.assert_array_equal(store.pooled([2]), features(2)[1][1:].astype(np.float16))


def test_grows_to_new_images_and_keeps_the_features_it_has(path: Path) -> None:
    with open_for_writing(path, DESCRIPTION, [5, 20, 30, 50], {}) as writer:
        assert writer.status.tolist() == [0, 1, 1, 0]
    store = FeatureStore(path)
    grid, pooled = features(2)
    rows = store.rows([30, 20])
    np.testing.assert_array_equal(store.grid(rows), grid.astype(np.float16))
    np.testing.assert_array_equal(store.pooled(rows), pooled.astype(np.float16))


def test_features_of_another_kind_are_refused_and_kept_unless_forced(path: Path) -> None:
    other = DESCRIPTION | {"backbone": "large"}
    before = path.read_bytes()
    with (
        pytest.raises(UserError, match="backbone small instead of large; use another --work, or -"),
        open_for_writing(path, other, IDS, {}),
    ):
        pass
    assert path.read_bytes() == before
    with open_for_writing(path, other, IDS, {}, force=True) as writer:
        assert (writer.status == 0).all()


def test_two_writers_at_once_are_refused(path: Path) -> None:
    with (
        open_for_writing(path, DESCRIPTION, IDS, {}),
        pytest.raises(UserError, match="another process is writing"),
        open_for_writing(path, DESCRIPTION, IDS, {}),
    ):
        pass


def test_a_full_disk_keeps_what_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    description = DESCRIPTION | {"channels": 4096}
    random = np.random.default_rng(0)
    grid, pooled = random.random((2, 6, 4096)), random.random((2, 4096))
    with open_for_writing(path, description, [1, 2, 3, 4], {}) as writer:
        writer.put([0, 1], grid, pooled)
        with h5py.File(path) as file:
            middle_of_last_row = file["grid"].id.get_offset() + 7 * grid[0].size
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (middle_of_last_row, limits[1]))
        try:
            with pytest.raises(UserError, match=r"cannot write .* what was stored is kept"):
                writer.put([2, 3], grid, pooled)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store = FeatureStore(path)
    assert store.status.tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(store.grid([0, 1]), grid.astype(np.float16))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


def overwrite(path: Path) -> None:
    path.write_bytes(b"this is no HDF5 file")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["grid"] = np.zeros(3)


def drop_status(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["status"]


def reshape_grid(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["grid"]
        file["grid"] = np.zeros((4, 5, 4), np.float16)


def spoil_attribute(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["grid"] = '"seven"'


def chunk_grid(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["grid"]
        file.create_dataset("grid", (4, 6, 4), np.float16, chunks=(1, 6, 4))


def replace_by_group(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["grid"]
        file.create_group("grid")


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        overwrite,
        empty,
        foreign,
        drop_status,
        reshape_grid,
        spoil_attribute,
        chunk_grid,
        replace_by_group,
        replace_by_directory,
    ],
)
def test_what_is_not_a_whole_store_is_refused(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    with pytest.raises(UserError, match=f"{path} is not a feature store, or is damaged .*delete"):
        FeatureStore(path)


def test_a_store_of_another_format_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "2"
    with pytest.raises(UserError, match="has format 2, this version reads format 1"):
        FeatureStore(path)


def test_a_store_that_is_not_there_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features.h5 is not there; python -m pipeline.extract"):
        FeatureStore(tmp_path / "features.h5")


def test_the_size_on_disk_is_known_beforehand(path: Path) -> None:
    assert 0 <= path.stat().st_size - store_bytes(4, DESCRIPTION) < 10_000


def test_a_row_that_was_being_written_does_not_count(path: Path) -> None:
    # What a kill in the middle of `put` leaves: bytes of the row, no status.
    writer = StoreWriter(path)
    writer._write("grid", [3], features(1)[0])
    writer.close()
    assert FeatureStore(path).status.tolist() == [1, 2, 1, 0]
