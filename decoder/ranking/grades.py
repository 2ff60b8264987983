"""Scores in words, by how often results with such scores are right on validation captions.

Queries are phrases of one or two content words from the captions of the validation pictures, such
as "dog in the snow". A picture is right for a query if its own captions contain all content words.
That is strict: what people saw but did not write counts as wrong. (For longer queries hardly any
picture but the phrase's own would be right, so they are not measured.) From half of the queries all
right pictures are withheld, so that a high score for a query without match is punished.

Shape suffixes: Q queries, N pictures, K results of each query, D size of the embedding.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoder.ranking.queries import is_content

GOOD, FAIR, WEAK = "good", "fair", "weak"
# The share of right results that the names promise.
_GOOD_PRECISION, _FAIR_PRECISION = 0.6, 0.3
# Results of each query that are counted, and content words of the phrases of a picture.
_RESULTS, _LENGTHS = 10, (1, 2, 1, 2)
_LEAST_PICTURES, _LEAST_RESULTS = 200, 100  # fewer would not tell grades apart

Tokens = Sequence[str]


class Grades(NamedTuple):
    """From which score on a result is good or fair; the others are weak."""

    good: float
    fair: float
    precision: dict[str, float]
    """The share of right results of each grade, of queries that chose no threshold."""

    def of(self, score: float) -> str:
        """Return the grade of a score."""
        return GOOD if score >= self.good else FAIR if score >= self.fair else WEAK

    def explained(self) -> str:
        """Return in a sentence for people what the grades mean."""
        shares = ", ".join(f"{name} {self.precision[name]:.0%}" for name in (GOOD, FAIR, WEAK))
        return (
            f"Share of results that are right, measured with phrases from captions, half of which "
            f"fit no picture: {shares}."
        )


def grades_of(record: object) -> Grades | None:
    """Return the grades that a file holds as JSON, None if it holds none.

    Raises:
        ValueError: they are not what `Grades._asdict` returned.
    """
    if record is None:
        return None
    if not isinstance(record, dict) or record.keys() != set(Grades._fields):
        raise ValueError(f"grades {record!r:.80}")
    good, fair = float(record["good"]), float(record["fair"])
    precision = {name: float(record["precision"][name]) for name in (GOOD, FAIR, WEAK)}
    return Grades(good, fair, precision)


def measure(
    captions: Sequence[Sequence[Tokens]],
    picture_ND: Tensor,
    embed: Callable[[list[Tokens]], Tensor],
    knows: Callable[[str], bool],
) -> Grades | None:
    """Choose the thresholds on half of the queries and measure the precision on the others.

    Args:
        captions: of each validation picture, as tokens.
        picture_ND: the vectors of these pictures, float32.
        embed: returns the vectors of sentences, float32 [Q, D].
        knows: whether a word is in the vocabulary.

    Returns:
        None if there are too few pictures, or no threshold reaches the precision of its name.
    """
    if len(captions) < _LEAST_PICTURES:
        return None
    random = np.random.default_rng(0)
    owners, queries = _queries(captions, knows, random)
    scores_QK, right_QK = _results(owners, queries, captions, picture_ND, embed)
    half = random.permutation(len(queries)) % 2 == 0
    good = _threshold(scores_QK[half], right_QK[half], np.inf, _GOOD_PRECISION)
    fair = _threshold(scores_QK[half], right_QK[half], good, _FAIR_PRECISION)
    if good is None or fair is None:
        return None
    scores, right = scores_QK[~half], right_QK[~half]
    masks = {GOOD: scores >= good, FAIR: (scores >= fair) & (scores < good), WEAK: scores < fair}
    if not all(mask.any() for mask in masks.values()):
        return None
    precision = {name: round(float(right[mask].mean()), 3) for name, mask in masks.items()}
    return Grades(round(good, 4), round(fair, 4), precision)


def _queries(
    captions: Sequence[Sequence[Tokens]], knows: Callable[[str], bool], random: np.random.Generator
) -> tuple[list[int], list[Tokens]]:
    """Return a phrase of each length from the captions of each picture, with its picture."""
    owners, queries = [], []
    for picture, texts in enumerate(captions):
        for length in _LENGTHS:
            tokens = texts[int(random.integers(len(texts)))]
            places = [place for place, word in enumerate(tokens) if is_content(word)]
            if len(places) < length:
                continue
            first = int(random.integers(len(places) - length + 1))
            tokens = tokens[places[first] : places[first + length - 1] + 1]
            if all(knows(word) for word in tokens):
                owners.append(picture)
                queries.append(tokens)
    return owners, queries


def _results(
    owners: Sequence[int],
    queries: Sequence[Tokens],
    captions: Sequence[Sequence[Tokens]],
    picture_ND: Tensor,
    embed: Callable[[list[Tokens]], Tensor],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the best results of each query, and which are right, as [Q, K]."""
    words = [{word for text in texts for word in text} for texts in captions]
    mentioned: dict[str, np.ndarray] = {}  # the pictures whose captions contain a word
    for picture, of_picture in enumerate(words):
        for word in of_picture:
            mentioned.setdefault(word, np.zeros(len(captions), bool))[picture] = True
    scores_QK, right_QK = [], []
    for number, (owner, tokens) in enumerate(zip(owners, queries, strict=True)):
        right_N = np.all([mentioned[word] for word in tokens if is_content(word)], axis=0)
        right_N[owner] = True
        score_N = picture_ND @ embed([tokens])[0]
        if number % 2:  # nothing that is left matches
            score_N[torch.from_numpy(right_N)] = -1
        score_K, index_K = score_N.topk(_RESULTS)
        scores_QK.append(score_K.numpy())
        right_QK.append(right_N[index_K.numpy()] & (number % 2 == 0))
    return np.array(scores_QK), np.array(right_QK)


def _threshold(
    scores: np.ndarray, right: np.ndarray, below: float | None, precision: float
) -> float | None:
    """Return the least threshold above which results have the precision, None if none has.

    Args:
        scores: of results.
        right: whether they are right.
        below: only results with lower scores count; None if there are none.
        precision: the share of right results wanted.
    """
    if below is None:
        return None
    order = np.argsort(-scores[scores < below])
    sorted_scores = scores[scores < below][order]
    shares = right[scores < below][order].cumsum() / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(shares[_LEAST_RESULTS:] >= precision)
    return float(sorted_scores[enough[-1] + _LEAST_RESULTS]) if len(enough) else None
