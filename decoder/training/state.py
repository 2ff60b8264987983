"""Where a run stands, and the state from which it continues exactly."""

from dataclasses import asdict, dataclass, field
from typing import Any

PHASES = ("xe", "rl")


PHASE_NAMES = {"xe": "cross-entropy", "rl": "REINFORCE"}


VALIDATION_BATCH = 50


@dataclass
class Progress:
    """Where a run stands; saved as JSON beside the tensors."""

    phase: str = "xe"
    epoch: int = 0
    batch: int = 0
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
    """Captions of the validation images done in the validation under way, for each of `widths`."""
    loss: float = 0.0
    """Sum over the epoch so far, as are the next three."""
    reward: float = 0.0
    captions: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""


def check_progress(progress: Progress) -> None:
    """Raise ValueError if a field read from JSON is not what it is declared to be."""
    for name, initial in asdict(Progress()).items():
        value = getattr(progress, name)
        wanted = (int, float) if isinstance(initial, float) else type(initial)
        if not isinstance(value, wanted) or (type(initial) is int and value < 0):
            raise ValueError(f"progress.{name} is {value!r}")
    if progress.phase not in PHASES:
        raise ValueError(f"progress.phase is {progress.phase!r}")
    for line in progress.metrics:
        if not isinstance(line["val"]["CIDEr"], float) or line["phase"] not in PHASES:
            raise ValueError(f"progress.metrics has the line {line!r}")
    if not all(isinstance(text, str) for captions in progress.written for text in captions):
        raise ValueError("progress.written holds no captions")
