"""Scores in words, by how often results with such scores are right on validation captions.

Queries are phrases of one or two content words from the captions of the validation pictures, such
as "dog in the snow". A picture is right for a query if its own captions contain all content words.
That is strict: what people saw but did not write counts as wrong. (For longer queries hardly any
picture but the phrase's own would be right, so they are not measured.) From half of the queries all
right pictures are withheld, so that a high score for a query without match is punished.

The more pictures an album has, the higher is the best score among those that are wrong. So the
thresholds are measured with several numbers of pictures, drawn for each query, and those of an
album lie between, by the logarithm of its number of pictures.

Shape suffixes: Q queries, N pictures, K results of each query, D size of the embedding.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    query_QD = torch.stack([embed([tokens])[0] for tokens in queries])
    half = random.permutation(len(queries)) % 2 == 0

    def measured(pictures: int) -> Grades | None:
        found = _results(owners, queries, query_QD, captions, picture_ND, pictures, random)
        return _chosen(*found, half, pictures)

    whole = measured(len(captions))
    if whole is None:
        return None
    smaller = [measured(size) for size in _SIZES if size < len(captions)]
    return whole._replace(smaller=tuple(one for one in smaller if one is not None))


def _chosen(
    scores_QK: np.ndarray, right_QK: np.ndarray, half: np.ndarray, pictures: int
) -> Grades | None:
    """Choose thresholds on the queries of one half, and measure the precision on the others."""
    good = _threshold(scores_QK[half], right_QK[half], np.inf, _GOOD_PRECISION)
    fair = _threshold(scores_QK[half], right_QK[half], good, _FAIR_PRECISION)
    if good is None or fair is None:
        return None
    scores, right = scores_QK[~half], right_QK[~half]
    masks = {GOOD: scores >= good, FAIR: (scores >= fair) & (scores < good), WEAK: scores < fair}
    if not all(mask.any() for mask in masks.values()):
        return None
    precision = {name: round(float(right[mask].mean()), 3) for name, mask in masks.items()}
    return Grades(round(good, 4), round(fair, 4), precision, pictures)


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
    query_QD: Tensor,
    captions: Sequence[Sequence[Tokens]],
    picture_ND: Tensor,
    pictures: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the best results of each query, and which are right, as [Q, K].

    For each query, so many `pictures` are drawn, its own among them.
    """
    words = [{word for text in texts for word in text} for texts in captions]
    mentioned: dict[str, np.ndarray] = {}  # the pictures whose captions contain a word
    for picture, of_picture in enumerate(words):
        for word in of_picture:
            mentioned.setdefault(word, np.zeros(len(captions), bool))[picture] = True
    scores_QK, right_QK = [], []
    for number, (owner, tokens) in enumerate(zip(owners, queries, strict=True)):
        right_N = np.all([mentioned[word] for word in tokens if is_content(word)], axis=0)
        right_N[owner] = True
        score_N = picture_ND @ query_QD[number]
        if pictures < len(captions):
            left_out = random.permutation(len(captions))[pictures:]
            score_N[torch.from_numpy(left_out[left_out != owner])] = -1
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
