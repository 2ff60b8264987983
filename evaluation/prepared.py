"""References counted once and scored against often, with the numbers of the official toolkit.

The toolkit counts the n-grams of all references in every call, which takes most of its time. BLEU
and ROUGE-L are the toolkit's own classes here. CIDEr-D is written anew, since the toolkit's cannot
keep its references: the same operations in the same order, so even last digits agree.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation.toolkit import Captions, check_captions

_ORDERS = 4
_SIGMA = 6.0  # of the penalty on a difference in length, in bigrams

Ngram = tuple[str, ...]


class _Counted(NamedTuple):
    """The n-grams of a caption."""

    counts: Mapping[Ngram, int]
    norms: Sequence[float]
    """Of the vectors of n-grams of 1 to 4 words, weighted by count and idf."""
    bigrams: int
    """The toolkit's length of a caption."""


class PreparedReferences:
    """Tokenized reference captions, ready to score candidates against.

    Args:
        references: the captions of each image, as `evaluation.toolkit.tokenize` returns them.

    Raises:
        UserError: no reference has a word.
    """

    def __init__(self, references: Captions) -> None:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider_scorer import cook_refs

        check_captions(references, dict.fromkeys(references, ""))
        self._references = references
        self._bleu = BleuScorer(n=_ORDERS)
        for captions in references.values():
            self._bleu += (None, captions)
        counts = [cook_refs(captions, _ORDERS) for captions in references.values()]
        images_with = Counter(ngram for of_image in counts for ngram in set().union(*of_image))
        log_images = np.log(float(len(references)))
        logs = {n: float(log_images - np.log(float(n))) for n in set(images_with.values())}
        self._idf = {ngram: logs[images] for ngram, images in images_with.items()}
        self._idf_of_others = float(log_images)
        self._counted = [[self._count(of_one) for of_one in of_image] for of_image in counts]

    def score(self, candidates: Mapping[int, str]) -> dict[str, float]:
        """Return CIDEr, Bleu_1 to Bleu_4 and ROUGE_L of one tokenized caption for each image.

        Raises:
            UserError: the image ids differ from those of the references.
        """
        from pycocoevalcap.rouge.rouge import Rouge

        scores = {"CIDEr": self.cider(candidates)}
        # The wrapper around this class does the same, and prints.
        self._bleu.retest([candidates[image] for image in self._references])
        bleu, _ = self._bleu.compute_score(option="closest", verbose=0)
        scores |= {f"Bleu_{n}": float(score) for n, score in enumerate(bleu, 1)}
        lists = {image: [candidates[image]] for image in self._references}
        return scores | {"ROUGE_L": float(Rouge().compute_score(self._references, lists)[0])}

    def cider(self, candidates: Mapping[int, str]) -> float:
        """Return the CIDEr of one tokenized caption for each image; NaN if there is one image.

        Raises:
            UserError: the image ids differ from those of the references.
        """
        from pycocoevalcap.cider.cider_scorer import cook_test

        check_captions(self._references, candidates)
        if len(self._references) == 1:  # every n-gram is in every image, so all weights are 0
            return np.nan
        scores = []
        for image, references in zip(self._references, self._counted, strict=True):
            candidate = self._count(cook_test(candidates[image], _ORDERS))
            total_N = np.zeros(_ORDERS)
            for reference in references:
                total_N += self._likeness(candidate, reference)
            scores.append(total_N.mean() / len(references) * 10.0)
        return float(np.mean(scores))

    def _count(self, counts: Mapping[Ngram, int]) -> _Counted:
        squares, bigrams = [0.0] * _ORDERS, 0
        for ngram, count in counts.items():
            squares[len(ngram) - 1] += pow(self._weight(ngram, count), 2)
            bigrams += count if len(ngram) == 2 else 0
        return _Counted(counts, np.sqrt(squares).tolist(), bigrams)

    def _weight(self, ngram: Ngram, count: int) -> float:
        return count * self._idf.get(ngram, self._idf_of_others)

    def _likeness(self, candidate: _Counted, reference: _Counted) -> list[float]:
        """Return the cosine of two captions' vectors for each order, less for unlike lengths."""
        products = [0.0] * _ORDERS
        for ngram, count in candidate.counts.items():
            if in_reference := reference.counts.get(ngram):
                weight = self._weight(ngram, in_reference)
                products[len(ngram) - 1] += min(self._weight(ngram, count), weight) * weight
        difference = float(candidate.bigrams - reference.bigrams)
        penalty = np.e ** (-(difference**2) / (2 * _SIGMA**2))
        return [
            (product / (own * other) if own and other else product) * penalty
            for product, own, other in zip(products, candidate.norms, reference.norms, strict=True)
        ]
