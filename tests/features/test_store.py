"""The store returns what was written, in every process and thread, and refuses damaged files."""

import json
import multiprocessing
import os
import pickle
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.errors import UserError
from features.row_format import Packed, Record, RowFormat, checksum, to_float32
from features.store import FeatureStore, fingerprint
from features.store_writing import write_store

from .conftest import DESCRIPTION, features

IDS = [30, 10, 20, 40]
KINDS = {
    "float16": {},
    "float16, not deflated": {"compression": "none"},
    "int8": {"dtype": "int8"},
    "three views": {"views": ("whole", "mirror", "centre")},
    "three views, int8": {"views": ("whole", "mirror", "centre"), "dtype": "int8"},
}


def kind_of(name: str) -> RowFormat:
    options = dict(KINDS[name])
    return RowFormat({**DESCRIPTION, "dtype": options.pop("dtype", "float16")}, **options)


@pytest.fixture
def path(make: Callable, tmp_path: Path) -> Path:
    """A store of four images; the second one failed."""
    make(IDS, failed={10: "the file is émpty"})
    return tmp_path / "features.h5"


@pytest.mark.parametrize("name", KINDS)
def test_reads_what_was_written_in_any_order(make: Callable, tmp_path: Path, name: str) -> None:
    kind = kind_of(name)
    make(IDS, kind, failed={10: "the file is émpty"})
    store = FeatureStore(tmp_path / "features.h5")
    assert store.description == kind.description
    assert store.fingerprint == fingerprint(kind.description)
    assert store.image_ids.tolist() == IDS
    assert store.status.tolist() == [1, 2, 1, 1]
    assert store.failures() == {10: "the file is émpty"}
    rows = store.rows([20, 30, 20])
    assert rows.tolist() == [2, 0, 2]
    for view in range(len(kind.views)):
        views = None if view == 0 else [view] * 3
        grid, pooled = store.grid(rows, views), store.pooled(rows, views)
        assert grid.dtype == pooled.dtype == np.float32
        for i, image_id in enumerate([20, 30, 20]):
            wanted, mean = (array[view] for array in features(image_id, kind))
            np.testing.assert_array_equal(pooled[i], mean.astype(np.float16))
            if store.row_format.scale is None:
                np.testing.assert_array_equal(grid[i], wanted.astype(np.float16))
            else:
                scale = store.row_format.scale
                clipped = np.clip(wanted, -127 * scale, 127 * scale)
                assert (np.abs(grid[i] - clipped) <= 0.501 * scale).all()
    assert store.grid(rows[:0]).shape == (0, 6, 4)


@pytest.mark.parametrize("name", KINDS)
def test_any_hdf5_library_reads_it(make: Callable, tmp_path: Path, name: str) -> None:
    kind = kind_of(name)
    make(IDS, kind, failed={10: "the file is émpty"})
    store = FeatureStore(tmp_path / "features.h5")
    with h5py.File(tmp_path / "features.h5") as file:
        scale = file["scale"][:] if kind.description["dtype"] == "int8" else np.float32(1)
        for view in range(len(kind.views)):
            grid, pooled, sums = (
                file[name][2] if len(kind.views) == 1 else file[name][2, view]
                for name in ("grid", "pooled", "checksum")
            )
            np.testing.assert_array_equal(grid * scale, store.grid([2], [view])[0])
            np.testing.assert_array_equal(pooled, store.pooled([2], [view])[0])
            assert sums.tolist() == [zlib.crc32(pooled.tobytes()), zlib.crc32(grid.tobytes())]
        assert file["failure"][1].decode() == "the file is émpty"
        assert json.loads(file.attrs["backbone"]) == "small"
        assert json.loads(file.attrs["views"]) == list(kind.views)
        scales = {"scale"} if kind.description["dtype"] == "int8" else set()
        names = {"image_id", "grid", "pooled", "status", "failure", "checksum"}
        assert set(file) == names | scales


def test_every_float16_is_read_exactly() -> None:
    halves = np.arange(2**16, dtype="<u2").view("<f2")
    found = np.empty(2**16, np.float32)
    to_float32(halves, found)
    np.testing.assert_array_equal(found, halves.astype(np.float32))


def test_rows_names_images_that_are_missing_or_failed(path: Path) -> None:
    store = FeatureStore(path)
    with pytest.raises(UserError, match="2 images are not in the store: 7, 99; run python -m"):
        store.rows([30, 7, 99])
    with pytest.raises(UserError, match="1 images failed: 10"):
        store.rows([30, 10])
    with pytest.raises(UserError, match="image 10 failed"):
        store.grid([1])
    for rows, views in (([4], None), ([-1], None), ([0], [1]), ([0], [-1])):
        with pytest.raises(IndexError):
            store.grid(rows, views)


def total(store: FeatureStore) -> float:
    return float(store.grid(store.rows([30, 20, 40])).sum())


def test_processes_and_threads_read_side_by_side(path: Path) -> None:
    store = FeatureStore(path)
    expected = total(store)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: total(store), range(200))) == {expected}
    # A pickled store opens the file for itself; a forked one shares it.
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as processes:
            assert processes.map(total, [store] * 4) == [expected] * 4


def test_an_open_store_stays_readable_when_the_file_is_replaced(path: Path, make: Callable) -> None:
    store = FeatureStore(path)
    expected, pickled = total(store), pickle.dumps(store)
    make([50, *IDS])
    assert total(store) == expected
    with pytest.raises(UserError, match="was replaced while it was read"):
        pickle.loads(pickled)


def test_a_store_may_contain_only_failures(make: Callable, tmp_path: Path) -> None:
    make(IDS, failed=dict.fromkeys(IDS, "no such file"))
    assert list(FeatureStore(tmp_path / "features.h5").failures()) == IDS


def test_expect_names_the_fields_that_differ(path: Path) -> None:
    store = FeatureStore(path)
    store.expect(fingerprint(DESCRIPTION), "the run")
    for unlike, named in (
        ({"channels": 8}, "the run .*channels 4 instead of 8; extract"),
        # All other differences follow from that one.
        ({"backbone": "large", "channels": 8}, "the run .*: backbone small instead of large; ext"),
    ):
        other = DESCRIPTION | unlike
        with pytest.raises(UserError, match=named):
            store.expect(fingerprint(other), "the run", other)


def test_the_fingerprint_depends_on_the_features_and_not_on_the_file(
    make: Callable, tmp_path: Path
) -> None:
    prints = set()
    for name in ("float16", "float16, not deflated", "three views"):
        make(IDS, kind_of(name), force=True)
        prints.add(FeatureStore(tmp_path / "features.h5").fingerprint)
    # Runs trained on a store of format 1 expect this fingerprint.
    assert prints == {fingerprint(DESCRIPTION), fingerprint({**DESCRIPTION, "format": 1})}


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_never_changes_features_unnoticed(
    make: Callable, tmp_path: Path, name: str
) -> None:
    kind, path = kind_of(name), tmp_path / "features.h5"
    make(IDS, kind)
    store = FeatureStore(path)
    whole = path.read_bytes()
    for row, view in [(0, 0), (3, len(kind.views) - 1)]:
        pooled = store._pooled_start + (row * len(kind.views) + view) * 8
        start, size = int(store._offsets[row, view]), int(store._sizes[row, view])
        unnoticed = []
        for place in (pooled, pooled + 7, *range(start, start + size)):
            spoilt = bytearray(whole)
            spoilt[place] ^= 1 << place % 8
            path.write_bytes(spoilt)
            damaged = FeatureStore(path)
            read = "pooled" if place in (pooled, pooled + 7) else "grid"
            if damaged.check(row):
                assert kind.views[view] in damaged.check(row)
                with pytest.raises(UserError, match=f"is damaged: image {IDS[row]}"):
                    getattr(damaged, read)([row], [view])
            else:
                found = getattr(damaged, read)([row], [view])
                np.testing.assert_array_equal(found, getattr(store, read)([row], [view]))
                unnoticed.append(place - start)
            assert not any(damaged.check(other) for other in range(4) if other != row)
        # Some bits of deflate's header, its end and its own checksum do not matter.
        harmless = {0, 1, *range(size - 5, size)} if kind.compression == "deflate" else set()
        assert set(unnoticed) <= harmless


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


def overwrite(path: Path) -> None:
    path.write_bytes(b"this is no HDF5 file")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["grid"] = np.zeros(3)


def change(name: str, value: object = None, **options) -> Callable[[Path], None]:
    """Replace a data set, or delete it."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]
            if value is not None:
                file[name] = value
            elif options:
                file.create_dataset(name, **options)

    return damage


def attribute(name: str, value: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file.attrs[name] = np.bytes_(value)

    return damage


def replace_by_group(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["grid"]
        file.create_group("grid")


def drop_a_chunk(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        deflated = file["grid"].id.read_direct_chunk((0, 0, 0))[1]
        del file["grid"]
        grid = file.create_dataset("grid", (4, 6, 4), "<f2", chunks=(1, 6, 4), compression="gzip")
        for row in (0, 3):
            grid.id.write_direct_chunk((row, 0, 0), deflated)


def huge_chunk(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["grid"].id.write_direct_chunk((0, 0, 0), bytes(60_000))


def huge_rows(path: Path) -> None:
    """Rows of 2 GiB, all zero, for which nothing is stored."""
    with h5py.File(path, "r+") as file:
        del file["grid"]
        shape = (4, 2**20, 2**10)
        file.create_dataset("grid", shape, "<f2", chunks=(1, *shape[1:]), compression="gzip")
        file.attrs["grid"], file.attrs["channels"] = np.bytes_("[1024, 1024]"), np.bytes_("1024")


def huge_count(path: Path) -> None:
    """10^12 images, for which nothing is stored."""
    with h5py.File(path, "r+") as file:
        for name, dataset in list(file.items()):
            rest, dtype = dataset.shape[1:], dataset.dtype
            del file[name]
            file.create_dataset(name, (10**12, *rest), dtype, chunks=(1, *rest))


DAMAGE = {
    "truncated": truncate,
    "not HDF5": overwrite,
    "empty": empty,
    "foreign": foreign,
    "a group": replace_by_group,
    "no status": change("status"),
    "no checksums": change("checksum"),
    "status 7": change("status", np.full(4, 7, np.uint8)),
    "an image twice": change("image_id", np.array([1, 2, 1, 3])),
    "another shape": change("grid", np.zeros((4, 5, 4), np.float16)),
    "a contiguous grid": change("grid", np.zeros((4, 6, 4), np.float16)),
    "other chunks": change("grid", shape=(4, 6, 4), dtype="<f2", chunks=(2, 6, 4)),
    "other filters": change("grid", shape=(4, 6, 4), dtype="<f2", chunks=(1, 6, 4), shuffle=True),
    "missing chunks": drop_a_chunk,
    "a huge chunk": huge_chunk,
    "huge rows": huge_rows,
    "a huge count": huge_count,
    "no size": attribute("grid", '"seven"'),
    "a negative size": attribute("grid", "[-2, -3]"),
    "a size without end": attribute("channels", "1e400"),
    "deep nesting": attribute("views", "[" * 10**4),
    "no views": attribute("views", "[]"),
    "unknown compression": attribute("compression", '"zip"'),
    "unknown dtype": attribute("dtype", '"float64"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_refused_in_little_memory(path: Path, damage: str) -> None:
    DAMAGE[damage](path)
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{path} is not a feature store, or is damaged .*delete"):
        FeatureStore(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "wrong",
    [{"grid": [1024, 1024], "channels": 1024}, {"grid": [7]}, {"channels": True}, {"grid": [0, 7]}],
)
def test_impossible_row_sizes_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="a grid of"):
        RowFormat({**DESCRIPTION, **wrong})


def test_a_store_truncated_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is not a feature store, or is damaged"):
            FeatureStore(path)


def test_a_decompression_bomb_does_not_exhaust_memory(tmp_path: Path) -> None:
    kind = RowFormat({**DESCRIPTION, "grid": [64, 64]})  # 32 KiB
    bomb = zlib.compress(bytes(1000 * kind.grid_bytes), 9)
    grid, pooled = (array.astype("<f2") for array in features(1, kind))
    sums = np.array([[checksum(pooled[0]), checksum(grid[0])]])
    path = tmp_path / "features.h5"
    write_store(path, kind, [1], [Record(1, Packed(pooled, [bomb], sums))], {})
    store = FeatureStore(path)
    tracemalloc.start()
    with pytest.raises(UserError, match="image 1: its features have the wrong size"):
        store.grid([0])
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_a_store_of_another_format_is_refused(path: Path) -> None:
    attribute("format", "1")(path)
    with pytest.raises(UserError, match=r"has format 1, this version reads format 2; delete it"):
        FeatureStore(path)


def test_a_missing_store_names_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features.h5 is not there; create it with python -m"):
        FeatureStore(tmp_path / "features.h5")


def test_reading_takes_memory_only_for_the_requested_rows(make: Callable, tmp_path: Path) -> None:
    make(range(200), RowFormat({**DESCRIPTION, "channels": 256}))
    store = FeatureStore(tmp_path / "features.h5")
    tracemalloc.start()
    for start in range(0, 200, 4):
        batch = store.grid(range(start, start + 4))
    assert tracemalloc.get_traced_memory()[1] < 8 * batch.nbytes < 200 * batch.nbytes / 4
    tracemalloc.stop()
