"""`decoder.caption --shards`: the captions of a large collection, a file for each shard.

OUT/SHARD.jsonl   a line for each picture, in the shard's order: {"id", "key", "file_name"}, as
                  pipeline.extract --shards names it, and then the keys of `decoder.caption --json`
OUT/SHARD.json    the record; see `features.shard_outputs`
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from decoder.captioning.captioner import Runs
from decoder.captioning.options import PICTURES, CaptionOptions
from decoder.captioning.writer import CaptionWriter
from decoder.generation.options import GenerateOptions
from features.content import EmptyPicture
from features.devices import choose_device
from features.distributed import own_device
from features.errors import counted
from features.images import PictureError
from features.shard_lists import parse_columns
from features.shard_outputs import Outputs, make_shards
from features.shard_report import report_shards
from features.shard_samples import Sample, read_sample, samples_of
from features.shards import Shard, ShardError, find_shards
from pipeline.work import RunFolder


def caption_shards(options: CaptionOptions, runs: Runs) -> int:
    """Caption the pictures of shards that are not done yet.

    Args:
        options: the options of the command.
        runs: the runs and their weights. On a Ray cluster all nodes must have them at these paths.

    Returns:
        The exit status: 1 if a shard is broken, else 0.

    Raises:
        UserError: the options are wrong, a run is broken, or the outputs cannot be written.
    """
    assert options.out is not None
    shards = find_shards(options.shards)
    load = partial(
        _load,
        tuple((run.path, weights) for run, weights in runs),
        options.generate,
        options.unsure,
        options.neutral_words,
        options.batch_size or PICTURES,
        options.seed,
        options.device,
    )
    samples = partial(
        samples_of,
        columns=parse_columns(options.columns) if options.columns else None,
        prefix=options.prefix_keys,
    )
    kind = {
        "captioner": load().identity(),
        **asdict(options.generate),
        "unsure": options.unsure,
        "neutral": options.neutral_words,
        "columns": options.columns,
        "prefix_keys": options.prefix_keys,
    }
    outputs = Outputs(options.out, "decoder.caption", kind, (".jsonl",), retry=options.retry)
    done = outputs.all_done(shards, options.force)
    todo = [shard for shard in shards if shard.name not in done]
    print(f"caption: {counted(len(shards), 'shard')}, {len(done):,} done, {len(todo):,} to do")
    make = partial(caption_shard, samples=samples, load=load)
    if not todo:
        return 0
    if options.engine == "ray":
        from features.ray_engine import make_shards_on_ray

        gpus = options.gpus or 0
        made = make_shards_on_ray(todo, outputs, make, "caption", options.force, gpus=gpus)
        return report_shards("caption", made)
    load().load()  # a broken run is reported before a shard is downloaded
    return report_shards("caption", make_shards(todo, outputs, make, "caption", options.force))


def caption_shard(
    shard: Shard,
    folder: Path,
    *,
    samples: Callable[..., list[Sample]],
    load: Callable[[], CaptionWriter],
) -> dict[str, Any]:
    """Write the captions of a shard to SHARD.jsonl in a folder, and return figures of them.

    Args:
        shard: the shard.
        folder: where to write.
        samples: `features.shard_samples.samples_of`, with its options.
        load: returns the writer of captions.

    Raises:
        ShardError: the shard is broken, or none of its pictures can be read.
        UserError: a run is broken.
    """
    passed_over: Counter[str] = Counter()
    pictures = samples(shard, folder, passed_over=passed_over)
    writer = load()
    failed, passing, first = 0, 0, ""
    with (folder / f"{shard.name}.jsonl").open("w", encoding="utf-8") as lines:
        for sample, result in writer.captioned(pictures, read_sample):
            if isinstance(result, PictureError) and not isinstance(result, EmptyPicture):
                failed += 1
                passing += result.passing
                first = first or f"{sample}: {result}"
            line = {"id": sample.id, "key": sample.key, "file_name": sample.file_name}
            lines.write(json.dumps(line | writer.as_json(result), ensure_ascii=False) + "\n")
    if failed == len(pictures):
        raise ShardError(f"none of its {failed:,} pictures can be read: {first}")
    return {
        "pictures": len(pictures),
        "failed": failed,
        "passing": passing,
        "passed_over": dict(passed_over),
    }


@lru_cache(maxsize=1)  # once in a process, whatever the number of its shards
def _load(
    runs: tuple[tuple[Path, Path], ...],
    generate: GenerateOptions,
    unsure: float,
    neutral: bool,
    batch_size: int,
    seed: int,
    device: str,
) -> CaptionWriter:
    return CaptionWriter(
        [(RunFolder(path), weights) for path, weights in runs],
        generate,
        threshold=unsure,
        neutral=neutral,
        batch_size=batch_size,
        seed=seed,
        device=own_device(choose_device(device)),
    )
