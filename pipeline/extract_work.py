"""The command pipeline.extract for the pictures of a work directory."""

import json
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from features.backbones import Backbone, load_backbone, load_described
from features.commands import PREPARE, SEARCH
from features.devices import choose_device, cores
from features.distributed import barrier, broadcast, own_device, process_group, rank, world_size
from features.errors import UserError, first_few, is_about_access
from features.estimate import estimate
from features.extraction import calibrate, extract, pictures_at_once, versions
from features.files import write_json
from features.parts import PartWriter
from features.row_format import RowFormat
from features.sampling import evenly_spaced
from features.store import STORED, FeatureStore, as_size, differences
from features.store_writing import (
    begin,
    check_disk,
    merge,
    only_writer,
    parts_folder,
    pending,
    resume,
)
from features.verification import SAMPLE, damaged, recompute
from features.views import VIEWS
from pipeline import captions, pictures
from pipeline.extract_files import store_files
from pipeline.extraction_report import previous, summary
from pipeline.options import ExtractOptions
from pipeline.up_to_date import Stamp
from pipeline.work import WorkFolder


def extract_work(options: ExtractOptions) -> None:
    """Store the features of every picture of a work directory in WORK/features.h5."""
    assert options.work is not None
    work = WorkFolder(options.work)
    table_path, store_path, report_path = work.captions, work.features, work.extraction
    if not table_path.exists():
        raise UserError(
            f"{table_path} is not there; create it with {PREPARE}; to find pictures in a folder by "
            f"words, which needs no captions: {SEARCH} --folder {work.path}"
        )
    table = captions.load(table_path)
    paths = {image.id: table.path(image) for image in table.images}
    if not paths:
        raise UserError(f"{table_path} has no images")
    if options.from_ is not None:
        store_files(options, {image.id: image.file_name for image in table.images})
        return
    if options.verify:
        _verify(options, store_path, paths)
        return

    if options.dry_run:
        _dry_run(options, store_path, paths)
        return

    known = pictures.load(work)
    now, changed = pictures.look(table, known)

    def stamp(failures: Iterable[int]) -> Stamp:
        failed = [paths[image_id] for image_id in failures if image_id in paths]
        inputs = [table_path, *failed, *options.weights]
        return Stamp(work.path, "extract", options, inputs)

    def unchanged() -> bool:
        if not store_path.exists() or parts_folder(store_path).exists() or options.force or changed:
            return False
        failures = FeatureStore(store_path).failures()
        if any(map(is_about_access, failures.values())) or not stamp(failures).holds():
            return False
        print(f"extract: unchanged, skipped{_failure_note(failures, paths)}")
        return True

    first = rank() == 0
    with process_group(), only_writer(store_path) if first else nullcontext():
        if broadcast(first and unchanged()):
            return
        device = own_device(choose_device(options.device))
        backbone = _backbone(options, device)
        old, row_format = None, _row_format(options, backbone)
        todo: list[int] = []
        if first:
            old, row_format, todo = _plan(options, store_path, row_format, backbone, paths, changed)
            # Until their features are there, changed pictures stay recorded as they were.
            pictures.save(work, {**now, **known})
        start = time.perf_counter()
        _extract_share(options, store_path, *broadcast((row_format, todo)), backbone, paths)
        barrier()
        if not first:
            return
        merge(store_path, row_format, old, list(paths), versions(), options.prune)
        seconds = time.perf_counter() - start
        kept = {**known, **now}
        pictures.save(work, {i: e for i, e in kept.items() if not options.prune or i in paths})

    store = FeatureStore(store_path)
    failures = store.failures()
    stored = int((store.status == STORED).sum())
    report = summary(store)
    if todo:
        report |= {
            "tried_in_this_run": len(todo),
            "seconds": round(seconds, 3),
            "images_per_second": round(len(todo) / seconds, 2),
            "backend": backbone.backend,
            "processes": world_size(),
        }
    else:  # nothing was extracted: keep the figures of the last extraction
        report = {**previous(report_path), **report}
        report.pop("unreadable", None)
    unreadable = {str(paths[i]): why for i, why in failures.items() if i in paths}
    write_json(report_path, {**report, "unreadable": unreadable})
    if not stored:
        raise UserError(
            f"none of the {len(paths)} pictures could be read{_failure_note(failures, paths)}"
        )
    print(f"extract: {stored:,} pictures stored{_failure_note(failures, paths)}")
    if failures:
        print(f"extract: {report_path} names all pictures that could not be read")
    print(json.dumps(report))
    stamp(failures).write([store_path, report_path])


def _backbone(options: ExtractOptions, device: torch.device) -> Backbone:
    at_once = options.views * pictures_at_once(options.batch_size, options.views)
    return load_backbone(
        options.backbone, options.grid, device, options.backend, at_once, options.weights
    )


def _row_format(options: ExtractOptions, backbone: Backbone) -> RowFormat:
    description = {**backbone.description, "dtype": options.dtype}
    return RowFormat(description, VIEWS[: options.views], options.compression)


def _plan(
    options: ExtractOptions,
    store_path: Path,
    wanted: RowFormat,
    backbone: Backbone,
    paths: Mapping[int, Path],
    changed: Collection[int],
) -> tuple[FeatureStore | None, RowFormat, list[int]]:
    """Return the store to extend, the format of its rows, and the ids of the images to extract.

    These are the images without features, and those whose pictures have `changed` since.
    """
    old, row_format = resume(store_path, wanted, options.force)
    if options.dtype == "int8" and row_format.scale is None:
        row_format = replace(row_format, scale=calibrate(backbone, list(paths.values())))
    without = set(pending(store_path, row_format, old, list(paths)))
    todo = [image_id for image_id in paths if image_id in without or image_id in changed]
    if again := [str(paths[image_id]) for image_id in todo if image_id not in without]:
        print(f"extract: {len(again):,} pictures have changed since: {first_few(again)}")
    free = shutil.disk_usage(store_path.parent).free
    size = len(todo) * row_format.image_bytes
    print(
        f"extract: {len(paths):,} pictures with {options.backbone}, {len(todo):,} to do; they need "
        f"at most {as_size(size)}, and {as_size(free)} are free"
    )
    check_disk(store_path, row_format, len(todo))
    if todo:
        begin(store_path, row_format, old)
    return old, row_format, todo


def _extract_share(
    options: ExtractOptions,
    store_path: Path,
    row_format: RowFormat,
    todo: Sequence[int],
    backbone: Backbone,
    paths: Mapping[int, Path],
) -> None:
    """Extract the share of the images `todo` that falls to this process."""
    own = _row_format(options, backbone).described()
    if own != row_format.described():
        raise UserError(
            f"process {rank()} would write other features than process 0: "
            f"{differences(row_format.described(), own)}; start all processes with the same "
            "options and library versions"
        )
    share = [(image_id, paths[image_id]) for image_id in todo[rank() :: world_size()]]
    if share:
        # A GPU computes faster than one thread encodes; runtimes of the CPU have all cores.
        encoding = cores() if backbone.device.type == "cuda" else 1
        with closing(PartWriter(parts_folder(store_path), row_format, encoding)) as writer:
            extract(backbone, share, writer, row_format.views, options.batch_size, options.workers)


def _dry_run(options: ExtractOptions, store_path: Path, paths: Mapping[int, Path]) -> None:
    """Print the time and the disk space that the rest of the extraction will take."""
    backbone = _backbone(options, choose_device(options.device))
    row_format = _row_format(options, backbone)
    todo = list(paths)
    if not options.force:
        old = FeatureStore(store_path) if store_path.exists() else None
        if old is None or old.row_format.described() == row_format.described():
            todo = pending(store_path, row_format, old, todo)
    if not todo:
        print("extract --dry-run: nothing is left to extract; --force measures all pictures")
        return
    pictures = [paths[image_id] for image_id in todo]
    batch_size, workers = options.batch_size, options.workers
    print(estimate(backbone, pictures, row_format, store_path.parent, batch_size, workers))


def _verify(options: ExtractOptions, store_path: Path, paths: Mapping[int, Path]) -> None:
    """Check every row and recompute some from the pictures; UserError if any is wrong."""
    store = FeatureStore(store_path)
    wrong = damaged(store)
    stored = store.image_ids[store.status == STORED].tolist()
    intact = [image_id for image_id in stored if image_id in paths and image_id not in wrong]
    backbone = load_described(store.description, choose_device(options.device), options.backend)
    sample = {image_id: paths[image_id] for image_id in evenly_spaced(intact, SAMPLE)}
    different, compared = recompute(store, backbone, sample, options.batch_size, options.workers)
    wrong |= different
    for image_id, why in sorted(wrong.items()):
        print(f"verify: image {image_id} ({paths.get(image_id, 'not in captions.json')}): {why}")
    print(
        f"verify: {len(stored):,} rows read, {compared} of {len(sample)} recomputed, "
        f"{len(wrong)} wrong{_failure_note(store.failures(), paths)}"
    )
    if wrong:
        raise UserError(
            f"{store_path}: {len(wrong)} images are wrong: {first_few(sorted(wrong))}; --force "
            "with the options of the first extraction extracts all pictures again"
        )


def _failure_note(failures: Mapping[int, str], paths: Mapping[int, Path]) -> str:
    if not failures:
        return ""
    listed = first_few((f"{paths[i]} ({why})" for i, why in failures.items() if i in paths), most=3)
    return f"; {len(failures):,} failed and are left out: {listed}"
