"""The state of a training: where it stands, and the file from which it continues exactly.

Random numbers are a function of the seed, the phase and the step, and the order of the images is
one of the seed, the phase and the epoch. So the state is the weights, their running average, the
optimizer and the progress; it needs no state of a random number generator.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from decoder.data.batches import Features
from decoder.data.layout import is_static
from decoder.model.decoders import Decoder
from decoder.runs import checkpoints
from decoder.training.adam import Adam
from decoder.training.config import ENVIRONMENT, comparable, differences, with_former_options
from decoder.training.phases import TITLES
from features.distributed import rank
from features.errors import UserError, first_few
from features.files import write_atomically
from pipeline.work import RunFolder


@dataclass
class Progress:
    """Where a run stands; saved as JSON beside the tensors."""

    phase: str = "xe"
    """Name of the phase."""
    epoch: int = 0
    """Epochs finished in this phase."""
    batch: int = 0
    """Batches finished in this epoch."""
    step: int = 0
    """Steps taken in this phase."""
    best: float = -1.0
    """Best validation CIDEr so far."""
    best_of_phase: float = -1.0
    """Best validation CIDEr of this phase."""
    epochs_without_gain: int = 0
    """Epochs of this phase since its best."""
    flat_steps: int = 0
    """Steps of REINFORCE since one in which the reward varied."""
    written: list[list[str]] = field(default_factory=list)
    """Captions written so far in the current validation: one for each beam width, by image."""
    loss: float = 0.0
    """Sum of the losses of this epoch's steps."""
    reward: float = 0.0
    """Sum of the mean rewards of this epoch's steps."""
    captions: int = 0
    """Captions read or sampled in this epoch."""
    seconds: float = 0.0
    """Time spent on this epoch's steps."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""

    def finish_epoch(self) -> None:
        """Count the epoch and clear what is of one epoch only."""
        self.epoch += 1
        self.batch = self.captions = 0
        self.loss = self.reward = self.seconds = 0.0
        self.written = []

    def where(self) -> str:
        """Return the phase, epoch and batch that come next, as text."""
        return f"{TITLES[self.phase]}, epoch {self.epoch + 1}, batch {self.batch + 1}"


def check_progress(progress: Progress) -> None:
    """Raise ValueError if a field read from JSON does not have its declared type or range."""
    for name, initial in asdict(Progress()).items():
        value = getattr(progress, name)
        wanted = (int, float) if isinstance(initial, float) else type(initial)
        if not isinstance(value, wanted) or (type(initial) is int and value < 0):
            raise ValueError(f"progress.{name} is {value!r}")
    if progress.phase not in TITLES:
        raise ValueError(f"progress.phase is {progress.phase!r}")
    for line in progress.metrics:
        if not isinstance(line["val"]["CIDEr"], float) or line["phase"] not in TITLES:
            raise ValueError(f"progress.metrics has the line {line!r}")
    if not all(isinstance(text, str) for captions in progress.written for text in captions):
        raise ValueError("progress.written holds something other than captions")


class TrainingState:
    """Everything that the next step depends on, and its file in the run's folder.

    Args:
        run: the folder to write to.
        config: what identifies the run; a saved state is restored only if it has an equal one.
        model: the decoder, on its device.
    """

    def __init__(self, run: RunFolder, config: dict[str, Any], model: Decoder) -> None:
        self.run = run
        self.config = config
        self.model = model
        self.progress = Progress()
        self.processes: int = config.get("machine", {}).get("processes", 1)
        """Those that trained the run until here."""
        parameters = dict(model.named_parameters())
        self.optimizer = Adam(parameters.values())
        self.average = {name: p.detach().clone() for name, p in parameters.items()}
        self.failed = torch.zeros((), device=next(iter(self.average.values())).device)
        """float32, 1 after a step whose loss or gradient was not finite, until that is reported."""
        self._saved_at = time.monotonic()

    @torch.no_grad()
    def start_from_weights(self) -> None:
        """Start the optimizer anew, and the running average at the model's present weights.

        All tensors stay where they are in memory, as CUDA graphs need.
        """
        self.optimizer.reset()
        for name, parameter in self.model.named_parameters():
            self.average[name].copy_(parameter)

    def start_phase(self, phase: str) -> None:
        """Start the phase of this name from the best weights of the one before.

        Raises:
            UserError: these weights cannot be read.
        """
        old = self.progress
        if old.metrics:
            checkpoints.load_weights(self.model, self.run.best_xe)
        self.start_from_weights()
        self.progress = Progress(phase=phase, best=old.best, metrics=old.metrics)

    @torch.no_grad()
    def update(
        self, loss: Tensor, clip: float, learning_rate: float | Tensor, share: float | Tensor
    ) -> Tensor:
        """Update weights and running average, unless this step or an unreported one `failed`.

        Args:
            loss: float32 [], which with the gradients tells whether this step did.
            clip: largest norm of the gradient, which is changed to it.
            learning_rate: of Adam; on a GPU it and the share may be float32 [] there.
            share: of the present weights in the running average.

        Returns:
            The norm of the gradient before, float32 [].
        """
        norm = torch.nn.utils.clip_grad_norm_(self.optimizer.parameters, clip)
        self.failed.copy_(torch.maximum(self.failed, (~(loss + norm).isfinite()).float()))
        average: list[Tensor] = list(self.average.values())
        weights: list[Tensor] = list(self.optimizer.parameters)
        if is_static(self.failed.device):  # where nobody can ask whether it failed
            self.optimizer.step(learning_rate, self.failed)
            share = share * (1 - self.failed)
            for mean, weight in zip(average, weights, strict=True):
                mean.lerp_(weight, share)
        elif not self.failed:
            self.optimizer.step(learning_rate)
            torch._foreach_lerp_(average, weights, float(share))
        return norm

    def decay(self, largest: float, step: int) -> float:
        """Return the decay of the running average at a step; it is smaller in the first steps."""
        return min(largest, (1 + step) / (10 + step))

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, their running average and the state of the optimizer."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        return tensors | {f"optimizer.{k}": v for k, v in self.optimizer.tensors.items()}

    def content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what is saved: tensors, and a header for JSON."""
        return self.tensors(), {"config": self.config, "progress": asdict(self.progress)}

    def save(self) -> None:
        """Write the state and metrics.jsonl, each atomically; only the first process writes.

        Raises:
            UserError: a weight is not finite, or the disk is full; the state saved before is kept.
        """
        tensors, header = self.content()
        broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if broken:
            phase = self.progress.phase
            raise UserError(
                f"{first_few(broken, 3)} is not finite after step {self.progress.step} of "
                f"{TITLES[phase]}; {_lower_rate(phase)}; {self.last_good()}"
            )
        if rank() == 0:
            with self.naming_last_good():
                checkpoints.save(self.run.state, tensors, header)
                self.write_metrics()
        self._saved_at = time.monotonic()

    def write_metrics(self) -> None:
        """Write metrics.jsonl, atomically: a line for each epoch so far."""
        lines = "".join(json.dumps(line) + "\n" for line in self.progress.metrics)
        write_atomically(self.run.metrics, lines)

    def minutes_since_saved(self) -> float:
        """Return the time since the state was saved, or since this process started."""
        return (time.monotonic() - self._saved_at) / 60

    def restore(self) -> None:
        """Continue from the saved state.

        Raises:
            UserError: there is none, it is broken, or it belongs to other options or features.
        """
        tensors, header = checkpoints.load(self.run.state, next(self.model.parameters()).device)
        try:
            saved = comparable(with_former_options(header["config"]), self.config)
            changed = differences(saved, self.config, ignored=ENVIRONMENT)
            progress = Progress(**header["progress"])
            check_progress(progress)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.run.state} is not a run's state ({error!r}); start again with --force"
            ) from error
        if changed:
            parts = {name.split(".")[0] for name in changed}
            why = "pictures have changed since: " if "pictures" in parts else ""
            if parts & {"captions", "vocabulary"}:
                why = "the captions in WORK have changed since: "
            raise UserError(
                f"{why}{self.run.state} was saved by a run with other {first_few(changed)}; repeat "
                "those to continue it, or start again with --force, which keeps the old run"
            )
        try:
            checkpoints.restore(self.content()[0], tensors)
        except ValueError as error:
            raise UserError(
                f"{self.run.state} is not a run's state: {error}; start again with --force"
            ) from error
        self.progress = progress
        self.processes = saved["machine"].get("processes", self.processes)
        if rank() == 0:
            self.write_metrics()  # a kill between the two writes leaves it one line behind

    def last_good(self) -> str:
        """Return where the state saved last is, for an error message."""
        if not self.run.state.exists():
            return "no state has been saved yet"
        return f"the last good state is in {self.run.state}"

    @contextmanager
    def naming_last_good(self) -> Iterator[None]:
        """Add to an error of writing, such as a full disk, how the run can be continued."""
        try:
            yield
        except UserError as error:
            saved = self.run.state.exists()
            how = ", and --resume continues from it" if saved else ", so run the command again"
            raise UserError(f"{error}; {self.last_good()}{how}") from error

    def non_finite_error(self, what: str, image_ids: Tensor, features: Features) -> UserError:
        """Build the error for a non-finite value, naming the step, the images and the last state.

        Args:
            what: the value, and that it is not finite.
            image_ids: int64 [I] on the CPU, the images that were being processed.
            features: their features.
        """
        progress = self.progress
        finite_I = features.grid_IRC.isfinite().all((1, 2)) & features.pooled_IC.isfinite().all(1)
        broken = image_ids[~finite_I.cpu()].tolist()
        advice = _lower_rate(progress.phase)
        if broken:
            advice = f"the features of {first_few(broken)} are not finite: extract them again"
        return UserError(
            f"{what} at step {progress.step} of {TITLES[progress.phase]}, "
            f"epoch {progress.epoch + 1}, images {', '.join(map(str, image_ids.tolist()))}; "
            f"{advice}; {self.last_good()}"
        )


def _lower_rate(phase: str) -> str:
    return f"start again (--force) with a lower --{phase}.learning-rate or --clip"
