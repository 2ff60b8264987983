"""Scores of each source of a work directory that holds several data sets."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluation.bootstrap import intervals, resample
from evaluation.diagnostics import diagnose
from evaluation.toolkit import Captions, ToolkitScores, score_tokens


def scores_by_source(
    scores: ToolkitScores,
    references: Captions,
    source_of: Mapping[int, str],
    resamples: int,
    seed: int,
    confidence: float,
) -> dict[str, dict[str, Any]]:
    """Return the scores of each source's images, as if they alone had been scored.

    CIDEr has the document frequencies of the source's own references. The other metrics compare an
    image with its own references only, so their statistics are summed over the source's images.

    Args:
        scores: of all images.
        references: their tokenized references.
        source_of: the source of each image.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        confidence: level of the intervals.

    Returns:
        For each source, in order of first mention: the number of images, the corpus scores, their
        intervals and the diagnostics, as in a scores file.
    """
    images = list(scores.tokens)
    by_source: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(source_of[image] for image in images):
        own = [image for image in images if source_of[image] == source]
        places = [place for place, image in enumerate(images) if source_of[image] == source]
        tokens = {image: scores.tokens[image] for image in own}
        per_image = {
            name: {image: values[image] for image in own}
            for name, values in scores.per_image.items()
        }
        statistics = {name: rows[places] for name, rows in scores.statistics.items()}
        corpus = {
            name: float(value_1[0])
            for name, value_1 in resample(
                per_image, statistics, np.ones((1, len(own)), np.int64)
            ).items()
        }
        if "CIDEr" in per_image:
            cider = score_tokens({i: references[i] for i in own}, tokens, ("CIDEr",))
            per_image |= cider.per_image
            corpus |= cider.corpus
        bounds = intervals(per_image, statistics, resamples, seed, confidence)
        by_source[source] = {
            "images": len(own),
            "corpus": {name: _or_null(corpus[name]) for name in scores.corpus},
            "intervals": {name: [_or_null(x) for x in pair] for name, pair in bounds.items()},
            "diagnostics": diagnose(tokens.values()),
        }
    return by_source


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN
