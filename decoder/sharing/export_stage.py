"""The command decoder.export: turn a run into a captioner with scores and a card."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from decoder.captioning.captioner import Captioner
from decoder.generation.options import GenerateOptions
from decoder.runs.packaged import captioner_folder
from decoder.sharing import card, files, front_matter
from decoder.sharing.measuring import measure
from decoder.sharing.metadata import damaged, metadata
from decoder.sharing.onnx import write_onnx
from decoder.sharing.options import ExportOptions
from decoder.sharing.publishing import check_destination, hashes, publish
from features.devices import choose_device
from features.errors import UserError
from features.extras import need
from features.files import make_folder, write_atomically, write_json
from features.store import as_size
from features.weights import by_hand
from pipeline.caption_database import load
from pipeline.captions import CaptionTable
from pipeline.work import RunFolder


def export(options: ExportOptions) -> None:
    """Export a run as a captioner: a folder that works on its own, with scores and a card."""
    if options.onnx:
        need("onnx")  # before minutes of scoring
    run, out = captioner_folder(options.run), options.out.resolve()
    weights: Path = getattr(run, options.weights)
    captioner = Captioner([(run, weights)], GenerateOptions(), torch.device("cpu"))
    table = _load_table(run)
    check_destination(options.out, run)

    # A captioner's files have the names of a run's, so that a captioner can be used like a run.
    new = RunFolder(out.with_name(f".{out.name}.{os.getpid()}"))
    make_folder(new.path)
    try:
        write_json(new.config, _without_paths(captioner.config))
        shutil.copyfile(run.vocabulary, new.vocabulary)
        files.write_weights(weights, new.best, options.int8)
        if not options.no_frequencies:
            files.write_frequencies(run, captioner.vocabulary, table, new.frequencies)
        if options.rerank:
            files.write_expectation(run, captioner, new.expectation)
        if options.search:
            files.write_embedding(run, captioner, new.embedding)
        files.write_novelty(run, captioner, table, new.novelty)
        about = metadata(
            run, captioner, table, new.best, options.weights, options.int8, options.rerank
        )
        if "val" not in about["scores"] or (
            _lacks_novelty(about, new, run) and not options.no_scores
        ):
            measured = _measured(options, new, run, table, "val" in about["scores"])
            measured["scores"] = about["scores"] | measured.get("scores", {})
            about |= measured
        _write_card(about, _without_paths(captioner.config), run, new)
        if options.onnx:
            write_onnx(new, new.path / "onnx")
        write_json(new.captioner, about | {"files": hashes(new.path)})
        size = sum(file.stat().st_size for file in new.path.rglob("*") if file.is_file())
        publish(new.path, out)
    finally:
        shutil.rmtree(new.path, ignore_errors=True)
    for file in _without_paths(captioner.config)["features"].get("weights_file", ()):
        print(f"export: the CNN's weights {file} are not part of it; put them at {by_hand(file)}")
    print(
        f"export: {options.out}, {as_size(size)}, of which the decoder's weights are "
        f"{as_size(RunFolder(out).best.stat().st_size)}"
    )


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the names of files and runs only: their paths are nobody's business."""
    config = copy.deepcopy(config)
    features, init = config["features"], config.get("init")
    if "weights_file" in features:
        features["weights_file"] = [Path(file).name for file in features["weights_file"]]
    if init is not None:
        config["options"]["init"] = init["name"] = Path(init["name"]).name
    return config


def _load_table(run: RunFolder) -> CaptionTable | None:
    table = run.work.captions
    if table.exists():
        return load(table)
    if not run.captioner.exists():
        print(f"export: {table} does not exist, so the card cannot name the training data")
    return None


def _measured(
    options: ExportOptions, new: RunFolder, run: RunFolder, table: CaptionTable | None, scored: bool
) -> dict[str, Any]:
    """Return scores, confidence and claims of the new captioner; nothing if it cannot be scored.

    Args:
        options: of the command.
        new: the captioner.
        run: the run.
        table: the captions of its work directory.
        scored: whether the run has scores, which count if there are no new ones.
    """
    reason = "of --no-scores"
    if not options.no_scores:
        device = choose_device(options.device)
        try:
            if table is None:
                raise UserError(f"{run.work.captions} does not exist")
            return measure(new, run, table, device)
        except (UserError, ModuleNotFoundError) as error:
            reason = f"the validation split cannot be captioned and scored: {error}"
    result = "the card has no validation scores and captions have no confidence"
    if scored:
        result = "the card has the scores of the run, and unfamiliar pictures are not recognised"
    print(f"export: {result}, because {reason}")
    return {}


def _lacks_novelty(about: dict[str, Any], new: RunFolder, run: RunFolder) -> bool:
    """Whether the confidence was fitted to captions of the run, which measured no novelty."""
    confidence = about["confidence"]
    if confidence is None or run.novelty.exists() or not new.novelty.exists():
        return False
    return confidence.get("novelty") is None


def _write_card(
    about: dict[str, Any], config: dict[str, Any], run: RunFolder, new: RunFolder
) -> None:
    try:
        write_atomically(new.card, card.markdown(about, config))
        if (licence := front_matter.licence(about, config)) is not None:
            write_atomically(new.licence, licence)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Only what comes from the captioner.json of an exported captioner is unchecked.
        raise damaged(run, error) from error
