"""Scores in words, by how often results with such scores are right on validation captions.

Queries are phrases of one or two content words from the captions of the validation pictures, such
as "dog in the snow". A picture is right for a query if its own captions contain all content words.
That is strict: what people saw but did not write counts as wrong. (For longer queries hardly any
picture but the phrase's own would be right, so they are not measured.) Each query is asked twice,
once with all right pictures withheld, so that a high score for a query without match is punished.

The more pictures an album has, the higher is the best score among those that are wrong. So the
thresholds are measured with several numbers of pictures, drawn for each query, and those of an
album lie between, by the logarithm of its number of pictures.

Shape suffixes: Q queries, N pictures, K results of each query, D size of the embedding.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoder.ranking.queries import is_content

# The version of `measure`. Grades of another one are measured again.
METHOD = 2
GOOD, FAIR, WEAK = "good", "fair", "weak"
# The share of right results that the names promise.
_GOOD_PRECISION, _FAIR_PRECISION = 0.6, 0.3
# Thresholds are chosen for a larger share, because other pictures may have a smaller one: the
# share of the good varied by 2.5 points between random halves of 1,300 photographs.
_CAUTION = 1.07
# Results of each query that are counted, and content words of the phrases of a picture.
_RESULTS, _LENGTHS = 10, (1, 2) * 3
_MOST_QUERIES = 10_000
_LEAST_PICTURES, _LEAST_RESULTS = 200, 100  # fewer would not tell grades apart
_BLOCK = 500  # queries that are embedded at once
_SIZES = (30, 100, 300, 1000, 3000)  # of albums, besides that of all validation pictures

Tokens = Sequence[str]


class Grades(NamedTuple):
    """From which score on a result is good or fair; the others are weak."""

    good: float
    fair: float
    precision: dict[str, float]
    """The share of right results of each grade, of queries that chose no threshold."""
    pictures: int = 1
    """How many pictures it was measured with."""
    smaller: tuple["Grades", ...] | None = None
    """The same with fewer pictures, the fewest first; None if that was not measured."""

    def of(self, score: float, pictures: int) -> str:
        """Return the grade of a score in an album of so many pictures."""
        good = self._between([one.good for one in self._measured], pictures)
        fair = self._between([one.fair for one in self._measured], pictures)
        return GOOD if score >= good else FAIR if score >= fair else WEAK

    def explained(self, pictures: int) -> str:
        """Return in a sentence for people what the grades mean in an album of so many pictures."""
        shares = ", ".join(
            f"{name} {self._between([one.precision[name] for one in self._measured], pictures):.0%}"
            for name in (GOOD, FAIR, WEAK)
        )
        return (
            f"Share of results that are right, measured with phrases from captions, half of which "
            f"fit no picture: {shares}."
        )

    @property
    def _measured(self) -> tuple["Grades", ...]:
        return (*(self.smaller or ()), self)

    def _between(self, values: list[float], pictures: int) -> float:
        """Interpolate values of what was measured; outside of it, the nearest counts."""
        sizes = np.log([one.pictures for one in self._measured])
        return float(np.interp(np.log(max(pictures, 1)), sizes, values))

    def as_record(self) -> dict[str, Any]:
        """Return what `grades_of` reads, as JSON."""
        smaller = None if self.smaller is None else [one.as_record() for one in self.smaller]
        return {**self._asdict(), "smaller": smaller}


def grades_of(record: object) -> Grades | None:
    """Return the grades that a file holds as JSON, None if it holds none.

    Raises:
        ValueError: they are not what `Grades.as_record` returned.
    """
    if record is None:
        return None
    if not isinstance(record, dict) or not {"good", "fair", "precision"} <= record.keys():
        raise ValueError(f"grades {record!r:.80}")
    good, fair = float(record["good"]), float(record["fair"])
    precision = {name: float(record["precision"][name]) for name in (GOOD, FAIR, WEAK)}
    smaller = record.get("smaller")
    if smaller is not None:
        smaller = tuple(one for each in smaller if (one := grades_of(each)) is not None)
    return Grades(good, fair, precision, max(1, int(record.get("pictures", 1))), smaller)


def measure(
    captions: Sequence[Sequence[Tokens]],
    picture_ND: Tensor,
    embed: Callable[[list[Tokens]], Tensor],
    knows: Callable[[str], bool],
) -> Grades | None:
    """Choose thresholds on half of the pictures and measure them on the others, both ways round.

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
    query_QD = torch.cat([embed(queries[i : i + _BLOCK]) for i in range(0, len(queries), _BLOCK)])
    half_N = random.permutation(len(captions)) % 2 == 0
    half = np.repeat(half_N[owners], 2)  # `_results` asks each query twice

    right_QN = _right_pictures(owners, queries, captions)

    def measured(pictures: int) -> Grades | None:
        found = _results(owners, right_QN, query_QD, picture_ND, pictures, random)
        return _chosen(*found, half, pictures)

    whole = measured(len(captions))
    if whole is None:
        return None
    smaller = [measured(size) for size in _SIZES if size < len(captions)]
    return whole._replace(smaller=tuple(one for one in smaller if one is not None))


def _chosen(
    scores_QK: np.ndarray, right_QK: np.ndarray, half: np.ndarray, pictures: int
) -> Grades | None:
    """Choose thresholds on each half of the queries, measure them on the other, and average."""
    thresholds, right, found = [], Counter[str](), Counter[str]()
    for chosen_on in (half, ~half):
        of_half = scores_QK[chosen_on], right_QK[chosen_on]
        good = _threshold(*of_half, np.inf, _CAUTION * _GOOD_PRECISION)
        fair = _threshold(*of_half, good, _CAUTION * _FAIR_PRECISION)
        if good is None or fair is None:
            return None
        thresholds.append((good, fair))
        others = scores_QK[~chosen_on]
        masks = {
            GOOD: others >= good,
            FAIR: (others >= fair) & (others < good),
            WEAK: others < fair,
        }
        for name, mask in masks.items():
            found[name] += int(mask.sum())
            right[name] += int(right_QK[~chosen_on][mask].sum())
    if not all(found.values()):
        return None
    good, fair = np.mean(thresholds, axis=0).round(4).tolist()
    return Grades(
        good, fair, {name: round(right[name] / found[name], 3) for name in found}, pictures
    )


def _queries(
    captions: Sequence[Sequence[Tokens]], knows: Callable[[str], bool], random: np.random.Generator
) -> tuple[list[int], list[Tokens]]:
    """Return a phrase of each length from the captions of each picture, with its picture.

    Of more than `_MOST_QUERIES` phrases so many are drawn.
    """
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
    if len(queries) > _MOST_QUERIES:
        drawn = np.sort(random.choice(len(queries), _MOST_QUERIES, replace=False))
        owners, queries = [owners[i] for i in drawn], [queries[i] for i in drawn]
    return owners, queries


def _right_pictures(
    owners: Sequence[int], queries: Sequence[Tokens], captions: Sequence[Sequence[Tokens]]
) -> np.ndarray:
    """Return which pictures have all content words of a query in their captions, bool [Q, N]."""
    mentioned: dict[str, np.ndarray] = {}  # the pictures whose captions contain a word
    for picture, texts in enumerate(captions):
        for word in {word for text in texts for word in text}:
            mentioned.setdefault(word, np.zeros(len(captions), bool))[picture] = True
    right_QN = np.empty((len(queries), len(captions)), bool)
    for right_N, owner, tokens in zip(right_QN, owners, queries, strict=True):
        right_N[:] = np.all([mentioned[word] for word in tokens if is_content(word)], axis=0)
        right_N[owner] = True
    return right_QN


def _results(
    owners: Sequence[int],
    right_QN: np.ndarray,
    query_QD: Tensor,
    picture_ND: Tensor,
    pictures: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the best results of each query, and which are right, as [2 Q, K].

    For each query, so many `pictures` are drawn twice, its own among them. The second time, those
    that are right are withheld.
    """
    everything = np.arange(len(picture_ND))
    scores_QK, right_QK = [], []
    for owner, right_N, query_D in zip(owners, right_QN, query_QD, strict=True):
        score_N = (picture_ND @ query_D).numpy()
        for withheld in (False, True):
            drawn = everything
            if pictures < len(picture_ND):
                others = random.choice(len(picture_ND) - 1, pictures - 1, replace=False)
                drawn = np.append(others + (others >= owner), owner)
            scores, right = score_N[drawn], right_N[drawn]
            if withheld:
                scores = np.where(right, -1, scores)
            best_K = np.argpartition(-scores, _RESULTS)[:_RESULTS]
            scores_QK.append(scores[best_K])
            right_QK.append(right[best_K] & (not withheld))
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
