"""Stage `export`: from a run to a captioner, a folder that stands alone."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from decoder.captioning.captioner import Captioner
from decoder.generation.options import GenerateOptions
from decoder.ranking.consensus import count_frequencies, save_frequencies
from decoder.ranking.embedding import embedding_of
from decoder.ranking.reranker import expectation_of, made_of
from decoder.runs import checkpoints
from decoder.sharing import card
from decoder.sharing.metadata import damaged, metadata
from decoder.sharing.onnx import write_onnx
from decoder.sharing.options import ExportOptions
from features.errors import UserError
from features.files import make_folder, write_atomically, write_json
from features.store import as_size, fingerprint
from pipeline import captions
from pipeline.captions import CaptionTable
from pipeline.command import run as run_command
from pipeline.work import RunFolder

_MAX_FLOAT16 = torch.finfo(torch.float16).max


def export(options: ExportOptions) -> None:
    """Export a run as a captioner: a folder that works on its own, with a model card."""
    run = RunFolder(options.run)
    weights: Path = getattr(run, options.weights)
    captioner = Captioner([(run, weights)], GenerateOptions(), torch.device("cpu"))
    tensors = checkpoints.from_8_bits(checkpoints.load(weights, torch.device("cpu"))[0])
    table = _table(run)
    _check_place(options.out, run)

    new = options.out.with_name(f".{options.out.name}.{os.getpid()}")
    make_folder(new)
    try:
        made = RunFolder(new)
        # Under the names that a run has, so that whatever takes a run takes a captioner.
        shutil.copyfile(run.config, made.config)
        shutil.copyfile(run.vocabulary, made.vocabulary)
        halved = _to_float16(tensors, weights)  # and refused if too large, for 8 bits too
        checkpoints.save(made.best, checkpoints.in_8_bits(tensors) if options.int8 else halved)
        if run.frequencies.exists() and not options.no_frequencies:  # a captioner already
            shutil.copyfile(run.frequencies, made.frequencies)
        elif table is not None and not options.no_frequencies:
            frequencies = count_frequencies(table, captioner.vocabulary)
            save_frequencies(frequencies, made.frequencies)
        if options.rerank:
            _write_expectation(run, captioner, made.expectation)
        about = metadata(options, run, captioner, made.best, table)
        write_json(made.captioner, about)
        write_atomically(made.card, _card(about, captioner.config, run))
        if options.search:
            features = captioner.config["features"]
            embedding = embedding_of(run, run.work, captioner.vocabulary, fingerprint(features))
            learnt, made_of = checkpoints.load(embedding.file, torch.device("cpu"))
            checkpoints.save(made.embedding, _to_float16(learnt, embedding.file), made_of)
        if options.onnx:
            write_onnx(RunFolder(new), new / "onnx")
        size = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
        _publish(new, options.out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    print(
        f"export: {options.out}, {as_size(size)}, of which the decoder's weights are "
        f"{as_size(RunFolder(options.out).best.stat().st_size)}"
    )


def _card(about: Mapping[str, Any], config: Mapping[str, Any], run: RunFolder) -> str:
    try:
        return card.markdown(about, config)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # All of it is made here and checked, but for what a captioner says of itself.
        raise damaged(run, error) from error


def _table(run: RunFolder) -> CaptionTable | None:
    file = run.work.captions
    if file.exists():
        return captions.load(file)
    if not run.captioner.exists():
        print(f"export: {file} is not there, so the card cannot say what the run was trained on")
    return None


def _write_expectation(run: RunFolder, captioner: Captioner, file: Path) -> None:
    """Write what --rerank needs.

    Raises:
        UserError: the run's work directory, its captions or features are missing, or are others.
    """
    if run.expectation.exists():  # a captioner already
        shutil.copyfile(run.expectation, file)
        return
    features, vocabulary = captioner.config["features"], captioner.vocabulary
    frequencies = count_frequencies(captions.load(run.work.captions), vocabulary)
    whole = expectation_of(run, vocabulary, features, frequencies)
    whole.reduced().save(file, made_of(vocabulary, fingerprint(features)))


def _check_place(out: Path, run: RunFolder) -> None:
    """Raise UserError unless `out` is free, empty, or a captioner that may be replaced."""
    there = out.resolve()
    if there == run.path.resolve() or there in run.path.resolve().parents:
        raise UserError(f"--out {out} is the run's own folder, or holds it; choose another")
    if not out.exists() or RunFolder(out).captioner.is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise UserError(
            f"--out {out} is there already and is not a captioner, which alone is replaced; choose "
            "another folder"
        )


def _to_float16(tensors: Mapping[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """Return the weights as float16.

    Raises:
        UserError: one is too large for that.
    """
    large = [name for name, tensor in tensors.items() if tensor.abs().max() > _MAX_FLOAT16]
    if large:
        raise UserError(f"{file}: {large[0]} does not fit into 16 bits; train anew")
    return {name: tensor.half() for name, tensor in sorted(tensors.items())}


def _publish(new: Path, out: Path) -> None:
    """Move the finished folder to its place, and what was there out of the way first."""
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
