"""Choosing among the captions found by what people wrote for similar pictures, and by the picture.

A decoder taught by REINFORCE is sure of few, safe captions, and members of an ensemble agree on
them; the consensus among its own captions can only repeat that. Three judges decide here, each from
another source:

- the other captions found: the consensus of `decoder.consensus`;
- the captions of the most similar training pictures, which people wrote (Devlin et al. 2015,
  "Exploring nearest neighbor approaches for image captioning");
- the joint embedding of `decoder.search`, in which a picture lies near what fits it.

Shape suffixes: I images, V views, C channels, K candidates of each image, N training images, D of
the embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.batches import Features
from decoder.consensus import agreement, count_frequencies, own_agreement
from decoder.embedding import TEMPERATURE
from decoder.generate import Generated
from decoder.runs import RunFolder
from decoder.search_index import embedding_of, image_vectors
from features.errors import UserError
from features.store import FeatureStore, fingerprint
from pipeline import captions as tables
from pipeline.vocabulary import Vocabulary

NEIGHBOURS = 30
# What each judge counts for beside the first: of CIDEr-D from 0 to 10 against the neighbours'
# captions, and of the cosine of picture and caption. See EXPERIMENTS.md.
BY_NEIGHBOURS, BY_EMBEDDING = 5.0, 18.0


class Reranker:
    """Orders the candidates of an image; the pictures to compare with are a run's training images.

    Args:
        run: in its work directory; the embedding is learnt there if it is not there yet.
        vocabulary: the run's.
        description: of the features that the run was trained on.

    Raises:
        UserError: the work directory, its captions or features are missing, or are others.
    """

    def __init__(self, run: RunFolder, vocabulary: Vocabulary, description: dict[str, Any]) -> None:
        table_file, store_file = run.work / "captions.json", run.work / "features.h5"
        if not (table_file.exists() and store_file.exists()):
            raise UserError(
                f"--rerank compares with the training pictures and their captions, but "
                f"{run.work} has no captions.json and features.h5; use the run where it was "
                "trained, or --consensus, which needs neither"
            )
        table, store = tables.load(table_file), FeatureStore(store_file)
        store.expect(fingerprint(description), f"the run {run.path}", description)
        self._frequencies = count_frequencies(table, vocabulary)
        self._embedding = embedding_of(run, run.work, vocabulary, fingerprint(description))
        stored = image_vectors(run.work, store, self._embedding)
        place = {int(image_id): n for n, image_id in enumerate(stored.image_ids)}
        known = [image for image in table.split("train") if image.captions and image.id in place]
        self._vector_ND = stored.vectors_ND[[place[image.id] for image in known]]
        self._captions = [
            [vocabulary.encode(caption.tokens) for caption in image.captions] for image in known
        ]

    def __call__(self, found: Generated, features: Features, views: int, drawn: bool) -> Generated:
        """Return the candidates, the best first.

        Args:
            found: candidates of each image.
            features: of `views` views of each image, which stand together.
            views: V.
            drawn: whether the candidates are samples and not beams.
        """
        own_IK, neighbours_IK, embedding_IK = self.judge(found, features, views, drawn)
        score_IK = own_IK + BY_NEIGHBOURS * neighbours_IK + BY_EMBEDDING * embedding_IK
        return found.best_first(score_IK)

    @torch.inference_mode()
    def judge(
        self, found: Generated, features: Features, views: int, drawn: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the three judges say of each candidate, float64 [I, K]; args as above."""
        of_views_BD = self._embedding.model.pictures(features.pooled_IC.cpu())
        picture_ID = F.normalize(of_views_BD.unflatten(0, (-1, views)).mean(1))
        nearest = (picture_ID @ self._vector_ND.T).topk(min(NEIGHBOURS, len(self._vector_ND)))
        captions, weights = [], []
        for places, shares in zip(
            nearest.indices.tolist(),
            (nearest.values / TEMPERATURE).softmax(1).tolist(),
            strict=True,
        ):
            told = [self._captions[place] for place in places]
            captions.append([caption for several in told for caption in several])
            each = zip(shares, told, strict=True)
            weights.append([share / len(several) for share, several in each for _ in several])
        by_neighbours_IK = agreement(found, captions, weights, self._frequencies)
        tokens_BT = found.tokens_IKT.cpu().flatten(0, 1)
        sentence_BD = self._embedding.model.sentences(tokens_BT)
        sentence_IKD = sentence_BD.unflatten(0, found.log_probability_IK.shape)
        cosine_IK = (sentence_IKD @ picture_ID[:, :, None]).squeeze(2).double()
        own_IK = own_agreement(found, self._frequencies, drawn)
        return own_IK, by_neighbours_IK, cosine_IK.to(own_IK.device)
