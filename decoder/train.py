"""Stage `train`: from features and captions to a run's folder with the best weights."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from decoder.training.options import TrainOptions
from pipeline.command import run as run_command
from pipeline.presets import with_preset

if TYPE_CHECKING:
    from decoder.training.trainer import Trainer


def train(options: TrainOptions) -> int:
    """Train a decoder: first with cross-entropy, then with REINFORCE on CIDEr-D."""
    from decoder.training import train_stage

    return train_stage.train(options)


def new_trainer(options: TrainOptions) -> "Trainer":
    """Read the work directory and return a trainer with new weights; write nothing.

    `train` uses it. On its own it is for looking at single steps: `initialise`, then `step`.

    Raises:
        UserError: a file of the work directory is missing or broken, or has no captions to use.
    """
    from decoder.training import train_stage

    return train_stage.new_trainer(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(train, TrainOptions, "decoder.train", argv, _with_options_of_others)


def _with_options_of_others(argv: list[str]) -> list[str]:
    """Put the options of --preset and of the runs that --like and --init name before `argv`.

    Later ones override earlier ones: those of --init, of --like, of --preset, then those in `argv`.
    Of --init only the architecture is taken, and a lower learning rate, because the weights are
    trained already.
    """
    argv = with_preset("train", argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--like", type=Path, nargs="?")  # TrainOptions asks for missing values
    parser.add_argument("--init", nargs="?")
    parser.add_argument("--work", type=Path, nargs="?")
    parser.add_argument("--run", nargs="?")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_known_args(argv)[0]
    if given.like is not None:
        from decoder.training.config import arguments_like

        argv = [*arguments_like(given.like), *argv]
    if given.init is not None:
        from decoder.training.transfer import arguments_of, is_gone, recorded
        from pipeline.work import WorkFolder

        source = given.init
        if given.resume and None not in (given.work, given.run) and is_gone(source):
            # The run has the architecture of the captioner that it started from.
            own = WorkFolder(given.work).run(given.run)
            source = source if recorded(own, source) is None else str(own.path)
        argv = [*arguments_of(source), *argv]
    return argv


if __name__ == "__main__":
    sys.exit(main())
