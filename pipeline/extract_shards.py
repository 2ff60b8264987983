"""`pipeline.extract --shards`: each shard of a large collection becomes a store of its own.

OUT/SHARD.jsonl   a line for each picture: {"id", "key", "file_name", "captions"}, and "error"
                  if it could not be read
OUT/SHARD.h5      the features, in the same order; see `features.store`
OUT/SHARD.json    the record; see `features.shard_outputs`
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from features.backbones import Backbone, load_backbone, load_network
from features.devices import choose_device
from features.distributed import own_device
from features.errors import UserError, counted, first_few
from features.estimate import estimate
from features.extraction import calibrate, extract, pictures_at_once, versions
from features.files import read_json, write_json
from features.images import PictureError
from features.locks import locked
from features.parts import PartWriter
from features.row_format import RowFormat
from features.scratch import ADVICE, scratch_folder
from features.shard_lists import parse_columns
from features.shard_outputs import Outcome, Outputs, make_shards
from features.shard_report import report_shards
from features.shard_samples import Sample, read_sample, samples_of
from features.shards import Shard, ShardError, find_shards
from features.store import FeatureStore, differences, fingerprint
from features.store_writing import begin, merge
from features.views import VIEWS
from pipeline.options import ExtractOptions

_SUFFIXES = (".jsonl", ".h5")


def extract_shards(options: ExtractOptions) -> int:
    """Store the features of every picture of shards, a store for each shard.

    Returns:
        The exit status: 1 if a shard is broken, else 0.

    Raises:
        UserError: the options are wrong, or the outputs cannot be written.
    """
    assert options.out is not None
    shards = find_shards(options.shards)
    cpu = torch.device("cpu")
    _, description = load_network(options.backbone, options.grid, cpu, options.weights)
    described = {**description, "dtype": options.dtype}
    row_format = RowFormat(described, VIEWS[: options.views], options.compression)
    load = partial(
        _load,
        options.backbone,
        options.grid,
        options.device,
        options.backend,
        options.views * pictures_at_once(options.batch_size, options.views),
        options.weights,
    )
    samples = partial(
        samples_of,
        columns=parse_columns(options.columns) if options.columns else None,
        prefix=options.prefix_keys,
    )
    if options.scale is not None and (options.scale.exists() or not options.dry_run):
        first = partial(_calibrate, shards, samples, load, options.workers)
        row_format = replace(row_format, scale=_scale(options.scale, row_format, first))
    kind = _kind(row_format, options.columns, options.prefix_keys)
    outputs = Outputs(options.out, "pipeline.extract", kind, _SUFFIXES, retry=options.retry)
    if options.verify:
        return _verify(shards, outputs)
    done = outputs.all_done(shards, options.force)
    todo = [shard for shard in shards if shard.name not in done]
    print(f"extract: {counted(len(shards), 'shard')}, {len(done):,} done, {len(todo):,} to do")
    if options.dry_run:
        return _dry_run(options, todo, samples, load, row_format)
    make = partial(
        extract_shard,
        row_format=row_format,
        samples=samples,
        load=load,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    start = time.perf_counter()
    if not todo:
        outcomes: list[Outcome] = []
    elif options.engine == "ray":
        from features.ray_engine import make_shards_on_ray

        cpus, gpus = options.workers or 1, options.gpus or 0
        outcomes = make_shards_on_ray(todo, outputs, make, "extract", options.force, cpus, gpus)
    else:
        outcomes = make_shards(todo, outputs, make, "extract", options.force)
    return _report(outcomes, len(done), time.perf_counter() - start)


def extract_shard(
    shard: Shard,
    folder: Path,
    *,
    row_format: RowFormat,
    samples: Callable,
    load: Callable[[], Backbone],
    batch_size: int,
    workers: int | None,
) -> dict[str, Any]:
    """Write the store and the captions of a shard to a folder, and return figures of them.

    Args:
        shard: the shard.
        folder: where SHARD.h5 and SHARD.jsonl are written.
        row_format: the format of the rows.
        samples: `features.shard_samples.samples_of`, with its options.
        load: returns the backbone.
        batch_size: as in `features.extraction.extract`.
        workers: as there.

    Raises:
        ShardError: the shard is broken, or none of its pictures can be read.
        UserError: the backbone computes other features here, or the disk is full.
    """
    passed_over: Counter[str] = Counter()
    pictures = samples(shard, folder, passed_over=passed_over)
    passing: set[int] = set()

    def read(sample: Sample) -> Image.Image:
        try:
            return read_sample(sample)
        except PictureError as error:
            if error.passing:
                passing.add(sample.id)
            raise

    backbone = load()
    own = {**backbone.description, "dtype": row_format.description["dtype"]}
    if differing := differences(row_format.description, own):
        raise UserError(
            f"this process would write other features than the one that started it: {differing}; "
            "install the same versions on all machines"
        )
    store_path = folder / f"{shard.name}.h5"
    parts = begin(store_path, row_format, None)
    with closing(PartWriter(parts, row_format, advice=ADVICE)) as writer:
        by_id = [(sample.id, sample) for sample in pictures]
        views = row_format.views
        extract(backbone, by_id, writer, views, batch_size, workers, read, hidden=True)
    ids, keys = [sample.id for sample in pictures], [sample.key for sample in pictures]
    merge(store_path, row_format, None, ids, versions(), keys=keys, advice=ADVICE)
    failures = FeatureStore(store_path).failures()
    if len(failures) == len(pictures):
        raise ShardError(
            f"none of its {len(pictures):,} pictures can be read: "
            f"{pictures[0]}: {failures[pictures[0].id]}"
        )
    with (folder / f"{shard.name}.jsonl").open("w", encoding="utf-8") as lines:
        for sample in pictures:
            line: dict[str, Any] = {"id": sample.id, "key": sample.key}
            line |= {"file_name": sample.file_name, "captions": sample.captions}
            if sample.id in failures:
                line["error"] = failures[sample.id]
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {
        "pictures": len(pictures),
        "failed": len(failures),
        "passing": len(passing & failures.keys()),
        "captions": sum(len(sample.captions) for sample in pictures),
        "passed_over": dict(passed_over),
        "backend": backbone.backend,
    }


@lru_cache(maxsize=1)  # once in a process, whatever the number of its shards
def _load(
    backbone: str, grid: int, device: str, backend: str, batch_size: int, weights: tuple[Path, ...]
) -> Backbone:
    chosen = own_device(choose_device(device))
    return load_backbone(backbone, grid, chosen, backend, batch_size, weights)


def _kind(row_format: RowFormat, columns: str | None, prefix_keys: bool) -> dict[str, Any]:
    """Return all that the outputs depend on beside the shards; defaults of options are left out."""
    kind = {**row_format.described(), "fingerprint": fingerprint(row_format.description)}
    if columns is not None:
        kind["columns"] = columns
    if prefix_keys:
        kind["prefix_keys"] = True
    if row_format.scale is not None:
        kind["scale"] = fingerprint({"scale": row_format.scale.tolist()})
    return kind


def _scale(file: Path, row_format: RowFormat, measure: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the int8 scale in a file, float32 [channels]; measure and write it if it is missing.

    Raises:
        UserError: the file is damaged, or is the scale of other features.
    """
    wanted = fingerprint(row_format.description)
    if not file.exists():  # it may lie where nothing can be written, not even a lock
        try:
            with locked(file.with_name(f".{file.name}.lock"), f"waiting for {file}", wait=True):
                if not file.exists():
                    write_json(file, {"fingerprint": wanted, "scale": measure().tolist()})
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}") from error
    content = read_json(file, "pipeline.extract --scale")
    try:
        scale = np.array(content["scale"], "<f4")
        found = content["fingerprint"]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not a file of scales ({error!r}); delete it") from error
    right = scale.shape == (row_format.channels,) and np.isfinite(scale).all() and (scale > 0).all()
    if found != wanted or not right:
        raise UserError(
            f"--scale {file}: expected the scale of features with the fingerprint {wanted[:12]}, "
            f"found that of {str(found)[:12]}; give another file, which is made if it is missing"
        )
    return scale


def _calibrate(
    shards: Sequence[Shard],
    samples: Callable,
    load: Callable[[], Backbone],
    workers: int | None,
) -> np.ndarray:
    """Return the int8 scale of the first shard that can be read."""
    broken = []
    for shard in shards:
        with scratch_folder() as folder:
            try:
                pictures = samples(shard, folder)
            except ShardError as error:
                broken.append(f"{shard}: {error}")
                continue
            return calibrate(load(), pictures, workers, read_sample)
    raise UserError(f"--scale: no shard can be read to measure it: {first_few(broken, 3)}")


def _dry_run(
    options: ExtractOptions,
    todo: Sequence[Shard],
    samples: Callable,
    load: Callable[[], Backbone],
    row_format: RowFormat,
) -> int:
    """Print the time and the size of the first shard that can be read.

    Returns:
        The exit status: 1 if there are shards to do, but none can be read.
    """
    for shard in todo:
        with scratch_folder() as folder:
            try:
                pictures = samples(shard, folder)
            except ShardError as error:
                print(f"extract --dry-run: {shard} is broken: {error}")
                continue
            batch_size, workers = options.batch_size, options.workers
            figures = estimate(
                load(), pictures, row_format, folder, batch_size, workers, read_sample
            )
            print(f"extract --dry-run: the shard {shard}, the first of {len(todo):,} to do:")
            print(figures)
            return 0
    if todo:
        print("extract --dry-run: no shard to do can be read")
        return 1
    print("extract --dry-run: all shards are done; --force measures the first one anyway")
    return 0


def _verify(shards: Sequence[Shard], outputs: Outputs) -> int:
    """Compare all outputs with their recorded hashes; return 1 if one is wrong."""
    wrong = {shard.name: why for shard in shards if (why := outputs.wrong(shard))}
    for name, why in wrong.items():
        print(f"verify: {name}: {why}")
    print(f"verify: {len(shards):,} shards read, {len(wrong):,} wrong")
    return 1 if wrong else 0


def _report(outcomes: Sequence[Outcome], done_before: int, seconds: float) -> int:
    """Print what became of the shards, with figures in JSON; return the exit status."""
    status = report_shards("extract", outcomes)
    counts = Counter(outcome.state for outcome in outcomes)
    made = [outcome.facts for outcome in outcomes if outcome.state == "made"]
    pictures = sum(facts["pictures"] for facts in made)
    report = {
        "shards": len(outcomes) + done_before,
        "made": counts["made"],
        "done_before": counts["done"] + done_before,
        "broken": counts["broken"],
        "pictures": pictures,
        "failed": sum(facts["failed"] for facts in made),
        "passing": sum(facts["passing"] for facts in made),
        "captions": sum(facts["captions"] for facts in made),
        "bytes": sum(facts["bytes"] for facts in made),
        "seconds": round(seconds, 3),
        "images_per_second": round(pictures / seconds, 2),
    }
    if made and not report["captions"]:
        print("extract: no picture has a caption, so these shards cannot be trained on")
    print(json.dumps(report))
    return status
