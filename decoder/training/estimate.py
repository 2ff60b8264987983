"""The estimate of --dry-run: how long a run takes and how large it is, from a few steps."""

import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch

from decoder.runs import checkpoints
from decoder.training.phases import Phase
from decoder.training.trainer import Trainer
from decoder.training.validation import Validation
from features.estimate import duration, peak_memory
from features.store import as_size

STEPS = 10  # measured of each phase, or fewer
SECONDS = 15.0  # after which no further step is measured


def estimate(trainer: Trainer) -> str:
    """Measure a few steps of each phase and part of a validation, and return a table of figures.

    Nothing is written to the disk. The times of REINFORCE and validation are upper bounds, because
    an untrained decoder rarely ends a caption.
    """
    state, steps = trainer.state, trainer.training.batches_per_epoch
    phases = [phase for phase in trainer.phases if phase.steps]
    step_seconds = [_seconds_per_step(trainer, phase) for phase in phases]
    validation = _seconds_per_validation(trainer.validation)
    rows, total = [], 0.0
    for phase, seconds in zip(phases, step_seconds, strict=True):
        epochs = phase.epochs
        of_phase = epochs * (steps * seconds + validation)
        total += of_phase
        figures = f"{epochs} epochs of {steps} steps of {seconds:.3g} s and a validation of"
        rows.append((phase.title, f"{duration(of_phase)}, {figures} {validation:.3g} s"))

    state_size = len(checkpoints.to_bytes(*state.content()))
    weights = sum(tensor.nbytes for tensor in state.average.values())
    kept = state_size + weights * (2 if trainer.phases[0].steps else 1)  # best and best_xe
    free = shutil.disk_usage(_existing(state.run.path)).free
    verdict = "" if kept + state_size < free else ": TOO LITTLE"
    rows += [
        ("in all", duration(total)),
        ("memory", f"{as_size(peak_memory())} at the peak"),
        (
            "disk",
            f"{as_size(kept)} in {state.run.path}, {as_size(state_size)} more while the state is "
            f"written; {as_size(free)} are free{verdict}",
        ),
    ]
    return "\n".join(
        [
            f"train --dry-run: {trainer.options.decoder.model}, {state.config['parameters']:,} "
            f"parameters, on {trainer.device} with {torch.get_num_threads()} threads",
            *(f"  {name:14}{figures}" for name, figures in rows),
            "nothing was written; REINFORCE and validation get faster once captions end",
        ]
    )


def _seconds_per_step(trainer: Trainer, phase: Phase) -> float:
    """Take a few steps; return the seconds of one, including the reading of its batch."""

    def take(epoch: int) -> Iterator[None]:
        for batch in trainer.training.epoch(phase.name, epoch):
            trainer.step(phase, batch.to(trainer.device))
            yield

    # The first steps allocate memory and prepare the reward.
    for _ in islice(take(0), 2):
        pass
    seconds = _seconds_each(take(1))
    trainer.read_figures()
    return seconds


def _seconds_per_validation(validation: Validation) -> float:
    """Write captions of a few images; return the seconds of writing and scoring all captions."""
    averaged, images = validation.averaged_model(), validation.images
    batches = images.batches(validation.batch_size)
    written = (validation.write_captions(averaged, *batch) for batch in batches)
    searching = _seconds_each(written) * -(-len(images) // validation.batch_size)
    # References stand in for captions of realistic length.
    captions = {image.id: image.captions[0].text for image in images.images}
    started = time.perf_counter()
    assert validation.validator is not None  # there is one process
    validation.validator.score(captions, captions if validation.beam > 1 else None)
    validation.validator.close()
    return searching + time.perf_counter() - started


def _seconds_each(work: Iterable[object]) -> float:
    """Do up to `STEPS` pieces of work within `SECONDS`; return the mean seconds of a piece."""
    started = time.perf_counter()
    for done, _ in enumerate(islice(work, STEPS), 1):  # noqa: B007  # used after the loop
        if (seconds := time.perf_counter() - started) > SECONDS:
            break
    return seconds / done


def _existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
