"""Confidence: the probability that a caption is good, calibrated on validation captions.

A caption is good if its CIDEr is at least `GOOD`. A logistic regression (Platt 1999) predicts
whether it is, from signals of caption and picture. `decoder.sharing.calibration` fits it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from decoder.captioning.captioner import Candidate, Captioner, default_generation
from features.commands import EXPORT
from features.errors import UserError
from features.files import read_json

# As scored by the toolkit, usually against five reference captions.
GOOD = 0.3
# The only signal of captioners before 0.3.
_LOG_PROBABILITY = "log_probability"

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


def in_words(probability: float, unsure: bool) -> str:
    """Return a confidence as people read it, in tenths: validation knows it no finer."""
    tenths = round(10 * probability)
    share = {0: "fewer than 1 in 10", 10: "more than 9 in 10"}.get(tenths, f"about {tenths} in 10")
    verdict = "Unsure" if unsure else "Probably right" if tenths >= 7 else "Perhaps right"
    return f"{verdict}: {share} such captions are right."


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


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
