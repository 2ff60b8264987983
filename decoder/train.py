"""Stage `train`: from features and captions to a run's folder with the best weights."""

import sys
from collections.abc import Sequence

import torch

from decoder import models
from decoder.batches import SplitReader, TrainingReader
from decoder.options import TrainOptions
from decoder.runs import RunFolder, describe, locked
from decoder.training import PHASE_NAMES, Stopped, Trainer
from evaluation.validation import Validator
from features.devices import choose_device
from features.errors import UserError
from features.store import FeatureStore
from pipeline import captions, vocabulary
from pipeline.command import run as run_command
from pipeline.command import write_json
from pipeline.stamps import Stamp


def train(options: TrainOptions) -> int:
    """Train a decoder: teacher forcing with cross-entropy, then REINFORCE on CIDEr-D."""
    run = RunFolder(options.work / "runs" / options.run)
    inputs = [options.work / n for n in ("captions.json", "vocabulary.json", "features.h5")]
    with locked(run):
        stamp = Stamp(run.path, "train", options, inputs)
        if stamp.holds() and not (options.force and not options.resume):
            print(f"train: {run.path} unchanged, skipped")
            return 0
        table, store = captions.load(inputs[0]), FeatureStore(inputs[2])
        words = vocabulary.load(inputs[1])
        training = TrainingReader(store, table, words, options.batch_size, options.seed)
        validation = SplitReader(store, table, "val")
        _report_left_out(training, validation)

        torch.manual_seed(options.seed)
        device = choose_device(options.device)
        model = models.build(options.decoder, len(words), store.description["channels"])
        used = {"train": training.images, "val": validation.images}
        config = describe(options, store, model, words, used)
        validator = Validator(
            {image.id: [c.text for c in image.captions] for image in validation.images}
        )
        trainer = Trainer(
            options, run, config, model.to(device), words, training, validation, validator
        )
        if _continues(trainer, options, run):
            print(f"train: continuing {run.path} in {trainer.where()}")
        else:
            vocabulary.save(words, run.vocabulary)
            write_json(run.config, config)
        try:
            trainer.train()
        except Stopped:
            print(f"train: stopped in {trainer.where()}; --resume continues there")
            return 130
        stamp.write([run.config, run.vocabulary, run.best, run.metrics])
    best = max(trainer.progress.metrics, key=lambda line: line["val"]["CIDEr"])
    print(
        f"train: best validation CIDEr {best['val']['CIDEr']:.3f} after epoch {best['epoch']} of "
        f"{PHASE_NAMES[best['phase']]}, weights in {run.best}"
    )
    return 0


def _continues(trainer: Trainer, options: TrainOptions, run: RunFolder) -> bool:
    """Restore the saved state if there is one to be continued, else move an old run aside."""
    if not run.config.exists():
        return False
    reason = "--force"
    if options.resume and run.state.exists():
        try:
            trainer.restore()
            return True
        except UserError as error:
            if not options.force:
                raise
            reason = str(error)
    elif not options.force and run.state.exists():
        raise UserError(
            f"{run.path} has a run already; continue it with --resume, start it anew with --force, "
            "or choose another --run"
        )
    print(f"train: starting anew, the old run is kept in {run.move_aside()} ({reason})")
    return False


def _report_left_out(*readers: SplitReader) -> None:
    for reader in readers:
        if reader.left_out:
            print(
                f"train: {reader.left_out} of {reader.left_out + len(reader)} {reader.split} "
                "images left out, their features could not be extracted"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(train, TrainOptions, "decoder.train", argv)


if __name__ == "__main__":
    sys.exit(main())
