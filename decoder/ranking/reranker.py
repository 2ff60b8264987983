"""Reranking: choose among the candidate captions of an image by three scores.

A decoder trained with REINFORCE is confident of a few safe captions, and the members of an ensemble
agree on them. The consensus of the candidates (`decoder.ranking.consensus`) can only repeat that.
So two further scores are added to it:

- the CIDEr-D expected from a regression on the training pictures and captions
  (`decoder.ranking.expectation`),
- the cosine of picture and caption in the joint embedding (`decoder.ranking.embedding`).

Shape suffixes: I images, V views, C channels, K candidates of each image, D size of the embedding.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.cider import Frequencies, all_words_encoded
from decoder.data.batches import Features
from decoder.data.frequencies import encode_all_words
from decoder.data.readers import MOST_SAMPLED, SplitReader
from decoder.generation.generate import Generated
from decoder.ranking.consensus import consensus, count_frequencies, frequencies_of
from decoder.ranking.embedding import JointEmbedding
from decoder.ranking.embedding_file import load_or_train, provenance
from decoder.ranking.expectation import Expectation, ReducedExpectation
from decoder.runs.packaged import named
from features.errors import UserError
from features.store import fingerprint
from pipeline.caption_database import SplitImages, load, open_features
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder


class Scores(NamedTuple):
    """The scores of each candidate, float64 [I, K]; the larger, the better."""

    consensus_IK: Tensor
    expectation_IK: Tensor
    cosine_IK: Tensor
    """0 without a joint embedding."""


class Reranker:
    """Sorts the candidates of an image by a weighted sum of the three scores.

    The log-probability may have a small weight, too (see `decoder.ranking.expectation.Weights`).

    Args:
        frequencies: the number of training images in which each n-gram occurs.
        expectation: the regression from pictures to n-grams.
        embedding: of pictures and captions; None leaves out its score.
    """

    def __init__(
        self,
        frequencies: Frequencies,
        expectation: Expectation | ReducedExpectation,
        embedding: JointEmbedding | None,
    ) -> None:
        self._frequencies = frequencies
        self._expectation = expectation
        self._embedding = embedding

    @staticmethod
    def of(run: RunFolder, vocabulary: Vocabulary, description: dict[str, Any]) -> "Reranker":
        """Load the reranker of an exported captioner, or build that of a run in its work directory.

        In a work directory the joint embedding is trained if that has not been done yet.

        Args:
            run: the run or captioner.
            vocabulary: the run's.
            description: of the features that the run was trained on.

        Raises:
            UserError: a file of the captioner is damaged; or the captions or features of the work
                directory are missing, or are not those that the run was trained on.
        """
        features = fingerprint(description)
        if run.expectation.exists():
            frequencies = frequencies_of(run, vocabulary)
            reduced = ReducedExpectation.load(
                run.expectation,
                provenance(vocabulary, features),
                frequencies,
                description["channels"],
            )
            embedding = None
            if run.embedding.exists():
                embedding = load_or_train(run, run.work, vocabulary, features).model
            return Reranker(frequencies, reduced, embedding)
        work = run.work
        if not (work.captions.exists() and work.features.exists()):
            raise UserError(
                f"--rerank compares with the training pictures and their captions, but {work.path} "
                f"does not have both {work.captions.name} and {work.features.name}; use the run in "
                "the work directory where it was trained, export it with decoder.export --rerank, "
                "or use --consensus, which needs no pictures"
            )
        frequencies = count_frequencies(load(work.captions), vocabulary)
        expectation = fit_expectation(run, vocabulary, description, frequencies)
        embedding = load_or_train(run, work, vocabulary, features).model
        return Reranker(frequencies, expectation, embedding)

    def __call__(
        self, candidates: Generated, features: Features, views: int, sampled: bool
    ) -> tuple[Generated, Scores]:
        """Return the candidates of each image, the best first, and their scores in the same order.

        The arguments are those of `scores`.
        """
        scores = self.scores(candidates, features, views, sampled)
        weights = self._expectation.weights
        order_IK = candidates.order_by(
            scores.consensus_IK
            + weights.expectation * scores.expectation_IK
            + weights.cosine * scores.cosine_IK
            + weights.log_probability * candidates.log_probability_IK
        )
        ordered = Scores(*(score_IK.gather(1, order_IK) for score_IK in scores))
        return candidates.reordered(order_IK), ordered

    @torch.inference_mode()
    def scores(
        self, candidates: Generated, features: Features, views: int, sampled: bool
    ) -> Scores:
        """Return the three scores of each candidate.

        Args:
            candidates: captions of each image.
            features: `views` rows for each image, one for each view, contiguous.
            views: V.
            sampled: whether the candidates are samples, not beams.
        """
        pooled_IVC = features.pooled_IC.cpu().unflatten(0, (-1, views))
        expectation_IK = self._expectation.cider(candidates, pooled_IVC.mean(1))
        cosine_IK = torch.zeros_like(expectation_IK)
        if self._embedding is not None:
            picture_ID = F.normalize(self._embedding.pictures(pooled_IVC).mean(1))
            sentence_BD = self._embedding.sentences(candidates.tokens_IKT.cpu().flatten(0, 1))
            sentence_IKD = sentence_BD.unflatten(0, candidates.log_probability_IK.shape)
            cosine_IK = (sentence_IKD @ picture_ID[:, :, None]).squeeze(2).double()
        consensus_IK = consensus(candidates, self._frequencies, sampled)
        device = consensus_IK.device
        return Scores(consensus_IK, expectation_IK.to(device), cosine_IK.to(device))


def fit_expectation(
    run: RunFolder,
    vocabulary: Vocabulary,
    description: dict[str, Any],
    frequencies: Frequencies,
) -> Expectation:
    """Fit the regression to the training pictures and captions of the run's work directory.

    Of shards these are at most `MOST_SAMPLED` pictures.

    Raises:
        UserError: the captions or features are missing, or are not those that the run was trained
            on.
    """
    table, store = load(run.work.captions), open_features(run.work)
    store.expect(fingerprint(description), named(run.path), description)
    reader = SplitReader(store, table, "train", grid=False)
    if isinstance(reader.images, SplitImages):
        chosen = reader.sampled(MOST_SAMPLED)
        of_chosen = encode_all_words(chosen, vocabulary)
        return Expectation(reader.pooled(reader.sample(MOST_SAMPLED)), of_chosen, frequencies)
    # Encode the same images as `count_frequencies`, so that unknown words get the same ids.
    with_captions = [image for image in table.split("train") if image.captions]
    encoded = all_words_encoded(with_captions, vocabulary)
    indices = [index for index, image in enumerate(reader.images) if image.captions]
    captions = [encoded[reader.images[index].id] for index in indices]
    return Expectation(reader.pooled(indices), captions, frequencies)
