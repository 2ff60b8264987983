"""Confidence: the probability that a caption is good, calibrated on validation captions.

A caption is good if its CIDEr is at least `GOOD`. A logistic regression on the mean log-probability
per word (Platt 1999) predicts whether it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decoder.captioning.captioner import Candidate, Captioner, default_generation
from features.commands import EXPORT
from features.errors import UserError
from features.files import read_json

# As scored by the toolkit, usually against five reference captions.
GOOD = 0.3
# With fewer validation captions a captioner has no confidence estimate.
LEAST = 50


@dataclass(frozen=True)
class Confidence:
    """The probability that a caption is good, as a function of its mean log-probability."""

    slope: float
    intercept: float
    good: float
    """The lowest CIDEr of a good caption."""
    images: int
    """Number of validation captions it was fitted to."""

    def of(self, mean_log_probability: float) -> float:
        """Return the probability that such a caption is good, from 0 to 1."""
        return _logistic(self.slope * mean_log_probability + self.intercept)


def in_words(probability: float, unsure: bool) -> str:
    """Return a confidence as people read it, in tenths: validation knows it no finer."""
    tenths = round(10 * probability)
    share = {0: "fewer than 1 in 10", 10: "more than 9 in 10"}.get(tenths, f"about {tenths} in 10")
    verdict = "Unsure" if unsure else "Probably right" if tenths >= 7 else "Perhaps right"
    return f"{verdict}: {share} such captions are right."


def mean_log_probability(caption: Candidate) -> float:
    """Return a caption's natural log-probability per word; EOS counts as a word."""
    return caption.log_probability / (len(caption.ids) + 1)


def is_comparable(captioner: Captioner) -> bool:
    """Whether log-probabilities are comparable to those of the run's own validation captions.

    They are if a single decoder searches, and the method that chooses among its captions is the
    run's default.
    """
    options, default = captioner.options, default_generation(captioner.run)
    same_choice = (options.rerank, options.consensus) == (default.rerank, default.consensus)
    return same_choice and len(captioner.models) == 1 and options.views == 1 and not options.sample


def confidence_of(captioner: Captioner) -> Confidence | None:
    """Return the confidence estimate of a captioner, None if it has none or it does not apply.

    Raises:
        UserError: see `load`.
    """
    return load(captioner.run.path) if is_comparable(captioner) else None


def fit(mean_log_probabilities: Sequence[float], ciders: Sequence[float]) -> Confidence | None:
    """Fit a logistic regression that predicts from log-probabilities which captions are good.

    Args:
        mean_log_probabilities: natural log-probability per word of each caption.
        ciders: CIDEr of each caption.

    Returns:
        None if there are fewer than `LEAST` captions, or too few good or too few bad ones.
    """
    x, y = np.array(mean_log_probabilities, float), np.array(ciders, float) >= GOOD
    if len(x) < LEAST or min(y.sum(), (~y).sum()) < LEAST / 10:
        return None
    scaled = np.stack([(x - x.mean()) / max(x.std(), 1e-9), np.ones(len(x))], 1)
    # Platt's targets keep the slope finite if good and bad captions do not overlap.
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    weights = np.zeros(2)
    for _ in range(50):  # Newton's method converges to the last digit in a handful of steps
        predicted = 1 / (1 + np.exp(-np.clip(scaled @ weights, -500, 500)))
        slopes = predicted * (1 - predicted)
        curvature = scaled.T @ (scaled * slopes[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, scaled.T @ (predicted - target))
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    slope = float(weights[0] / max(x.std(), 1e-9))
    intercept = float(weights[1] - slope * x.mean())
    return Confidence(round(slope, 6), round(intercept, 6), GOOD, len(x))


def load(folder: Path) -> Confidence | None:
    """Read the confidence estimate in `folder`/captioner.json; None if no file or estimate exists.

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
            raise ValueError(f"expected finite numbers, found {slope}, {intercept}, {good}")
        return Confidence(slope, intercept, good, int(values["images"]))
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({error!r}); export the captioner again with {EXPORT}"
        ) from error


def table(
    confidence: Confidence, captions: Sequence[tuple[float, float]]
) -> list[dict[str, float]]:
    """Tabulate how many captions are good at each confidence, in five bins of equal width.

    Args:
        confidence: the estimate to check.
        captions: (mean log-probability, CIDEr) of each caption.

    Returns:
        For each bin that is not empty: its bounds, the number of captions, the share of good ones
        and their mean CIDEr.
    """
    probability = np.array([confidence.of(x) for x, _ in captions])
    cider = np.array([y for _, y in captions])
    rows = []
    for fifth in range(5):
        chosen = (np.clip((probability * 5).astype(int), 0, 4)) == fifth
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
