"""Parts: whatever stops a process, its finished records are kept, and only those are stored."""

import os
import resource
import shutil
import signal
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from features import store_writing
from features.errors import UserError
from features.parts import PartWriter, read_record, scan
from features.row_format import RowFormat
from features.store import FeatureStore
from features.store_writing import begin, merge, only_writer, pending, resume

IDS = [30, 10, 20, 40]


def random_features(kind: RowFormat, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    grid = random.standard_normal((count, len(kind.views), kind.regions, kind.channels), np.float32)
    return grid, random.standard_normal((*grid.shape[:2], kind.channels), np.float32)


@pytest.fixture
def part(tmp_path: Path, kind: RowFormat) -> Path:
    """A part of the images 1 (stored), 2 (failed) and 3 (stored)."""
    writer = PartWriter(begin(tmp_path / "features.h5", kind, None), kind)
    grid, pooled = random_features(kind, 2)
    writer.put([1], grid[:1], pooled[:1])
    writer.fail(2, "the file is émpty")
    writer.put([3], grid[1:], pooled[1:])
    writer.close()
    return writer.path


def test_what_was_put_is_found(part: Path, kind: RowFormat) -> None:
    found = scan(part.parent, kind)
    assert [place.stored for place in found.values()] == [True, False, True]
    grid, pooled = random_features(kind, 2)
    record = read_record(found[3], kind)
    assert record.packed is not None
    np.testing.assert_array_equal(kind.unpack(record.packed.chunks[0]), grid[1, 0].astype("<f2"))
    np.testing.assert_array_equal(record.packed.pooled, pooled[1].astype("<f2"))
    assert read_record(found[2], kind).reason == "the file is émpty"


def test_a_later_part_comes_last_though_the_clock_went_back(
    part: Path, kind: RowFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.parts.time.time_ns", lambda: 5)
    with closing(PartWriter(part.parent, kind)) as writer:
        assert int(writer.path.name.partition("-")[0]) > int(part.name.partition("-")[0])


def test_a_part_truncated_at_any_byte_loses_only_the_last_record(
    part: Path, kind: RowFormat
) -> None:
    data = part.read_bytes()
    last = scan(part.parent, kind)[3]
    assert last.start + last.bytes == len(data)
    for length in range(last.start, len(data)):
        part.write_bytes(data[:length])
        assert list(scan(part.parent, kind)) == [1, 2], length
    for length in range(last.start):
        part.write_bytes(data[:length])
        assert 3 not in scan(part.parent, kind)


def test_a_flipped_bit_anywhere_in_a_record_is_noticed(part: Path, kind: RowFormat) -> None:
    data = part.read_bytes()
    last = scan(part.parent, kind)[3]
    for place in range(last.start, len(data)):
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << place % 8
        part.write_bytes(spoilt)
        assert list(scan(part.parent, kind)) == [1, 2], place


def test_a_forged_length_does_not_exhaust_memory(part: Path, kind: RowFormat) -> None:
    data = bytearray(part.read_bytes())
    data[20:24] = (2**32 - 1).to_bytes(4, "little")  # of the first record's payload
    part.write_bytes(data)
    tracemalloc.start()
    assert scan(part.parent, kind) == {}
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_parts_are_combined_and_stored_wins_over_failed(part: Path, kind: RowFormat) -> None:
    grid, pooled = random_features(kind, 1, seed=1)
    for image_ids in ([2], [4]):
        writer = PartWriter(part.parent, kind)
        writer.put(image_ids, grid, pooled)
        writer.fail(1, "gone by now")
        writer.close()
    (part.parent / "0.part").write_bytes(b"not a part")
    (part.parent / "1.part").touch()
    found = scan(part.parent, kind)
    assert {image_id for image_id, place in found.items() if place.stored} == {1, 2, 3, 4}


def test_values_beyond_the_stored_type_are_clipped_and_nan_is_refused(
    part: Path, kind: RowFormat
) -> None:
    grid, pooled = random_features(kind, 1)
    grid[0, 0, 0] = [1e6, -1e6, np.inf, 65519]
    for dtype in ("float16", "int8"):
        scale = np.full(4, 0.5, np.float32) if dtype == "int8" else None
        typed = replace(kind, description={**kind.description, "dtype": dtype}, scale=scale)
        writer = PartWriter(part.parent, typed)
        writer.put([7], grid, pooled)
        with pytest.raises(UserError, match="returned NaN for 1 images: 8"):
            writer.put([8], np.full_like(grid, np.nan), pooled)
        with pytest.raises(ValueError, match="expected features"):
            writer.put([8], grid[:, :, :2], pooled)
        writer.close()
        packed = read_record(scan(part.parent, typed)[7], typed).packed
        assert packed is not None
        most = {"float16": [65504, -65504, 65504, 65504], "int8": [127, -127, 127, 127]}[dtype]
        assert typed.unpack(packed.chunks[0])[0].tolist() == most
        writer.path.unlink()


def test_a_full_disk_keeps_what_was_stored_and_the_rest_follows(
    tmp_path: Path, kind: RowFormat
) -> None:
    path = tmp_path / "features.h5"
    kind = replace(kind, description={**kind.description, "channels": 512}, compression="none")
    grid, pooled = random_features(kind, 4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with only_writer(path):
        folder = begin(path, kind, None)
        writer = PartWriter(folder, kind)
        resource.setrlimit(resource.RLIMIT_FSIZE, (18_000, limits[1]))  # 2.5 records
        try:
            with pytest.raises(
                UserError, match=r"cannot write .*: File too large; what was stored"
            ):
                writer.put(IDS, grid, pooled)
            writer.close()
            assert pending(path, kind, None, IDS) == IDS[2:]
            # The store does not fit either.
            with pytest.raises(UserError, match=r"features.h5: File too large; what was stored"):
                merge(path, kind, None, IDS[:2], {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [file.name for file in tmp_path.iterdir() if "new" in file.name] == []
        writer = PartWriter(folder, kind)
        writer.put(IDS[2:], grid[2:], pooled[2:])
        writer.close()
        merge(path, kind, None, IDS, {})
    store = FeatureStore(path)
    np.testing.assert_array_equal(store.grid(store.rows(IDS)), grid[:, 0].astype("<f2"))


def test_a_disk_without_room_for_the_store_is_named_before_it_is_written(
    make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(IDS, finish=False) == IDS
    usage = SimpleNamespace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"features.h5 needs .* the disk has 0.00 MB free"):
        make(IDS)
    monkeypatch.undo()
    assert make(IDS) == []
    assert FeatureStore(tmp_path / "features.h5").image_ids.tolist() == IDS


def test_an_interrupted_extraction_makes_the_same_file(make: Callable, tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    assert make(IDS, failed={10: "no such file"}) == IDS
    whole = path.read_bytes()
    path.unlink()
    for count in range(len(IDS) + 1):
        todo = make(IDS[:count], failed={10: "no such file"}, finish=False)
        assert [i for i in todo if i != 10] == [i for i in IDS[count - 1 : count] if i != 10]
    assert not path.exists()
    make(IDS, failed={10: "no such file"})
    assert path.read_bytes() == whole
    assert not (tmp_path / "features.parts").exists()


def test_a_kill_between_the_new_store_and_the_removal_of_its_parts_does_no_harm(
    make: Callable, tmp_path: Path
) -> None:
    path, parts = tmp_path / "features.h5", tmp_path / "features.parts"
    for image_ids, force in (([30, 10], False), (IDS, False), (IDS, True)):
        make(image_ids, finish=False, force=force)
        shutil.copytree(parts, tmp_path / "copy")
        assert make(image_ids) == []
        done = path.read_bytes()
        (tmp_path / "copy").rename(parts)
        assert make(image_ids) == []
        assert path.read_bytes() == done
        assert not parts.exists()


def test_growing_keeps_the_old_rows_as_they_are(make: Callable, tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    make([30, 10, 20], failed={10: "no such file"})
    old = FeatureStore(path)
    assert make([5, 20, 10, 50]) == [5, 10, 50]  # what failed is tried again
    store = FeatureStore(path)
    assert store.image_ids.tolist() == [5, 20, 10, 50, 30]  # 30 is kept, at the end
    assert store.failures() == {}
    for image_id in (20, 30):
        row, old_row = store.rows([image_id])[0], old.rows([image_id])[0]
        assert store.record(row).packed.chunks == old.record(old_row).packed.chunks
        np.testing.assert_array_equal(store.pooled([row]), old.pooled([old_row]))


def test_images_no_longer_wanted_are_dropped_only_on_request(
    make: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "features.h5"
    make(IDS, failed={10: "no such file"})
    assert make([20, 40]) == []
    assert FeatureStore(path).image_ids.tolist() == [20, 40, 30]  # without the failed image
    assert make([20, 40], prune=True) == []
    assert FeatureStore(path).image_ids.tolist() == [20, 40]


def test_nothing_new_leaves_the_file_alone(make: Callable, tmp_path: Path) -> None:
    make(IDS)
    before = (tmp_path / "features.h5").stat()
    assert make(IDS) == []
    after = (tmp_path / "features.h5").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize("change", ["backbone", "views", "compression", "dtype"])
def test_features_of_another_kind_are_refused_and_kept_unless_forced(
    make: Callable, kind: RowFormat, tmp_path: Path, change: str, finish: bool
) -> None:
    other = {
        "backbone": replace(kind, description={**kind.description, "backbone": "large"}),
        "views": replace(kind, views=("whole", "mirror")),
        "compression": replace(kind, compression="none"),
        "dtype": replace(kind, description={**kind.description, "dtype": "int8"}),
    }[change]
    make(IDS, finish=finish)
    name = "features.h5" if finish else "features.parts"
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = f"{name} holds other features than requested: {change} .* instead of .*; repeat the"
    with pytest.raises(UserError, match=message):
        make(IDS, other)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    assert make(IDS, other, force=True) == IDS
    assert FeatureStore(tmp_path / "features.h5").row_format.described() == other.described()


def test_a_forced_extraction_that_was_interrupted_is_continued(
    make: Callable, kind: RowFormat, tmp_path: Path
) -> None:
    make(IDS)
    other = replace(kind, compression="none")
    make(IDS[:2], other, force=True, finish=False)
    # The old store stays until the new one is complete, and does not become part of it.
    assert FeatureStore(tmp_path / "features.h5").row_format.compression == "deflate"
    assert make(IDS, other) == IDS[2:]
    assert FeatureStore(tmp_path / "features.h5").row_format.compression == "none"


def test_resuming_and_growing_keep_the_scale_of_int8(
    make: Callable, kind: RowFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(kind, description={**kind.description, "dtype": "int8"})
    make(IDS[:2], wanted, finish=False)
    # Another calibration, of other pictures, would give another scale.
    monkeypatch.setattr(np, "linspace", lambda *_, **__: np.ones(4, np.float32))
    make(IDS[:3], wanted)
    make(IDS, wanted)
    monkeypatch.undo()
    scale = FeatureStore(tmp_path / "features.h5").row_format.scale
    np.testing.assert_array_equal(scale, np.linspace(0.01, 0.03, 4, dtype=np.float32))


def test_damaged_settings_are_refused_and_force_replaces_them(
    make: Callable, tmp_path: Path
) -> None:
    make(IDS, finish=False)
    settings = tmp_path / "features.parts" / "parts.json"
    for text in ("", "[]", '{"kind": 3}', "[" * 10**5):
        settings.write_text(text)
        with pytest.raises(UserError, match=r"parts.json is damaged .*--force"):
            make(IDS)
    assert make(IDS, force=True) == IDS


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with (
        only_writer(path),
        pytest.raises(UserError, match="another process is writing"),
        only_writer(path),
    ):
        pass


def test_leftovers_of_a_kill_are_deleted(make: Callable, kind: RowFormat, tmp_path: Path) -> None:
    (tmp_path / ".features.h5.123.new").write_bytes(bytes(100))
    (tmp_path / ".features.h5.new").write_bytes(bytes(100))  # of version 0.2
    (tmp_path / ".features.parts.old").mkdir()
    (tmp_path / ".features.parts.old" / "1.part").touch()
    resume(tmp_path / "features.h5", kind)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_certainly_too_small_is_refused_before_extracting(
    kind: RowFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = replace(kind, compression="none")
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    store_writing.check_disk(tmp_path / "features.h5", kind, 8)  # 56 bytes, twice
    with pytest.raises(UserError, match="fewer --views"):
        store_writing.check_disk(tmp_path / "features.h5", kind, 9)


def _kill_at(step: int) -> None:
    """Make this process kill itself before or during its `step`th change to the disk."""
    steps = iter(range(step, -1, -1))
    write, fsync = os.write, os.fsync

    def torn(file: int, data: bytes) -> int:
        if next(steps) == 0:
            write(file, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, data)

    def unsynced(file: int) -> None:
        if next(steps) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    def undone(event: str, _: object) -> None:
        changes = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
        if event in changes and next(steps) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.write, os.fsync = torn, unsynced
    sys.addaudithook(undone)


@pytest.mark.parametrize("extends", [False, True])
@pytest.mark.parametrize("force", [False, True])
def test_a_kill_at_any_step_loses_nothing_that_was_finished(
    make: Callable, kind: RowFormat, tmp_path: Path, extends: bool, force: bool
) -> None:
    path, begun = tmp_path / "features.h5", tmp_path / "begun.h5"
    make(IDS[:2])
    path.rename(begun)
    make(IDS)
    whole = path.read_bytes()
    step = 0
    killed = True
    while killed:
        path.unlink()
        if extends:
            shutil.copy(begun, path)
        for count in (1, 2, 3):  # each writes a part of its own
            make(IDS[:count], finish=False)
        child = os.fork()
        if child == 0:
            try:
                _kill_at(step)
                make(IDS, force=force)
            finally:
                os._exit(0)
        killed = os.waitpid(child, 0)[1] == signal.SIGKILL
        finished = set(scan(tmp_path / "features.parts", kind))
        if path.exists() and not force:
            finished.update(FeatureStore(path).image_ids.tolist())  # it is always complete
        assert finished.isdisjoint(make(IDS)), step
        assert path.read_bytes() == whole, step
        assert not (tmp_path / "features.parts").exists()
        step += 1
    assert step > 20
