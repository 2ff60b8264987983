"""Choosing among the captions found by what people would write of the picture, and by the picture.

A decoder taught by REINFORCE is sure of few, safe captions, and members of an ensemble agree on
them; the consensus among its own captions can only repeat that. Three judges decide here, each from
another source:

- the other captions found: the consensus of `decoder.consensus`;
- the captions of all training pictures, as a regression on the picture (`decoder.expectation`);
- the joint embedding of `decoder.search`, in which a picture lies near what fits it.

Shape suffixes: I images, V views, C channels, K candidates of each, D of the embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.batches import Features, SplitReader
from decoder.consensus import count_frequencies, own_agreement
from decoder.expectation import Expectation
from decoder.generate import Generated
from decoder.reward import all_words_encoded
from decoder.runs import RunFolder
from decoder.search_index import embedding_of
from features.errors import UserError
from features.store import FeatureStore, fingerprint
from pipeline import captions as tables
from pipeline.vocabulary import Vocabulary

# What each judge counts for beside the first: the CIDEr-D from 0 to 10 that a candidate can expect,
# and the cosine of picture and caption. See EXPERIMENTS.md.
BY_EXPECTATION, BY_EMBEDDING = 20.0, 10.0


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
        # All of them, as they were counted, so that unknown words have the same ids.
        told = [image for image in table.split("train") if image.captions]
        encoded = all_words_encoded(told, vocabulary)
        reader = SplitReader(store, table, "train", grid=False)
        places = [place for place, image in enumerate(reader.images) if image.captions]
        captions = [encoded[reader.images[place].id] for place in places]
        self._expectation = Expectation(reader.pooled(places), captions, self._frequencies)

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
        picture_ID = F.normalize(self._embedding.model.pictures(pooled_IVC).mean(1))
        tokens_BT = found.tokens_IKT.cpu().flatten(0, 1)
        sentence_BD = self._embedding.model.sentences(tokens_BT)
        sentence_IKD = sentence_BD.unflatten(0, found.log_probability_IK.shape)
        cosine_IK = (sentence_IKD @ picture_ID[:, :, None]).squeeze(2).double()
        own_IK = own_agreement(found, self._frequencies, drawn)
        return own_IK, expected_IK.to(own_IK.device), cosine_IK.to(own_IK.device)
