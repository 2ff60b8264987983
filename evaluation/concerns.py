"""Bad news about a run, said at the end of a training and at the top of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

# Good captions have far fewer: of 1,000 at most one ends in mid-air, and none repeats a phrase.
_BAD_ENDINGS, _REPEATED = 0.1, 0.1
# Below this share of distinct captions, a decoder writes a few sentences for all pictures.
_DISTINCT, _FEW_IMAGES = 0.05, 40


def of_epochs(epochs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence if REINFORCE only made things worse, by the validation CIDEr.

    Args:
        epochs: the lines of metrics.jsonl.
    """
    best = {
        phase: max((_cider(epoch) for epoch in epochs if epoch["phase"] == phase), default=None)
        for phase in ("xe", "rl")
    }
    before, after = best["xe"], best["rl"]
    if before is None or after is None or after >= before:
        return []
    return [
        f"REINFORCE only made the captions worse: its best epoch has a validation CIDEr of "
        f"{after:.3f}, cross-entropy reached {before:.3f}. The best weights are those of "
        "cross-entropy. Try a lower --rl.learning-rate, or leave the phase out with --rl.epochs 0."
    ]


def of_captions(figures: Mapping[str, float], images: int = 0) -> list[str]:
    """Return a sentence for each thing that is wrong with most captions, or with many.

    Args:
        figures: as of `evaluation.diagnostics.diagnose`; those that are missing are not judged.
        images: the number of captions, if "distinct_captions" is to be judged.
    """
    concerns = []
    if (endings := figures.get("bad_endings", 0)) > _BAD_ENDINGS:
        concerns.append(
            f"{endings:.0%} of the captions end in mid-air, as “a man on a” does. Train longer "
            "with cross-entropy; if it was REINFORCE that cut them off, lower --rl.learning-rate."
        )
    if (repeated := figures.get("repeated_phrases", 0)) > _REPEATED:
        concerns.append(
            f"{repeated:.0%} of the captions repeat a phrase, as “a man and a man” does."
        )
    distinct = figures.get("distinct_captions", 1)
    if images >= _FEW_IMAGES and distinct < _DISTINCT:
        concerns.append(
            f"The decoder wrote only {round(distinct * images):,} different captions for "
            f"{images:,} images, so it hardly looks at them. Train longer, or check the features."
        )
    return concerns


def of_scores(
    cider: float, before: float | None, copied: float | None, reinforced: bool
) -> list[str]:
    """Return a sentence for each comparison that the CIDEr of a run's captions loses.

    Args:
        cider: of the captions.
        before: of the captions from before REINFORCE, if there are any.
        copied: of the captions of the nearest training pictures, if known.
        reinforced: whether the run has epochs of REINFORCE.
    """
    concerns = []
    if reinforced and before is not None and cider < before - 0.005:
        concerns.append(
            f"On this split the captions were better before REINFORCE: CIDEr {before:.3f}, now "
            f"{cider:.3f}."
        )
    if copied is not None and cider <= copied:
        concerns.append(
            f"Copying the caption of the nearest training picture is no worse: CIDEr {copied:.3f}, "
            f"this run {cider:.3f}."
        )
    return concerns


def _cider(epoch: Mapping[str, Any]) -> float:
    value = epoch["val"].get("CIDEr")
    return float(value) if isinstance(value, int | float) else float("-inf")
