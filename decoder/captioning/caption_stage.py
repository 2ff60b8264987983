"""The command decoder.caption: caption pictures, web pages, a split or shards."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from decoder.captioning.captioner import Captioner, Runs, default_generation, input_files
from decoder.captioning.files import find_pictures, print_captions
from decoder.captioning.listing import write_listing
from decoder.captioning.options import PICTURES, CaptionOptions
from decoder.captioning.pages import write_pages
from decoder.captioning.remote import Fetched, fetch, is_remote
from decoder.captioning.shards import caption_shards
from decoder.captioning.sidecars import write_sidecars
from decoder.captioning.split import caption_split
from decoder.captioning.writer import CaptionWriter
from decoder.data.layout import images_at_once
from decoder.runs.packaged import captioner_folder
from evaluation.outputs import variant
from features.devices import choose_device
from features.errors import UserError
from features.folders import passed_over_note
from features.images import PictureError
from pipeline.up_to_date import Stamp, recorded_options
from pipeline.work import RunFolder, WorkFolder


def caption(options: CaptionOptions) -> int:
    """Write captions for pictures, a web page, a split of a data set, or shards.

    Returns:
        The exit status: 0, or 1 if some pictures, or shards, could not be read.
    """
    folders = [captioner_folder(path) for path in options.run or (None,)]
    weights = ("best", "best_xe") if options.weights == "both" else (options.weights,)
    for run in folders:
        if "best_xe" in weights and run.best.exists() and not run.best_xe.exists():
            raise UserError(
                f"{run.path} holds no weights from before REINFORCE, and a captioner exported by "
                "decoder.export never does; leave out --weights"
            )
    runs = [(run, getattr(run, name)) for run in folders for name in weights]
    if len(folders) == 1:
        options = replace(options, generate=default_generation(folders[0], options.generate))
    device = choose_device(options.device)
    if (split := options.split) is not None:
        if options.batch_size is None:  # the captions of all views are searched together
            beams = options.generate.width * options.generate.views
            options = replace(options, batch_size=images_at_once(device, beams))
        _caption_split(options, runs, split, device)
        return 0
    if options.shards:
        return caption_shards(options, runs)

    writer = CaptionWriter(
        runs,
        options.generate,
        threshold=options.unsure,
        neutral=options.neutral_words,
        batch_size=options.batch_size or PICTURES,
        seed=options.seed,
        device=device,
    )
    out = None if options.out is None else Path(options.out)
    if options.alt:
        return write_pages(writer, options.alt, out, options.site, options.review, options.force)
    if not any(map(is_remote, options.pictures)):
        return _caption_pictures(writer, options, fetch(options.pictures, Path()))
    with tempfile.TemporaryDirectory(prefix="captions-") as folder:
        return _caption_pictures(writer, options, fetch(options.pictures, Path(folder)))


def _caption_pictures(writer: CaptionWriter, options: CaptionOptions, given: Fetched) -> int:
    """Print or write the captions of pictures, and return the exit status."""
    writer.names |= given.names
    writer.unreadable += given.failed
    found = find_pictures(given.paths, bool(given.failed))
    writer.unreadable += [(p, PictureError(e.strerror or str(e))) for p, e in found.closed]
    status = 0
    if options.out is not None:
        write_listing(writer, found.pictures, Path(options.out), options.force)
    elif options.sidecar is not None:
        status = write_sidecars(writer, found.pictures, options.sidecar, options.force)
    else:
        print_captions(writer, found.pictures, options.json, given.failed)
    if note := passed_over_note(found.passed_over):
        print(f"caption: passed over in the folders: {note}", file=sys.stderr)
    return max(status, writer.report_unreadable())


def _caption_split(options: CaptionOptions, runs: Runs, split: str, device: torch.device) -> None:
    """Caption a split unless its captions are up to date."""
    run, _ = runs[0]
    suffix = {"best": "", "best_xe": "_xe", "both": "_both"}[options.weights]
    work = run.work if options.work is None else WorkFolder(options.work)
    out = run.captions(split, suffix) if options.out is None else Path(options.out)
    if options.out is None and options.work is not None:
        out = work.captions_by(run, split, suffix)
    inputs = [work.captions, work.features, *input_files(runs, options.generate)]
    stage = f"caption-{variant(out, split)}"
    stamp = Stamp(out.parent, stage, options, inputs)
    other = None if options.out is not None or options.force else _other_run(out, stage, run)
    if other is not None:
        raise UserError(
            f"{out} has the captions of {other}, another run of this name; choose another --out, "
            "or replace them with --force"
        )
    if stamp.holds() and not options.force:
        print(f"caption: {out} unchanged, skipped")
        return
    torch.manual_seed(options.seed)
    captioner = Captioner(runs, options.generate, device)
    assert options.batch_size is not None
    stamp.write(caption_split(captioner, work, split, out, options.batch_size, options.attention))


def _other_run(out: Path, stage: str, run: RunFolder) -> Path | None:
    """Return the run that wrote the captions in `out`, None if it was `run` or is not there."""
    recorded = recorded_options(out.parent, stage)
    if recorded is None or not out.exists():
        return None
    runs = recorded.get("run")
    first = runs[0] if isinstance(runs, list) and runs and isinstance(runs[0], str) else None
    before = captioner_folder(None if first is None else out.parent / first).path
    return before if before.exists() and not before.samefile(run.path) else None
