"""Calibration: fit the confidence of a captioner to its scored validation captions, and check it.

Shape suffixes: N captions, S signals.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from decoder.captioning.confidence import GOOD, Confidence, Signals

# With fewer validation captions a captioner has no confidence estimate.
LEAST = 50
# Share of the validation photographs of a data set that may be marked as unfamiliar.
UNFAMILIAR = 0.025
# Penalty on squared weights of standardised signals, which keeps those of correlated ones small.
_RIDGE = 1.0
_BINS, _FOLDS = 5, 10


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
    good_N = np.array(ciders, float) >= GOOD
    if len(good_N) < LEAST or min(good_N.sum(), (~good_N).sum()) < LEAST / 10:
        return None
    names = sorted(set.intersection(*(set(of) for of in signals)))
    signal_NS = np.array([[of[name] for name in names] for of in signals], float)
    source_N = np.array(sources if sources is not None else [""] * len(signals))
    count = Counter(source_N.tolist())
    share_N = np.array([len(signals) / len(count) / count[name] for name in source_N.tolist()])
    *weights, intercept = _fit_logistic(signal_NS, good_N, share_N)
    novelty = None
    if "novelty" in names:
        of_N = signal_NS[:, names.index("novelty")]
        limits = [np.quantile(of_N[source_N == name], 1 - UNFAMILIAR) for name in count]
        novelty = round(float(max(limits)), 6)
    return Confidence(
        weights={name: round(float(w), 6) for name, w in zip(names, weights, strict=True)},
        intercept=round(float(intercept), 6),
        good=GOOD,
        images=len(signals),
        novelty=novelty,
    )


def check(
    signals: Sequence[Signals], ciders: Sequence[float], sources: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return how well the confidence predicts which captions are good, for captions not fitted to.

    Each tenth of the captions is judged by a regression on the others.

    Args:
        signals: see `fit`.
        ciders: see `fit`.
        sources: see `fit`.

    Returns:
        For each source, its number of "captions", the "error" (expected calibration error in five
        equal bins), the error that "perfect" calibration would have at this size, and a "table"
        with a row for each bin that is not empty.
    """
    source_N = np.array(sources if sources is not None else [""] * len(signals))
    cider_N = np.array(ciders, float)
    fold_N = np.random.default_rng(0).permutation(len(signals)) % _FOLDS
    probability_N = np.full(len(signals), np.nan)
    for fold in range(_FOLDS):
        others = np.flatnonzero(fold_N != fold).tolist()
        fitted = fit(
            [signals[i] for i in others], cider_N[others].tolist(), source_N[others].tolist()
        )
        if fitted is None:  # too few captions of one kind in this part
            return {}
        for i in np.flatnonzero(fold_N == fold).tolist():
            probability_N[i] = fitted.of(signals[i])
    checked = {}
    for name in sorted(set(source_N.tolist())):
        own_N = source_N == name
        good = cider_N[own_N] >= GOOD
        drawn = np.random.default_rng(0).random((1000, len(good))) < probability_N[own_N]
        checked[name] = {
            "captions": len(good),
            "error": round(_error(probability_N[own_N], good), 4),
            "perfect": round(float(np.mean([_error(probability_N[own_N], of) for of in drawn])), 4),
            "table": _table(probability_N[own_N], cider_N[own_N]),
        }
    return checked


def _fit_logistic(signal_NS: np.ndarray, good_N: np.ndarray, share_N: np.ndarray) -> np.ndarray:
    """Return the weight of each signal, then the intercept; `share_N` weights the captions."""
    deviation_S = np.maximum(signal_NS.std(0), 1e-9)
    scaled = np.column_stack(((signal_NS - signal_NS.mean(0)) / deviation_S, np.ones(len(good_N))))
    # Platt's targets keep the weights finite if good and bad captions do not overlap.
    good, bad = good_N.sum(), (~good_N).sum()
    target_N = np.where(good_N, (good + 1) / (good + 2), 1 / (bad + 2))
    ridge = np.append(np.full(len(deviation_S), _RIDGE), 1e-9)
    weights = np.zeros(len(ridge))
    for _ in range(50):  # Newton's method converges to the last digit in a handful of steps
        predicted_N = 1 / (1 + np.exp(-np.clip(scaled @ weights, -500, 500)))
        slope_N = share_N * predicted_N * (1 - predicted_N)
        curvature = scaled.T @ (scaled * slope_N[:, None]) + np.diag(ridge)
        gradient = scaled.T @ (share_N * (predicted_N - target_N)) + ridge * weights
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    weights_S = weights[:-1] / deviation_S
    return np.append(weights_S, weights[-1] - weights_S @ signal_NS.mean(0))


def _bins(probability_N: np.ndarray) -> np.ndarray:
    return np.clip((probability_N * _BINS).astype(int), 0, _BINS - 1)


def _error(probability_N: np.ndarray, good_N: np.ndarray) -> float:
    """Return the expected calibration error (Naeini et al. 2015)."""
    difference = np.bincount(_bins(probability_N), probability_N - good_N, minlength=_BINS)
    return float(np.abs(difference).sum() / len(good_N))


def _table(probability_N: np.ndarray, cider_N: np.ndarray) -> list[dict[str, float]]:
    """Return for each bin: its bounds, number of captions, mean confidence, good ones and CIDEr."""
    rows = []
    for number in range(_BINS):
        own_N = _bins(probability_N) == number
        if own_N.any():
            rows.append(
                {
                    "from": number / _BINS,
                    "to": (number + 1) / _BINS,
                    "captions": int(own_N.sum()),
                    "confidence": round(float(probability_N[own_N].mean()), 4),
                    "good": round(float((cider_N[own_N] >= GOOD).mean()), 4),
                    "CIDEr": round(float(cider_N[own_N].mean()), 4),
                }
            )
    return rows
