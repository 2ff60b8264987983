"""Recall and median rank of ranked candidates, as `decoder.search` writes them for a split.

Shape suffixes: I images, C captions, Q queries (one or the other), K candidates kept, A cut-offs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.arrays import read_arrays
from features.commands import SEARCH
from features.errors import UserError

AT = (1, 5, 10)
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
    """Of queries in one direction, the rank of the first right candidate, from 1."""

    rank_Q: np.ndarray
    """float64; infinite where it is not among the candidates that were kept."""
    image_Q: np.ndarray
    """int64, the place of the image that each query belongs to."""


def read(path: Path) -> tuple[int, int, int, dict[tuple[str, str], Ranks]]:
    """Read a ranking.

    Returns:
        The numbers of images, of captions and of candidates kept, and the ranks by direction
        ("text to image", "image to text") and pass ("first", "second").

    Raises:
        UserError: it is missing or not such a file.
    """
    try:
        found = zip(ARRAYS, read_arrays(path, ARRAYS), strict=True)
        arrays = {name: array.astype(np.int64, casting="safe") for name, array in found}
        if any(arrays[name].ndim != 1 or not len(arrays[name]) for name in ARRAYS[:2]):
            raise ValueError("expected lists of image ids")
        image_I, own_C = arrays["image_id"], arrays["caption_image_id"]
        order_I = image_I.argsort()
        place_C = order_I[
            np.searchsorted(image_I, own_C, sorter=order_I).clip(max=len(image_I) - 1)
        ]
        if len(np.unique(image_I)) < len(image_I) or (image_I[place_C] != own_C).any():
            raise ValueError("an image that occurs twice, or a caption of an image not there")
        ranks = {}
        for which in PASSES:
            found_CK = _candidates(arrays[f"images_{which}"], len(own_C), len(image_I))
            ranks["text to image", which] = Ranks(_rank(found_CK == place_C[:, None]), place_C)
            found_IK = _candidates(arrays[f"captions_{which}"], len(image_I), len(own_C))
            right_IK = place_C[found_IK] == np.arange(len(image_I))[:, None]
            ranks["image to text", which] = Ranks(_rank(right_IK), np.arange(len(image_I)))
        return len(image_I), len(own_C), found_CK.shape[1], ranks
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; {SEARCH} --split makes it") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a ranking ({error}); {SEARCH} --split makes it") from error


def _candidates(found_QK: np.ndarray, queries: int, among: int) -> np.ndarray:
    """Return the candidates if they are places of `among` things, in each row none twice."""
    if found_QK.ndim != 2 or len(found_QK) != queries or not 0 < found_QK.shape[1] <= among:
        raise ValueError(f"candidates of the shape {found_QK.shape} for {queries} queries")
    sorted_QK = np.sort(found_QK, axis=1)
    if sorted_QK[:, 0].min() < 0 or sorted_QK[:, -1].max() >= among:
        raise ValueError(f"candidates beyond the {among} that there are")
    if (sorted_QK[:, 1:] == sorted_QK[:, :-1]).any():
        raise ValueError("a candidate that is ranked twice")
    return found_QK


def _rank(right_QK: np.ndarray) -> np.ndarray:
    return np.where(right_QK.any(1), right_QK.argmax(1) + 1.0, np.inf)


def figures_of(found: Ranks, images: int, resamples: int, seed: int) -> dict[str, Any]:
    """Return recall and median rank, None if that is beyond the candidates.

    The 95 % intervals are those of resampled images, each with all its queries.
    """
    hit_QA = found.rank_Q[:, None] <= np.array(AT)
    hits_IA = np.stack([np.bincount(found.image_Q, hit, images) for hit in hit_QA.T], 1)
    queries_I = np.bincount(found.image_Q, minlength=images)
    median = float(np.median(found.rank_Q))
    figures: dict[str, Any] = {"queries": len(found.rank_Q)}
    figures["median_rank"] = median if np.isfinite(median) else None
    random = np.random.default_rng(seed)
    drawn = [random.integers(images, size=images) for _ in range(resamples)]
    resampled_SA = np.array([hits_IA[i].sum(0) / max(1, queries_I[i].sum()) for i in drawn])
    for column, at in enumerate(AT):
        figures[f"R@{at}"] = float(hit_QA[:, column].mean())
        if len(resampled_SA):
            bounds = np.percentile(resampled_SA[:, column], [2.5, 97.5])
            figures[f"R@{at} interval"] = [float(bound) for bound in bounds]
    return figures
