"""Many stores read as one."""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from features import store_set
from features.errors import UserError
from features.row_format import Packed, Record, RowFormat, checksum
from features.store import FeatureStore
from features.store_set import StoreSet
from features.store_writing import write_store
from tests.features.conftest import DESCRIPTION, extract

IDS = ([7, 3, 9], [2, 11], [20, 1, 5, 4])
FAILED = {11: "it is not a picture", 5: "it is empty"}


@pytest.fixture
def folder(tmp_path: Path, kind: RowFormat) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    for number, ids in enumerate(IDS):
        extract(out / f"{number}.h5", ids, kind, FAILED)
    return out


def test_a_set_equals_one_store_of_the_same_pictures_row_for_row(folder, tmp_path, kind):
    every = [image_id for ids in IDS for image_id in ids]
    extract(tmp_path / "one.h5", every, kind, FAILED)
    one, many = FeatureStore(tmp_path / "one.h5"), StoreSet(folder)
    assert len(many) == len(one)
    rows = np.arange(len(one))
    assert many.image_ids[rows].tolist() == one.image_ids.tolist()
    assert many.status[rows].tolist() == one.status.tolist()
    assert many.failures() == one.failures() == FAILED
    assert (many.fingerprint, many.description) == (one.fingerprint, one.description)
    (stored,) = one.stored_rows()
    assert np.concatenate(list(many.stored_rows())).tolist() == stored.tolist()
    mixed = np.random.default_rng(0).choice(stored, 20)
    np.testing.assert_array_equal(many.grid(mixed), one.grid(mixed))
    np.testing.assert_array_equal(many.grid(mixed, regions=2), one.grid(mixed, regions=2))
    np.testing.assert_array_equal(many.pooled(mixed), one.pooled(mixed))
    assert many.rows([4, 7, 2]).tolist() == one.rows([4, 7, 2]).tolist()
    assert many.regions is None
    assert many.check(int(stored[-1])) == ""


def test_views_are_those_of_each_row(tmp_path):
    kind = RowFormat(DESCRIPTION, ("whole", "mirrored"))
    out = tmp_path / "out"
    out.mkdir()
    for number, ids in enumerate(([1, 2], [3])):
        extract(out / f"{number}.h5", ids, kind, {})
    stores = [FeatureStore(out / f"{number}.h5") for number in range(2)]
    many = StoreSet(out)
    np.testing.assert_array_equal(many.grid([2, 1], [1, 0])[0], stores[1].grid([0], [1])[0])
    np.testing.assert_array_equal(many.pooled([2, 1], [1, 0])[1], stores[0].pooled([1])[0])


def test_numbers_of_regions_are_those_of_each_row(tmp_path):
    kind = RowFormat({**DESCRIPTION, "regions": "varying boxes"})
    for shard, counts in enumerate(([2, 5], [1, 6, 3])):
        records = []
        for row, count in enumerate(counts):
            grid = np.zeros((6, 4), np.float16)
            grid[:count] = shard + 1
            pooled = np.ones((1, 4), np.float16)
            sums = np.array([[checksum(pooled), checksum(grid, count)]], np.uint32)
            records.append(Record(3 * shard + row, Packed(pooled, [kind.pack(grid)], sums, count)))
        ids = [record.image_id for record in records]
        write_store(tmp_path / f"{shard}.h5", kind, ids, records, {})
    many = StoreSet(tmp_path)
    assert many.regions is not None
    assert many.regions[[4, 0, 3]].tolist() == [3, 2, 6]
    assert many.grid([4, 1], regions=5)[:, :, 0].tolist() == [[2, 2, 2, 0, 0], [1] * 5]


def test_rows_of_absent_and_of_failed_images_are_refused_by_name(folder):
    many = StoreSet(folder)
    with pytest.raises(UserError, match="2 images are not in the stores: 77, 78"):
        many.rows([7, 77, 78])
    with pytest.raises(UserError, match="1 images failed: 11"):
        many.rows([7, 11])
    with pytest.raises(IndexError):
        many.pooled([len(many)])


def test_a_store_of_other_features_or_views_is_refused_by_name_and_field(folder, kind):
    other = replace(kind, description={**DESCRIPTION, "channels": 8})
    extract(folder / "3.h5", [30], other, {})
    with pytest.raises(UserError, match=r"3\.h5 holds other features .*: channels 8 instead of 4"):
        StoreSet(folder)
    (folder / "3.h5").unlink()
    extract(folder / "3.h5", [30], replace(kind, views=("whole", "mirrored")), {})
    with pytest.raises(UserError, match=r"3\.h5 holds the views whole, mirrored, the first"):
        StoreSet(folder)


def test_stores_are_opened_when_they_are_read_and_few_at_once(folder, monkeypatch):
    shards = StoreSet(folder).shards
    opened: list[str] = []

    class Noted(FeatureStore):
        def __init__(self, path: Path) -> None:
            opened.append(path.stem)
            super().__init__(path)

    monkeypatch.setattr(store_set, "FeatureStore", Noted)
    monkeypatch.setattr(store_set, "MOST_OPEN", 2)
    many = StoreSet(folder, shards)
    assert opened == ["0"]  # for the format of the rows
    opened.clear()
    for row in (0, 1, 3, 0, 5):
        many.pooled([row])
    assert opened == ["0", "1", "2"]
    many.pooled([3])  # that of the least recent use was closed
    assert opened == ["0", "1", "2", "1"]
    assert len(many._open) == 2


def test_a_store_that_changed_since_it_was_counted_is_refused(folder, kind):
    shards = StoreSet(folder).shards
    (folder / "1.h5").unlink()
    extract(folder / "1.h5", [2], kind, {})
    many = StoreSet(folder, shards)
    with pytest.raises(UserError, match=re.escape("1.h5 has changed since")):
        many.pooled([3])


def test_a_store_that_is_missing_later_or_damaged_is_refused_with_what_to_do(folder, kind):
    many = StoreSet(folder)
    (folder / "1.h5").unlink()
    with pytest.raises(UserError, match=re.escape("1.h5 is not there any more; bring it back, or")):
        many.pooled([3])
    path = folder / "2.h5"
    records = [FeatureStore(path).record(row) for row in range(4)]
    write_store(path, kind, IDS[2], records, {}, keys=list("abcd"))
    with h5py.File(path, "r+") as file:
        file["pooled"][0] = 1
    with pytest.raises(UserError, match=r"2\.h5 is damaged: image 20: .*; delete that file, and"):
        StoreSet(folder).pooled([3])


def test_a_set_can_be_pickled(folder):
    many = StoreSet(folder)
    many.pooled([0])
    copy = pickle.loads(pickle.dumps(many))
    np.testing.assert_array_equal(copy.pooled([0, 5]), many.pooled([0, 5]))
    assert copy.rows([7]).tolist() == [0]


def test_remote_and_empty_folders_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match="copy them to a disk here first"):
        StoreSet(Path("s3://bucket/stores"))
    with pytest.raises(UserError, match="found none; create them with"):
        StoreSet(tmp_path)
