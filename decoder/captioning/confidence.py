"""Confidence: the probability that a caption is good, calibrated on validation captions.

A caption is good if its CIDEr is at least `GOOD`. A logistic regression (Platt 1999) predicts whether
it is, from signals of the caption and of its picture.
"""

import math
from collections.abc import Mapping, Sequence
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
# Share of the validation photographs of a data set that may be marked as unfamiliar.
UNFAMILIAR = 0.025
# The only signal of captioners before 0.3.
_LOG_PROBABILITY = "log_probability"
# Penalty on squared weights of standardised signals, which keeps those of correlated ones small.
_RIDGE = 1.0

Signals = Mapping[str, float]
"""What speaks for or against a caption, by name: "log_probability" is the mean natural logarithm of
the probability of a word; the others are those of `Candidate.scores`."""


@dataclass(frozen=True)
class Confidence:
    """The probability that a caption is good, as a function of its signals."""

    weights: Mapping[str, float]
    """Of each signal."""
    intercept: float
    good: float
    """The lowest CIDEr of a good caption."""
    images: int
    """Number of validation captions it was fitted to."""
    novelty: float | None = None
    """A picture of a larger novelty is unfamiliar: hardly a photograph of the kind trained on."""

    def of(self, signals: Signals) -> float:
        """Return the probability that a caption with these signals is good, from 0 to 1.

        A signal that is missing counts as 0; `applies` says whether one is.
        """
        total = sum(weight * signals.get(name, 0.0) for name, weight in self.weights.items())
        return _logistic(total + self.intercept)

    def applies(self, signals: Signals) -> bool:
        """Whether a caption has all the signals needed."""
        return self.weights.keys() <= signals.keys()

    def unfamiliar(self, signals: Signals) -> bool:
        """Whether the picture is unlike those that the captioner was trained on."""
        return self.novelty is not None and signals.get("novelty", 0.0) > self.novelty


def signals_of(caption: Candidate) -> dict[str, float]:
    """Return the signals of a caption; EOS counts as a word."""
    mean = caption.log_probability / (len(caption.ids) + 1)
    return {_LOG_PROBABILITY: mean, **caption.scores}


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


def fit(
    signals: Sequence[Signals], ciders: Sequence[float], sources: Sequence[str] | None = None
) -> Confidence | None:
    """Fit a logistic regression that predicts from signals which captions are good.

    Args:
        signals: of each caption; only those that all captions have are used.
        ciders: CIDEr of each caption.
        sources: the data set of each caption; each one has the same influence. None for one.

    Returns:
        None if there are fewer than `LEAST` captions, or too few good or too few bad ones.
    """
    good = np.array(ciders, float) >= GOOD
    if len(good) < LEAST or min(good.sum(), (~good).sum()) < LEAST / 10:
        return None
    names = sorted(set.intersection(*(set(of) for of in signals)))
    x = np.array([[of[name] for name in names] for of in signals], float)
    source = np.array(sources if sources is not None else [""] * len(x))
    each = {name: float((source == name).sum()) for name in set(source)}
    share = np.array([len(x) / len(each) / each[name] for name in source])
    fitted = _fit_logistic(x, good, share)
    novelty = None
    if "novelty" in names:
        of_novelty = x[:, names.index("novelty")]
        limits = [np.quantile(of_novelty[source == name], 1 - UNFAMILIAR) for name in each]
        novelty = round(float(max(limits)), 6)
    weights = {name: round(float(w), 6) for name, w in zip(names, fitted[:-1], strict=True)}
    return Confidence(weights, round(float(fitted[-1]), 6), GOOD, len(x), novelty)


def _fit_logistic(x: np.ndarray, good: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the weights of the columns of `x` and the intercept; `share` weights the rows."""
    deviation = np.maximum(x.std(0), 1e-9)
    scaled = np.concatenate(((x - x.mean(0)) / deviation, np.ones((len(x), 1))), 1)
    # Platt's targets keep the weights finite if good and bad captions do not overlap.
    target = np.where(good, (good.sum() + 1) / (good.sum() + 2), 1 / ((~good).sum() + 2))
    ridge = np.append(np.full(x.shape[1], _RIDGE), 1e-9)
    weights = np.zeros(scaled.shape[1])
    for _ in range(50):  # Newton's method converges to the last digit in a handful of steps
        predicted = 1 / (1 + np.exp(-np.clip(scaled @ weights, -500, 500)))
        slopes = share * predicted * (1 - predicted)
        curvature = scaled.T @ (scaled * slopes[:, None]) + np.diag(ridge)
        step = np.linalg.solve(
            curvature, scaled.T @ (share * (predicted - target)) + ridge * weights
        )
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    each = weights[:-1] / deviation
    return np.append(each, weights[-1] - each @ x.mean(0))


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
        # Before 0.3 there was one signal, whose weight was called the slope.
        weights = values["weights"] if "weights" in values else {_LOG_PROBABILITY: values["slope"]}
        weights = {str(name): float(weight) for name, weight in weights.items()}
        intercept, good = (float(values[name]) for name in ("intercept", "good"))
        novelty = values.get("novelty")
        novelty = None if novelty is None else float(novelty)
        if not all(map(math.isfinite, (*weights.values(), intercept, good, novelty or 0))):
            raise ValueError(f"expected finite numbers, found {weights}, {intercept}, {good}")
        return Confidence(weights, intercept, good, int(values["images"]), novelty)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({error!r}); export the captioner again with {EXPORT}"
        ) from error


def table(
    confidence: Confidence, captions: Sequence[tuple[Signals, float]]
) -> list[dict[str, float]]:
    """Tabulate how many captions are good at each confidence, in five bins of equal width.

    Args:
        confidence: the estimate to check.
        captions: the signals and the CIDEr of each caption.

    Returns:
        For each bin that is not empty: its bounds, the number of captions, their mean confidence,
        the share of good ones and their mean CIDEr.
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
                    "confidence": round(float(probability[chosen].mean()), 4),
                    "good": round(float((cider[chosen] >= confidence.good).mean()), 4),
                    "CIDEr": round(float(cider[chosen].mean()), 4),
                }
            )
    return rows


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
