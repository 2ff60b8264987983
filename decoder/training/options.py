"""Options of decoder.train; the docstrings of the fields are their help texts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from decoder.data.weights import parse_weights
from decoder.generation.options import LENGTH_PENALTY
from decoder.model.options import ModelOptions
from features.errors import require
from pipeline.presets import check_name

# By default cross-entropy takes 4 epochs, and more until it has made so many steps.
EPOCHS, STEPS, STEPS_FROM_INIT = 4, 600, 240


def cross_entropy_epochs(given: int | None, batches: int, has_init: bool) -> int:
    """Return the epochs of cross-entropy: those given, or enough for the size of the data.

    Args:
        given: by the user, if any.
        batches: in an epoch.
        has_init: whether training starts from a trained captioner, which needs fewer steps.
    """
    steps = STEPS_FROM_INIT if has_init else STEPS
    return max(EPOCHS, -(-steps // batches)) if given is None else given


@dataclass(frozen=True)
class CrossEntropyOptions:
    """Phase 1: teacher forcing with cross-entropy."""

    epochs: int | None = None
    """Epochs of cross-entropy; by default 4, and more where these are fewer than 600 steps, or 240
    with --init."""
    learning_rate: float = 3e-3
    """Adam's learning rate after the warm-up; it then falls linearly to 0."""
    label_smoothing: float = 0.0
    """Share of the target's probability spread over all words."""
    scheduled_sampling: float = 0.0
    """Probability that an input word is the model's own; it rises linearly from 0 to this value."""
    patience: int = 0
    """Stop after this many epochs without a better validation CIDEr; 0 never stops early."""

    def __post_init__(self) -> None:
        _check_phase("xe", self.epochs, self.learning_rate)
        require(0 <= self.label_smoothing < 1, "--xe.label-smoothing must be from 0 to below 1")
        require(0 <= self.scheduled_sampling <= 1, "--xe.scheduled-sampling must be from 0 to 1")
        require(self.patience >= 0, "--xe.patience must not be negative")


@dataclass(frozen=True)
class ReinforceOptions:
    """Phase 2: REINFORCE on the CIDEr-D of the model's own samples."""

    epochs: int = 4
    """Epochs of REINFORCE; 0 leaves the phase out."""
    learning_rate: float = 4e-4
    """Adam's learning rate after the warm-up; it then falls linearly to 0."""
    samples: int = 5
    """Number of captions sampled for each image."""
    baseline: Literal["greedy", "mean"] = "mean"
    """The reward that is subtracted: that of the greedy caption (self-critical), or the mean of the
    other samples."""
    # At temperature 1 the distribution is so flat, especially after label smoothing, that samples
    # are unlike the captions that a search finds.
    temperature: float = 0.7
    """Softmax temperature of the sampling policy; the same policy is optimised."""
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
        require(0 <= self.bleu_weight <= 1, "--rl.bleu-weight must be from 0 to 1")
        require(self.patience >= 0, "--rl.patience must not be negative")


def _check_phase(name: str, epochs: int | None, learning_rate: float) -> None:
    require(epochs is None or epochs >= 0, f"--{name}.epochs must not be negative, found {epochs}")
    require(learning_rate > 0, f"--{name}.learning-rate must be positive, found {learning_rate}")


@dataclass(frozen=True)
class TrainOptions:
    """Train a decoder from a work directory's features and captions."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Train with the defaults": "--work work --run first",
        "Estimate time and memory without training": "--work work --run first --dry-run",
        "Train another model for longer": (
            "--work work --run gru --model att2in --cell gru --xe.epochs 20"
        ),
        "Start from the included captioner": "--work work --run mine --init packaged",
        "Continue a stopped run": "--work work --run first --resume",
    }
    EVERYDAY: ClassVar[tuple[str, ...]] = (
        "work",
        "run",
        "preset",
        "decoder.model",
        "decoder.cell",
        "decoder.hidden",
        "xe.epochs",
        "xe.learning_rate",
        "rl.epochs",
        "rl.learning_rate",
        "init",
        "batch_size",
        "dry_run",
        "resume",
        "force",
    )

    work: Path
    """The work directory with the captions and features."""
    run: str
    """Name of the run; its files are written to WORK/runs/NAME."""
    decoder: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    xe: CrossEntropyOptions = field(default_factory=CrossEntropyOptions)
    rl: ReinforceOptions = field(default_factory=ReinforceOptions)
    preset: str | None = None
    """Settings of a data set, such as flickr8k, as defaults."""
    init: str | None = None
    """Start from this run or exported captioner, or "packaged" for the included one, with its
    architecture and the words that both know."""
    batch_size: int = 20
    """Number of images in a batch; each comes with all its captions."""
    source_weights: Annotated[str | None, tyro.conf.arg(metavar="WEIGHTS")] = None
    """How often the images of each source are drawn in an epoch, as NAME=W,NAME=W; by default once
    (at 1.5 all of them, and a random half again)."""
    warmup: float = 0.05
    """Share of a phase's steps over which the learning rate rises from 0."""
    initial: Literal["data", "random"] = "data"
    """First weights of the image embeddings and the output bias: fitted to the training data,
    or random."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    average: float = 0.999
    """Decay of the weights' running average, which is validated and saved; 0 turns it off."""
    beam: int = 5
    """Width of the beam search in validation."""
    length_penalty: float = LENGTH_PENALTY
    """Length penalty of the beam search in validation."""
    # On processors without instructions for bfloat16 it is many times slower.
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of matrix products; tf32 is faster on NVIDIA GPUs since 2020, bfloat16 on these
    and on processors that support it."""
    # Changes the last digits. Meant for GPUs; no faster on a CPU. Compiling takes about 15 s.
    compile: bool = False
    """Fuse small operations with torch.compile; needs a C++ compiler, and Triton on a GPU."""
    no_graphs: bool = False
    """On an NVIDIA GPU, start each kernel by itself instead of a whole step as one CUDA graph."""
    seed: int = 1
    """Seed of the initial weights, the order of images, dropout and samples."""
    device: str = "auto"
    """cpu or cuda; auto uses a GPU if there is one."""
    save_minutes: float = 5.0
    """Minutes between saves of the state for --resume; every epoch saves it too."""
    like: Path | None = None
    """Repeat the run in this folder with its options and work directory; options given here
    override them."""
    dry_run: bool = False
    """Estimate time and memory from a few steps, without training."""
    resume: bool = False
    """Continue a stopped run exactly where its state was last saved."""
    force: bool = False
    """Start again and keep the old run as NAME.old; with --resume, do so only if the old run cannot
    be continued."""

    def __post_init__(self) -> None:
        check_name(self.preset)
        name = Path(self.run)
        require(
            len(name.parts) == 1 and self.run not in ("", ".", ".."),
            f"--run must be a plain name such as 'updown', found {self.run!r}",
        )
        require(self.batch_size > 0, "--batch-size must be positive")
        if self.source_weights is not None:
            parse_weights(self.source_weights)
        require(0 <= self.warmup <= 1, "--warmup must be from 0 to 1")
        require(self.clip > 0, "--clip must be positive")
        require(0 <= self.average < 1, "--average must be from 0 to below 1")
        require(self.beam > 0, "--beam must be positive")
        require(self.length_penalty >= 0, "--length-penalty must not be negative")
        require(self.save_minutes >= 0, "--save-minutes must not be negative")
        require(self.seed >= 0, "--seed must not be negative")
        require(
            self.xe.epochs != 0 or self.rl.epochs > 0,
            "--xe.epochs and --rl.epochs are both 0, so there is nothing to train; raise one",
        )
