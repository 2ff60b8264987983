"""Stage `export`: turn a run into a captioner, a folder that stands alone."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from decoder.captioning.captioner import Captioner
from decoder.generation.options import GenerateOptions
from decoder.sharing import card, files
from decoder.sharing.metadata import damaged, metadata
from decoder.sharing.onnx import write_onnx
from decoder.sharing.options import ExportOptions
from features.errors import UserError
from features.files import make_folder, write_atomically, write_json
from features.store import as_size
from features.weights import by_hand
from pipeline import captions as tables
from pipeline.captions import CaptionTable
from pipeline.command import run as run_command
from pipeline.work import RunFolder


def export(options: ExportOptions) -> None:
    """Export a run as a captioner: a folder that works on its own, with a model card."""
    run = RunFolder(options.run)
    weights: Path = getattr(run, options.weights)
    captioner = Captioner([(run, weights)], GenerateOptions(), torch.device("cpu"))
    features = dict(captioner.config["features"])
    if "weights_file" in features:
        features["weights_file"] = [Path(file).name for file in features["weights_file"]]
    table = _load_table(run)
    _check_destination(options.out, run)

    # A captioner's files have the names of a run's, so that a captioner can be used like a run.
    new = RunFolder(options.out.with_name(f".{options.out.name}.{os.getpid()}"))
    make_folder(new.path)
    try:
        shutil.copyfile(run.config, new.config)
        if "weights_file" in features:  # their path on this machine is nobody else's business
            write_json(new.config, {**captioner.config, "features": features})
        shutil.copyfile(run.vocabulary, new.vocabulary)
        files.write_weights(weights, new.best, options.int8)
        if not options.no_frequencies:
            files.write_frequencies(run, captioner.vocabulary, table, new.frequencies)
        if options.rerank:
            files.write_expectation(run, captioner, new.expectation)
        about = metadata(
            run, captioner, table, new.best, options.weights, options.int8, options.rerank
        )
        write_json(new.captioner, about)
        write_atomically(new.card, _card(about, captioner.config, run))
        if options.search:
            files.write_embedding(run, captioner, new.embedding)
        if options.onnx:
            write_onnx(new, new.path / "onnx")
        size = sum(file.stat().st_size for file in new.path.rglob("*") if file.is_file())
        _publish(new.path, options.out)
    finally:
        shutil.rmtree(new.path, ignore_errors=True)
    for file in features.get("weights_file", ()):
        print(f"export: the CNN's weights {file} are not part of it; put them at {by_hand(file)}")
    print(
        f"export: {options.out}, {as_size(size)}, of which the decoder's weights are "
        f"{as_size(RunFolder(options.out).best.stat().st_size)}"
    )


def _load_table(run: RunFolder) -> CaptionTable | None:
    table = run.work.captions
    if table.exists():
        return tables.load(table)
    if not run.captioner.exists():
        print(f"export: {table} does not exist, so the card cannot name the training data")
    return None


def _card(about: Mapping[str, Any], config: Mapping[str, Any], run: RunFolder) -> str:
    try:
        return card.markdown(about, config)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Only what comes from the captioner.json of an exported captioner is unchecked.
        raise damaged(run, error) from error


def _check_destination(out: Path, run: RunFolder) -> None:
    """Raise UserError unless `out` is free, empty, or a captioner that may be replaced."""
    destination, source = out.resolve(), run.path.resolve()
    if destination == source or destination in source.parents:
        raise UserError(
            f"--out {out} is the folder of the run or contains it; choose another folder"
        )
    if not out.exists() or RunFolder(out).captioner.is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise UserError(
            f"--out {out}: expected a new or empty folder, or a captioner to replace, found "
            f"{'other files' if out.is_dir() else 'a file'}; choose another folder"
        )


def _publish(new: Path, out: Path) -> None:
    """Move the finished folder to `out`, after moving an old captioner there out of the way."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(export, ExportOptions, "decoder.export", argv)


if __name__ == "__main__":
    sys.exit(main())
