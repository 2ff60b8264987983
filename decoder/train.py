"""Stage `train`: from features and captions to a run's folder with the best weights."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from decoder.data.readers import SplitReader, TrainingReader, expect_captions
from decoder.model import decoders
from decoder.model.operations import compiled
from decoder.runs.folder import locked, move_aside
from decoder.training import checks
from decoder.training.config import arguments_like, describe, differences, with_former_options
from decoder.training.estimate import estimate
from decoder.training.options import TrainOptions
from decoder.training.state import PHASE_NAMES
from decoder.training.trainer import Stopped, Trainer
from evaluation.validation import Validator
from features.commands import TRAIN
from features.devices import choose_device
from features.distributed import broadcast, own_device, process_group, rank, world_size
from features.errors import UserError
from features.files import read_json, write_json
from features.store import FeatureStore
from pipeline import captions, vocabulary
from pipeline.command import run as run_command
from pipeline.stamps import Stamp
from pipeline.work import RunFolder, WorkFolder


def train(options: TrainOptions) -> int:
    """Train a decoder: first with cross-entropy, then with REINFORCE on CIDEr-D."""
    with process_group():
        return _train(options, WorkFolder(options.work).run(options.run))


def _train(options: TrainOptions, run: RunFolder) -> int:
    """Train in this process, of which there may be several; the first one writes and prints."""
    first = rank() == 0
    if options.dry_run:
        if world_size() > 1:
            raise UserError("--dry-run measures one process; start it without torchrun")
        print(estimate(_trainer(options, run)))
        return 0
    with locked(run) if first else nullcontext():
        stamp = Stamp(run.path, "train", options, _inputs(options)) if first else None
        unchanged = stamp is not None and stamp.holds()
        if broadcast(unchanged and not (options.force and not options.resume)):
            _say(f"train: {run.path} unchanged, skipped")
            return 0
        trainer = _trainer(options, run)
        continues = broadcast(_continues(trainer, options, run) if first else False)
        if continues and not first:
            trainer.restore()
        if continues:
            _say(f"train: continuing {run.path} in {trainer.where()}")
        else:
            trainer.initialise()
        if first and not continues:
            vocabulary.save(trainer.vocabulary, run.vocabulary)
            write_json(run.config, trainer.config)
        try:
            trainer.train()
        except Stopped:
            _say(f"train: stopped in {trainer.where()}; --resume continues there")
            return 130
        if stamp is not None:
            stamp.write([run.config, run.vocabulary, run.best, run.metrics])
    # Of equal epochs the later one: its weights are kept.
    best = max(reversed(trainer.progress.metrics), key=lambda line: line["val"]["CIDEr"])
    _say(
        f"train: best validation CIDEr {best['val']['CIDEr']:.3f} after epoch {best['epoch']} of "
        f"{PHASE_NAMES[best['phase']]}, weights in {run.best}"
    )
    return 0


def _say(text: str) -> None:
    if rank() == 0:
        print(text)


def _inputs(options: TrainOptions) -> list[Path]:
    work = WorkFolder(options.work)
    return [work.captions, work.vocabulary, work.features]


def _trainer(options: TrainOptions, run: RunFolder) -> Trainer:
    """Read the work directory and return what trains, with new weights; writes nothing."""
    table_file, vocabulary_file, features_file = _inputs(options)
    table, store = captions.load(table_file), FeatureStore(features_file)
    words = vocabulary.load(vocabulary_file)
    # The decoder first, for it says what it needs of the features.
    torch.manual_seed(options.seed)
    device = own_device(choose_device(options.device))
    model = decoders.build(options.decoder, len(words), store.description["channels"]).to(device)
    if options.compile:
        model.use(compiled(device))
    training = TrainingReader(
        store, table, words, options.batch_size, options.seed, grid=model.attends
    )
    validation = SplitReader(store, table, "val", grid=model.attends)
    expect_captions(validation)
    first = rank() == 0
    if first:
        _report_left_out(training, validation)
        checks.report(store, table, training.captions)
        checks.report_few_steps(options.xe.epochs * training.batches_per_epoch, len(training))
        checks.report_precision(options.precision, device)

    used = {"train": training.images, "val": validation.images}
    config = describe(options, store, model, words, used)
    validator = None
    if first:
        _report_unlike(config, options.like)
        references = {image.id: [c.text for c in image.captions] for image in validation.images}
        validator = Validator(references)
    return Trainer(options, run, config, model, words, training, validation, validator)


def _continues(trainer: Trainer, options: TrainOptions, run: RunFolder) -> bool:
    """Restore the saved state if there is one to be continued, else move an old run aside."""
    if not (run.state.exists() or run.best.exists()):
        return False  # nothing is lost: no run, or one that was killed before it first saved
    reason = "--force"
    if options.resume and run.state.exists():
        try:
            trainer.restore()
            return True
        except UserError as error:
            if not options.force:
                raise
            reason = str(error)
    elif not options.force:
        how = "continue it with --resume" if run.state.exists() else "it has no state to continue"
        raise UserError(
            f"{run.path} has a run already; {how}, start it anew with --force, or choose another "
            "--run"
        )
    print(f"train: starting anew, the old run is kept in {move_aside(run)} ({reason})")
    return False


def _report_unlike(config: dict[str, Any], like: Path | None) -> None:
    """Say in what a run that is to repeat another differs from it."""
    if like is None:
        return
    before = with_former_options(read_json(RunFolder(like).config, TRAIN))
    unlike = differences(before, config)
    for difference in unlike:
        print(f"train: unlike {like}: {difference}")
    if not unlike:
        print(f"train: like {like} in everything: options, data, features, versions, machine")


def _report_left_out(*readers: SplitReader) -> None:
    for reader in readers:
        if reader.left_out:
            print(
                f"train: {reader.left_out} of {reader.left_out + len(reader)} {reader.split} "
                "images left out, their features could not be extracted"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(train, TrainOptions, "decoder.train", argv, _with_those_of_like)


def _with_those_of_like(argv: list[str]) -> list[str]:
    """Put the options of the run that --like names before `argv`, whose own come last and win."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--like", type=Path)
    like = parser.parse_known_args(argv)[0].like
    return argv if like is None else [*arguments_like(like), *argv]


if __name__ == "__main__":
    sys.exit(main())
