"""Options of a training; the docstrings of the fields are their help texts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from decoder.generation.options import LENGTH_PENALTY
from decoder.model.decoders import ModelOptions
from features.errors import require


@dataclass(frozen=True)
class CrossEntropyOptions:
    """Phase 1: teacher forcing with cross-entropy."""

    epochs: int = 4
    """Passes over the training images; each pass sees every caption once."""
    learning_rate: float = 3e-3
    """Adam's learning rate after the warm-up; it then falls linearly to 0."""
    label_smoothing: float = 0.0
    """Share of the target's probability spread over all words."""
    scheduled_sampling: float = 0.0
    """Probability that an input word is the model's own; rises from 0 to this over the phase."""
    patience: int = 0
    """Stop after this many epochs without a better validation CIDEr; 0 never stops early."""

    def __post_init__(self) -> None:
        _check_phase("xe", self.epochs, self.learning_rate)
        require(0 <= self.label_smoothing < 1, "--xe.label-smoothing must be in [0, 1)")
        require(0 <= self.scheduled_sampling <= 1, "--xe.scheduled-sampling must be in [0, 1]")
        require(self.patience >= 0, "--xe.patience must not be negative")


@dataclass(frozen=True)
class ReinforceOptions:
    """Phase 2: REINFORCE on the CIDEr-D of the model's own samples."""

    epochs: int = 4
    """Passes over the training images; 0 leaves the phase out."""
    learning_rate: float = 4e-4
    """Adam's learning rate after the warm-up; it then falls linearly to 0."""
    samples: int = 5
    """Captions sampled for each image."""
    baseline: Literal["greedy", "mean"] = "mean"
    """What a sample must beat: the greedy caption (self-critical), or its siblings' mean."""
    temperature: float = 0.7
    """Of the policy that is sampled and taught. The model's own distribution (temperature
    1) is so flat, the more so after label smoothing, that its samples say little about the captions
    a search would find."""
    bleu_weight: float = 0.0
    """Share of BLEU-4 in the reward; the rest is CIDEr-D."""
    patience: int = 0
    """Stop after this many epochs without a better validation CIDEr; 0 never stops early."""

    def __post_init__(self) -> None:
        _check_phase("rl", self.epochs, self.learning_rate)
        require(self.samples > 0, "--rl.samples must be positive")
        if self.baseline == "mean":
            require(self.samples > 1, "--rl.baseline mean needs --rl.samples of at least 2")
        require(self.temperature > 0, "--rl.temperature must be positive")
        require(0 <= self.bleu_weight <= 1, "--rl.bleu-weight must be in [0, 1]")
        require(self.patience >= 0, "--rl.patience must not be negative")


def _check_phase(name: str, epochs: int, learning_rate: float) -> None:
    require(epochs >= 0, f"--{name}.epochs must not be negative, found {epochs}")
    require(learning_rate > 0, f"--{name}.learning-rate must be positive, found {learning_rate}")


@dataclass(frozen=True)
class TrainOptions:
    """Train a decoder from a work directory's features and captions."""

    work: Path
    """The work directory that pipeline.prepare and pipeline.extract made."""
    run: str
    """Name of the run; its files are written to WORK/runs/NAME."""
    decoder: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    xe: CrossEntropyOptions = field(default_factory=CrossEntropyOptions)
    rl: ReinforceOptions = field(default_factory=ReinforceOptions)
    batch_size: int = 20
    """Images in a batch; each comes with all its captions."""
    warmup: float = 0.05
    """Share of a phase's steps over which the learning rate rises from 0."""
    initial: Literal["data", "random"] = "data"
    """First weights of the image embeddings and of the output's bias: fitted to the training images
    and their words (see decoder/training/initialisation.py), or random."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    average: float = 0.999
    """Decay of the running average of the weights, which is what is validated; 0 keeps none."""
    beam: int = 5
    """Beam of the validation captions that choose the best weights."""
    length_penalty: float = LENGTH_PENALTY
    """By which those captions are ranked; see decoder.caption."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products in training: bfloat16 gives other numbers, and is faster on GPUs and on
    processors that have instructions for it; on others it is many times slower."""
    compile: bool = False
    """Fuse the small operations of a step by torch's compiler, which changes last digits. Meant for
    GPUs, not measured on one yet, no faster on a CPU; compiling takes some 15 s at first. Needs a
    C++ compiler, and on a GPU Triton."""
    seed: int = 1
    """Fixes the initial weights, the order of the images, dropout and the samples."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    save_minutes: float = 5.0
    """Save the state for --resume this often, besides after every epoch and when terminated."""
    like: Path | None = None
    """Repeat the run in this folder: its options, but for those given besides. --work is that run's
    unless given; --run is the new run's name."""
    dry_run: bool = False
    """Measure a few steps and say how long and how large the run will be; train nothing."""
    resume: bool = False
    """Continue a run that was stopped, exactly where its last saved state stands."""
    force: bool = False
    """Start anew although the run has begun; with --resume only if it cannot be continued."""

    def __post_init__(self) -> None:
        name = Path(self.run)
        require(
            len(name.parts) == 1 and self.run not in ("", ".", ".."),
            f"--run must be a plain name such as 'updown', found {self.run!r}",
        )
        require(self.batch_size > 0, "--batch-size must be positive")
        require(0 <= self.warmup <= 1, "--warmup must be in [0, 1]")
        require(self.clip > 0, "--clip must be positive")
        require(0 <= self.average < 1, "--average must be in [0, 1)")
        require(self.beam > 0, "--beam must be positive")
        require(self.length_penalty >= 0, "--length-penalty must not be negative")
        require(self.save_minutes >= 0, "--save-minutes must not be negative")
        require(self.seed >= 0, "--seed must not be negative")
        require(self.xe.epochs + self.rl.epochs > 0, "--xe.epochs and --rl.epochs are both 0")
