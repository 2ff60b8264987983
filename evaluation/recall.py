"""Recall and median rank of a ranking, which `decoder.search` writes for a split.

Shape suffixes: I images, C captions, Q queries (images or captions), K candidates of a query,
A cutoffs of the recall, S resamples.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import npz
from features.commands import SEARCH
from features.errors import UserError

CUTOFFS = (1, 5, 10)
ARRAYS = (
    "image_id",
    "caption_image_id",
    "images_first",
    "images_second",
    "captions_first",
    "captions_second",
)
PASSES = {"first": "embedding", "second": "embedding, then decoder"}


@dataclass(frozen=True)
class Ranks:
    """Rank of the first correct candidate for each query, in one direction."""

    rank_Q: np.ndarray
    """float64, from 1; infinite if no candidate is correct."""
    image_Q: np.ndarray
    """int64, the index of the image that the query belongs to."""


def read(path: Path) -> tuple[int, int, int, dict[tuple[str, str], Ranks]]:
    """Read a ranking.

    Returns:
        The number of images, of captions and of candidates for each caption, and the ranks by
        direction ("text to image", "image to text") and pass ("first", "second").

    Raises:
        UserError: the file is missing or is not a ranking.
    """
    try:
        found = zip(ARRAYS, npz.read(path, ARRAYS), strict=True)
        arrays = {name: array.astype(np.int64, casting="safe") for name, array in found}
        if any(arrays[name].ndim != 1 or not len(arrays[name]) for name in ARRAYS[:2]):
            raise ValueError("expected two lists of image ids")
        image_I, own_C = arrays["image_id"], arrays["caption_image_id"]
        order_I = image_I.argsort()
        place_C = order_I[
            np.searchsorted(image_I, own_C, sorter=order_I).clip(max=len(image_I) - 1)
        ]
        if len(np.unique(image_I)) < len(image_I) or (image_I[place_C] != own_C).any():
            raise ValueError(
                "an image occurs twice, or a caption belongs to an image that is missing"
            )
        ranks = {}
        for stage in PASSES:
            ranked_CK = _candidates(arrays[f"images_{stage}"], len(own_C), len(image_I))
            ranks["text to image", stage] = Ranks(_rank(ranked_CK == place_C[:, None]), place_C)
            ranked_IK = _candidates(arrays[f"captions_{stage}"], len(image_I), len(own_C))
            correct_IK = place_C[ranked_IK] == np.arange(len(image_I))[:, None]
            ranks["image to text", stage] = Ranks(_rank(correct_IK), np.arange(len(image_I)))
        return len(image_I), len(own_C), ranked_CK.shape[1], ranks
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; create it with {SEARCH} --split") from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a ranking ({error}); create it again with {SEARCH} --split"
        ) from error


def _candidates(ranked_QK: np.ndarray, queries: int, among: int) -> np.ndarray:
    """Return the candidates; ValueError unless they are distinct indices below `among`."""
    if ranked_QK.ndim != 2 or len(ranked_QK) != queries or not 0 < ranked_QK.shape[1] <= among:
        raise ValueError(f"candidates of shape {ranked_QK.shape} for {queries} queries")
    sorted_QK = np.sort(ranked_QK, axis=1)
    if sorted_QK[:, 0].min() < 0 or sorted_QK[:, -1].max() >= among:
        raise ValueError(f"a candidate that is not one of the {among}")
    if (sorted_QK[:, 1:] == sorted_QK[:, :-1]).any():
        raise ValueError("a candidate is ranked twice")
    return ranked_QK


def _rank(correct_QK: np.ndarray) -> np.ndarray:
    return np.where(correct_QK.any(1), correct_QK.argmax(1) + 1.0, np.inf)


def summarize(ranks: Ranks, images: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return recall at each cutoff with its 95 % interval, and the median rank.

    The median rank is None if it is beyond the candidates. The intervals come from `resamples` of
    the images, each with all its queries; 0 gives none.
    """
    hit_QA = ranks.rank_Q[:, None] <= np.array(CUTOFFS)
    hits_IA = np.stack([np.bincount(ranks.image_Q, hit, images) for hit in hit_QA.T], 1)
    queries_I = np.bincount(ranks.image_Q, minlength=images)
    median = float(np.median(ranks.rank_Q))
    summary: dict[str, Any] = {"queries": len(ranks.rank_Q)}
    summary["median_rank"] = median if np.isfinite(median) else None
    random = np.random.default_rng(seed)
    drawn = [random.integers(images, size=images) for _ in range(resamples)]
    resampled_SA = np.array([hits_IA[i].sum(0) / max(1, queries_I[i].sum()) for i in drawn])
    for column, cutoff in enumerate(CUTOFFS):
        summary[f"R@{cutoff}"] = float(hit_QA[:, column].mean())
        if len(resampled_SA):
            bounds = np.percentile(resampled_SA[:, column], [2.5, 97.5])
            summary[f"R@{cutoff} interval"] = [float(bound) for bound in bounds]
    return summary
