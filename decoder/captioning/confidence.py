"""How sure a caption is: what its probability has meant for captions of the validation split.

A caption counts as good if its CIDEr reaches `GOOD`. How often that happens at a given mean
log-probability per word is learnt by logistic regression (Platt 1999) from the validation captions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decoder.captioning.captioner import Captioned, Captioner, usual_writing
from features.commands import EXPORT
from features.errors import UserError
from features.files import read_json
from pipeline.work import RunFolder

# Scores of captions, by the toolkit, against some five of people.
GOOD = 0.3
# Fewer tell too little; a captioner made of them has no confidence.
LEAST = 50


@dataclass(frozen=True)
class Confidence:
    """The probability that a caption is good, by its mean log-probability."""

    slope: float
    intercept: float
    good: float
    """The CIDEr from which on a caption counted as good."""
    images: int
    """How many validation captions this was learnt from."""

    def of(self, mean_log_probability: float) -> float:
        """Return the probability, from 0 to 1."""
        return _logistic(self.slope * mean_log_probability + self.intercept)


def mean_log_probability(caption: Captioned) -> float:
    """Return a caption's natural log-probability per word, its end counted as one."""
    return caption.log_probability / (len(caption.ids) + 1)


def comparable(captioner: Captioner, run: RunFolder) -> bool:
    """Whether log-probabilities mean what they meant for the run's own validation captions.

    So they do if one decoder wrote, and what chose among the captions found is what usually does.
    """
    options, usual = captioner.options, usual_writing(run)
    chosen = (options.rerank, options.consensus) == (usual.rerank, usual.consensus)
    return chosen and len(captioner.models) == 1 and options.views == 1 and not options.sample


def fit(mean_log_probabilities: Sequence[float], ciders: Sequence[float]) -> Confidence | None:
    """Learn what log-probabilities mean.

    Args:
        mean_log_probabilities: of captions.
        ciders: of the same captions.

    Returns:
        None if there are fewer than `LEAST` captions, or almost all or none of them are good.
    """
    x, y = np.array(mean_log_probabilities, float), np.array(ciders, float) >= GOOD
    if len(x) < LEAST or min(y.sum(), (~y).sum()) < LEAST / 10:
        return None
    scaled = np.stack([(x - x.mean()) / max(x.std(), 1e-9), np.ones(len(x))], 1)
    # Platt's targets, which keep the slope finite where the two kinds do not overlap.
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    weights = np.zeros(2)
    for _ in range(50):  # Newton's method; a handful of steps reach the last digit
        found = 1 / (1 + np.exp(-np.clip(scaled @ weights, -500, 500)))
        curvature = scaled.T @ (scaled * (found * (1 - found))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, scaled.T @ (found - target))
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    slope = float(weights[0] / max(x.std(), 1e-9))
    intercept = float(weights[1] - slope * x.mean())
    return Confidence(round(slope, 6), round(intercept, 6), GOOD, len(x))


def load(folder: Path) -> Confidence | None:
    """Return what an exported captioner's captioner.json says, None if it, or the file, has none.

    Raises:
        UserError: the file is broken.
    """
    file = folder / "captioner.json"
    if not file.exists():
        return None
    content = read_json(file, EXPORT)
    try:
        values = content["confidence"]
        if values is None:
            return None
        slope, intercept, good = (float(values[name]) for name in ("slope", "intercept", "good"))
        if not all(map(math.isfinite, (slope, intercept, good))):
            raise ValueError(f"numbers that are not finite: {slope}, {intercept}, {good}")
        return Confidence(slope, intercept, good, int(values["images"]))
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not a captioner's ({error!r}); {EXPORT} makes it") from error


def table(
    confidence: Confidence, captions: Sequence[tuple[float, float]]
) -> list[dict[str, float]]:
    """Return how well captions did by their confidence, in fifths of its range.

    Args:
        confidence: to be looked at.
        captions: (mean log-probability, CIDEr) of each.
    """
    sure = np.array([confidence.of(x) for x, _ in captions])
    cider = np.array([y for _, y in captions])
    rows = []
    for fifth in range(5):
        chosen = (np.clip((sure * 5).astype(int), 0, 4)) == fifth
        if chosen.any():
            rows.append(
                {
                    "from": fifth / 5,
                    "to": (fifth + 1) / 5,
                    "captions": int(chosen.sum()),
                    "good": round(float((cider[chosen] >= confidence.good).mean()), 4),
                    "CIDEr": round(float(cider[chosen].mean()), 4),
                }
            )
    return rows


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
