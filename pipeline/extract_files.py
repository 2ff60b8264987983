"""`pipeline.extract --from`: features of another program become a work directory's store."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from features.devices import cores
from features.distributed import barrier, broadcast, process_group, rank, world_size
from features.errors import UserError, first_few
from features.extraction import versions
from features.files import write_json
from features.others_features import Found, digest, find
from features.parts import PartWriter, scan
from features.row_format import RowFormat, scale_for, to_float16
from features.sampling import evenly_spaced
from features.store import STORED, FeatureStore
from features.store_writing import (
    begin,
    check_disk,
    discard,
    merge,
    only_writer,
    parts_folder,
    pending,
    resume,
)
from features.verification import SAMPLE, damaged
from pipeline import pictures
from pipeline.extraction_report import summary
from pipeline.options import ExtractOptions
from pipeline.up_to_date import Stamp
from pipeline.work import WorkFolder

_BATCH = 32  # number of images that are written together
_CALIBRATION_IMAGES = 256


def store_files(options: ExtractOptions, names: Mapping[int, str]) -> None:
    """Store the features in the files `options.from_` in WORK/features.h5.

    A stopped run continues when it is started again, and files that have changed are read again.

    Args:
        options: of `pipeline.extract`, with `from_`.
        names: the file name of each image, by image id, in the order of the store.
    """
    assert options.from_ is not None
    assert options.work is not None
    work = WorkFolder(options.work)
    store_path = work.features
    if options.verify or options.dry_run:
        found, row_format = _find(options, names)
        if options.verify:
            _verify(FeatureStore(store_path), found)
        else:
            print(f"extract --dry-run: {_described(found, row_format)}; nothing was written")
        return
    first = rank() == 0
    with process_group(), only_writer(store_path) if first else nullcontext():
        stamp = Stamp(work.path, "extract", options, [work.captions], digest=digest(options.from_))
        done = store_path.exists() and not parts_folder(store_path).exists()
        if broadcast(first and done and not options.force and stamp.holds()):
            _print_once("extract: unchanged, skipped")
            return
        found, row_format = _find(options, names)
        old, todo = None, list(names)
        start = time.perf_counter()
        if first:
            print(f"extract: {_described(found, row_format)}")
            old, row_format, todo = _plan(options, store_path, row_format, found)
            known = pictures.load(work)
            now: pictures.Pictures = {i: {"file_name": name} for i, name in names.items()}
            pictures.save(work, {**now, **known})
        row_format, todo = broadcast((row_format, todo))
        share = todo[rank() :: world_size()]
        if share:
            with closing(PartWriter(parts_folder(store_path), row_format)) as writer:
                _write(found, share, writer, options.workers or cores())
        barrier()
        if not first:
            return
        merge(store_path, row_format, old, list(names), versions(), options.prune)
        pictures.save(work, now if options.prune else {**known, **now})
    store = FeatureStore(store_path)
    seconds = time.perf_counter() - start
    report = {**summary(store), "read": len(todo), "seconds": round(seconds, 3), "unreadable": {}}
    write_json(work.extraction, report)
    print(f"extract: features of {int((store.status == STORED).sum()):,} images stored")
    print(json.dumps(report))
    stamp.write([store_path, work.extraction])


def _find(options: ExtractOptions, names: Mapping[int, str]) -> tuple[Found, RowFormat]:
    assert options.from_ is not None
    found = find(options.from_, names, options.keys, options.layout, options.skip_extra)
    description = {**found.description, "dtype": options.dtype}
    try:
        return found, RowFormat(description, compression=options.compression)
    except ValueError as error:
        raise UserError(
            f"--from {options.from_}: these features cannot be stored ({error})"
        ) from error


def _described(found: Found, row_format: RowFormat) -> str:
    height, width = row_format.description["grid"]
    regions = {
        "grid": f"grids of {height} x {width}",
        "boxes": f"{width} boxes",
        "varying boxes": f"up to {width} boxes",
    }[row_format.description["regions"]]
    pooled = "read beside them" if found.pooled else "the mean of an image's regions"
    left_out = f"; {found.left_out} arrays of other images are left out" if found.left_out else ""
    return (
        f"{len(found.grids):,} images with {regions} of {row_format.channels} channels in "
        f"{found.path}, pooled features {pooled}{left_out}"
    )


def _plan(
    options: ExtractOptions, store_path: Path, wanted: RowFormat, found: Found
) -> tuple[FeatureStore | None, RowFormat, list[int]]:
    """Return the store to extend, the format of its rows, and the ids of the images to read."""
    image_ids = list(found.grids)
    parts = scan(parts_folder(store_path), wanted)
    if any(i in parts and found.modified(i) > _modified(parts[i].path) for i in image_ids):
        discard(parts_folder(store_path))  # a file has changed since it was read
    old, row_format = resume(store_path, wanted, options.force)
    if options.dtype == "int8" and row_format.scale is None:
        row_format = replace(row_format, scale=_calibrate(found, row_format.channels))
    todo = set(pending(store_path, row_format, old, image_ids))
    if old is not None:
        written = _modified(store_path)
        todo.update(image_id for image_id in image_ids if found.modified(image_id) > written)
        kept = [image_id for image_id in image_ids if image_id not in todo]
        _expect_same(old, found, evenly_spaced(kept, SAMPLE), "--force stores all features again")
    check_disk(store_path, row_format, len(todo))
    if todo:
        begin(store_path, row_format, old)
    return old, row_format, [image_id for image_id in image_ids if image_id in todo]


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


def _calibrate(found: Found, channels: int) -> np.ndarray:
    """Return the scale of int8 features from some images, float32 [channels]."""
    largest = np.zeros(channels, np.float32)
    for image_id in evenly_spaced(list(found.grids), _CALIBRATION_IMAGES):
        np.maximum(largest, np.abs(found.read(image_id)[0]).max(0), out=largest)
    return scale_for(largest)


def _write(found: Found, image_ids: Sequence[int], writer: PartWriter, workers: int) -> None:
    """Read the features of images and write them, a few at a time."""
    row_format = writer.row_format
    batch: list[tuple[int, np.ndarray, np.ndarray]] = []

    def flush() -> None:
        if not batch:
            return
        ids, grids, means = zip(*batch, strict=True)
        shape = (len(ids), 1, row_format.regions, row_format.channels)
        padded = np.zeros(shape, np.float32)
        for into, grid in zip(padded, grids, strict=True):
            into[0, : len(grid)] = grid
        counts = [len(grid) for grid in grids] if row_format.varies else None
        writer.put(ids, padded, np.stack(means)[:, None], counts)
        batch.clear()

    with tqdm(total=len(image_ids), unit="image", disable=None) as progress:
        try:
            for features in found.read_all(image_ids, workers):
                batch.append(features)
                if len(batch) == _BATCH:
                    flush()
                progress.update()
        finally:  # whatever stops it, what was read is kept
            flush()


def _verify(store: FeatureStore, found: Found) -> None:
    """Check every row, and compare some with the files; UserError if any is wrong."""
    wrong = damaged(store)
    for image_id, why in sorted(wrong.items()):
        print(f"verify: image {image_id}: {why}")
    if wrong:
        raise UserError(
            f"{store.path}: {len(wrong)} images are wrong: {first_few(sorted(wrong))}; --force "
            "stores all features again"
        )
    sample = evenly_spaced(list(found.grids), SAMPLE)
    _expect_same(store, found, sample, "--force stores all features again")
    print(f"verify: {len(store):,} rows read, {len(sample)} compared with {found.path}, 0 wrong")


def _expect_same(store: FeatureStore, found: Found, image_ids: Sequence[int], advice: str) -> None:
    """Raise UserError unless the store holds the features of the files for some images."""
    row_format = store.row_format
    different = []
    for image_id, row in zip(image_ids, store.rows(image_ids), strict=True):
        grid, pooled = found.read(image_id)
        regions = len(grid) if row_format.varies else None
        expected = np.empty_like(grid)
        row_format.dequantise(row_format.quantise(grid), expected)
        same = (
            (store.regions is None or store.regions[row] == len(grid))
            and np.array_equal(store.grid([row], regions=regions)[0], expected)
            and np.array_equal(store.pooled([row])[0], to_float16(pooled).astype(np.float32))
        )
        if not same:
            different.append(image_id)
    if different:
        raise UserError(
            f"{store.path} holds other features of {len(different)} images than {found.path}: "
            f"{first_few(different)}; {advice}"
        )


def _print_once(text: str) -> None:
    if rank() == 0:
        print(text)
