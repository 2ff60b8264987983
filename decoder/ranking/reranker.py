"""Choosing among the captions found by what people would write of the picture, and by the picture.

A decoder taught by REINFORCE is sure of few, safe captions, and members of an ensemble agree on
them; the consensus among its own captions can only repeat that. Three judges decide here, each from
another source:

- the other captions found: the consensus of `decoder.ranking.consensus`;
- the captions of all training pictures, as a regression on the picture
(`decoder.ranking.expectation`);
- the joint embedding of `decoder.search`, in which a picture lies near what fits it.

Shape suffixes: I images, V views, C channels, K candidates of each, D of the embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.cider import Frequencies, all_words_encoded
from decoder.data.batches import Features
from decoder.data.readers import SplitReader
from decoder.generation.generate import Generated
from decoder.ranking.consensus import count_frequencies, frequencies_of, own_agreement
from decoder.ranking.embedding import JointEmbedding, embedding_of
from decoder.ranking.expectation import Expectation, ReducedExpectation
from decoder.runs.folder import digest
from features.errors import UserError
from features.store import FeatureStore, fingerprint
from pipeline import captions as tables
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder

# What each judge counts for beside the first: the CIDEr-D from 0 to 10 that a candidate can expect,
# and the cosine of picture and caption. See EXPERIMENTS.md.
BY_EXPECTATION, BY_EMBEDDING = 20.0, 10.0


class Reranker:
    """Orders the candidates of an image.

    Args:
        frequencies: in how many training images each n-gram occurs.
        expectation: what people would write of a picture.
        embedding: of pictures and captions, or None to judge without.
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
        """Return that of a captioner that went out with one, or of a run in its work directory.

        In a work directory the embedding is learnt if it is not there yet.

        Args:
            run: the run or captioner.
            vocabulary: the run's.
            description: of the features that the run was trained on.

        Raises:
            UserError: the captioner's files are damaged; or the work directory, its captions or
                features are missing, or are others.
        """
        features = fingerprint(description)
        reduced = run.expectation
        if reduced.exists():
            frequencies = frequencies_of(run, vocabulary)
            expectation = ReducedExpectation.load(
                reduced, made_of(vocabulary, features), frequencies, description["channels"]
            )
            embedding = None
            if run.embedding.exists():
                embedding = embedding_of(run, run.work, vocabulary, features).model
            return Reranker(frequencies, expectation, embedding)
        table = run.work.captions
        if not (table.exists() and (run.work.features).exists()):
            raise UserError(
                f"--rerank compares with the training pictures and their captions, but "
                f"{run.work.path} has no captions.json and features.h5; use the run where it was "
                "trained, or a captioner that decoder.export --rerank made of it, or --consensus, "
                "which needs neither"
            )
        frequencies = count_frequencies(tables.load(table), vocabulary)
        whole = expectation_of(run, vocabulary, description, frequencies)
        return Reranker(frequencies, whole, embedding_of(run, run.work, vocabulary, features).model)

    def __call__(self, found: Generated, features: Features, views: int, drawn: bool) -> Generated:
        """Return the candidates, the best first.

        Args:
            found: candidates of each image.
            features: of `views` views of each image, which stand together.
            views: V.
            drawn: whether the candidates are samples and not beams.
        """
        own_IK, expected_IK, cosine_IK = self.judge(found, features, views, drawn)
        score_IK = own_IK + BY_EXPECTATION * expected_IK + BY_EMBEDDING * cosine_IK
        return found.best_first(score_IK)

    @torch.inference_mode()
    def judge(
        self, found: Generated, features: Features, views: int, drawn: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the three judges say of each candidate, float64 [I, K]; args as above."""
        pooled_IVC = features.pooled_IC.cpu().unflatten(0, (-1, views))
        expected_IK = self._expectation.cider(found, pooled_IVC.mean(1))
        cosine_IK = torch.zeros_like(expected_IK)
        if self._embedding is not None:
            picture_ID = F.normalize(self._embedding.pictures(pooled_IVC).mean(1))
            sentence_BD = self._embedding.sentences(found.tokens_IKT.cpu().flatten(0, 1))
            sentence_IKD = sentence_BD.unflatten(0, found.log_probability_IK.shape)
            cosine_IK = (sentence_IKD @ picture_ID[:, :, None]).squeeze(2).double()
        own_IK = own_agreement(found, self._frequencies, drawn)
        return own_IK, expected_IK.to(own_IK.device), cosine_IK.to(own_IK.device)


def expectation_of(
    run: RunFolder,
    vocabulary: Vocabulary,
    description: dict[str, Any],
    frequencies: Frequencies,
) -> Expectation:
    """Return what people would write, from the training pictures of the run's work directory.

    Raises:
        UserError: its captions or features are missing, or are others than the run's.
    """
    table, store = tables.load(run.work.captions), FeatureStore(run.work.features)
    store.expect(fingerprint(description), f"the run {run.path}", description)
    # All of them, as they were counted, so that unknown words have the same ids.
    told = [image for image in table.split("train") if image.captions]
    encoded = all_words_encoded(told, vocabulary)
    reader = SplitReader(store, table, "train", grid=False)
    places = [place for place, image in enumerate(reader.images) if image.captions]
    captions = [encoded[reader.images[place].id] for place in places]
    return Expectation(reader.pooled(places), captions, frequencies)


def made_of(vocabulary: Vocabulary, features: str) -> dict[str, str]:
    """Return what an exported expectation belongs to: words, and the features' fingerprint."""
    return {"vocabulary": digest(vocabulary.words), "fingerprint": features}
