"""Run the frozen CNN over every picture once and store what it saw."""

import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from features.backbones import load_backbone
from features.devices import choose_device
from features.errors import UserError, first_few
from features.extraction import extract, versions
from features.store import FeatureStore, as_size, open_for_writing, store_bytes
from pipeline import captions
from pipeline.command import run, write_json
from pipeline.options import ExtractOptions
from pipeline.stamps import Stamp


def extract_features(options: ExtractOptions) -> None:
    """Store the features of every picture of a work directory in WORK/features.h5.

    A run that was stopped continues where it was. Pictures that failed are tried again when
    anything has changed, their files included.
    """
    table_path = options.work / "captions.json"
    store_path = options.work / "features.h5"
    report_path = options.work / "extract.json"
    table = captions.load(table_path)
    paths = {image.id: table.path(image) for image in table.images}
    if not paths:
        raise UserError(f"{table_path} has no images")

    def stamp(failures: Iterable[int]) -> Stamp:
        failed = [paths[image_id] for image_id in failures if image_id in paths]
        return Stamp(options.work, "extract", options, [table_path, *failed])

    if store_path.exists() and not options.force:
        failures = FeatureStore(store_path).failures()
        if stamp(failures).holds():
            print(f"extract: unchanged, skipped{_failed(failures, paths)}")
            return

    backbone = load_backbone(options.backbone, options.grid, choose_device(options.device))
    size = store_bytes(len(paths), backbone.description)
    free = shutil.disk_usage(options.work).free
    print(
        f"extract: {len(paths):,} pictures with {options.backbone}; {store_path} takes "
        f"{as_size(size)}, {as_size(free)} are free"
    )
    with open_for_writing(
        store_path, backbone.description, list(paths), versions(), options.force
    ) as writer:
        start = time.perf_counter()
        tried = extract(backbone, list(paths.values()), writer, options.batch_size, options.workers)
        seconds = time.perf_counter() - start

    failures = FeatureStore(store_path).failures()
    stored = len(paths) - len(failures)
    if tried or not report_path.exists():
        report = {
            "images": stored,
            "failed": len(failures),
            "tried_in_this_run": tried,
            "seconds": round(seconds, 3),
            "images_per_second": round(tried / seconds, 2),
            "bytes": store_path.stat().st_size,
            "bytes_per_image": round(store_path.stat().st_size / len(paths)),
            "backbone": options.backbone,
            "backend": "eager",
        }
        write_json(report_path, report)
    if not stored:
        raise UserError(
            f"none of the {len(paths)} pictures could be read{_failed(failures, paths)}"
        )
    print(f"extract: {stored:,} pictures stored{_failed(failures, paths)}")
    stamp(failures).write([store_path, report_path])


def _failed(failures: Mapping[int, str], paths: Mapping[int, Path]) -> str:
    if not failures:
        return ""
    listed = first_few((f"{paths[i]} ({why})" for i, why in failures.items() if i in paths), most=3)
    return f"; {len(failures):,} failed and are left out: {listed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; see `--help`."""
    return run(extract_features, ExtractOptions, "pipeline.extract", argv)


if __name__ == "__main__":
    sys.exit(main())
