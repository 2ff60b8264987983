"""How long and how large a run will be, measured by a few of its steps."""

import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch

from decoder.runs import checkpoints
from decoder.training.state import PHASE_NAMES, PHASES, VALIDATION_BATCH
from decoder.training.trainer import Trainer
from features.estimate import duration, peak_memory
from features.store import as_size

STEPS = 10  # measured of each phase, and fewer where they take longer than
SECONDS = 15.0


def estimate(trainer: Trainer) -> str:
    """Measure a few steps of each phase and a part of a validation, and return a table of figures.

    Nothing is written to the disk. The decoder is untrained and rarely ends a caption, so that
    REINFORCE and validation take no longer than this says.
    """
    options, steps = trainer.options, trainer.training.batches_per_epoch
    epochs = {phase: getattr(options, phase).epochs for phase in PHASES}
    step = {phase: _seconds_of_step(trainer, phase) for phase in PHASES if epochs[phase]}
    validation = _seconds_of_validation(trainer)
    whole = {phase: epochs[phase] * (steps * step[phase] + validation) for phase in step}

    state = len(checkpoints.to_bytes(*trainer.state()))
    weights = sum(tensor.nbytes for tensor in trainer.average.values())
    kept = state + weights * (2 if epochs["xe"] else 1)  # best.safetensors and best_xe
    free = shutil.disk_usage(_existing(trainer.run.path)).free
    verdict = "" if kept + state < free else ": TOO LITTLE"
    rows = [
        (
            PHASE_NAMES[phase],
            f"{duration(whole[phase])}, {epochs[phase]} epochs of {steps} steps of "
            f"{step[phase]:.3g} s and a validation of {validation:.3g} s",
        )
        for phase in step
    ]
    rows += [
        ("in all", duration(sum(whole.values()))),
        ("memory", f"{as_size(peak_memory())} at the peak"),
        (
            "disk",
            f"{as_size(kept)} in {trainer.run.path}, {as_size(state)} more while the state is "
            f"written; {as_size(free)} are free{verdict}",
        ),
    ]
    return "\n".join(
        [
            f"train --dry-run: {options.decoder.model}, {trainer.config['parameters']:,} "
            f"parameters, on {trainer.device} with {torch.get_num_threads()} threads",
            *(f"  {name:14}{figures}" for name, figures in rows),
            "nothing was written; REINFORCE and validation get faster once captions end",
        ]
    )


def _seconds_of_step(trainer: Trainer, phase: str) -> float:
    """Take a few steps; return the seconds of one, with the reading of its batch."""
    total = getattr(trainer.options, phase).epochs * trainer.training.batches_per_epoch

    def take(epoch: int) -> Iterator[None]:
        for batch in trainer.training.epoch(phase, epoch):
            trainer.step(phase, batch.to(trainer.device), total)
            yield

    # The first steps allocate memory and prepare the reward.
    for _ in islice(take(0), 2):
        pass
    return _seconds_each(take(1))


def _seconds_of_validation(trainer: Trainer) -> float:
    """Write captions for a few images; return the seconds that all and their scores will take."""
    averaged = trainer.averaged_model()
    batches = trainer.validation.batches(VALIDATION_BATCH)
    written = (trainer.write_captions(averaged, *batch) for batch in batches)
    searching = _seconds_each(written) * -(-len(trainer.validation) // VALIDATION_BATCH)
    started = time.perf_counter()
    assert trainer.validator is not None  # there is one process
    for _ in trainer.widths:  # of captions as long as real ones
        trainer.validator.score(
            {image.id: image.captions[0].text for image in trainer.validation.images}
        )
    return searching + time.perf_counter() - started


def _seconds_each(work: Iterable[object]) -> float:
    """Do the first `STEPS` pieces of some work, or `SECONDS` of it; return the mean of a piece."""
    started = time.perf_counter()
    for done, _ in enumerate(islice(work, STEPS), 1):  # noqa: B007  # used after the loop
        if (seconds := time.perf_counter() - started) > SECONDS:
            break
    return seconds / done


def _existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
