"""Find pictures for a sentence and captions for a picture, in two passes.

Scoring every pair with the decoder would take minutes a query. So the joint embedding selects the
nearest candidates, and the decoder ranks only these. It scores a pair by how much more probable the
picture makes the caption than other pictures do (pointwise mutual information). Short captions and
common words are probable for any picture, which says nothing about this one.

Shape suffixes: Q queries, K candidates of each query, N images or captions, B pairs, D size of the
embedding.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoder.data.batches import pad
from decoder.data.pictures import backbone_of, features_of
from decoder.data.readers import read_features
from decoder.model.decoders import Memory
from decoder.ranking.embedding import TEMPERATURE
from decoder.ranking.embedding_file import load_or_train
from decoder.ranking.index import SearchedImages
from decoder.ranking.likelihood import log_likelihood
from decoder.ranking.nearest import Nearest, nearest
from decoder.runs.loading import load_decoder
from decoder.runs.packaged import named
from features.commands import SEARCH
from features.errors import UserError, first_few
from features.store import fingerprint as fingerprint_of
from pipeline.caption_database import load, open_features
from pipeline.captions import Caption
from pipeline.text import query_words
from pipeline.vocabulary import UNK
from pipeline.work import RunFolder, WorkFolder

# Number of nearest candidates that the decoder ranks.
CANDIDATES = 50
# Weight of the decoder's log-probability beside the logit of the embedding; see EXPERIMENTS.md.
LIKELIHOOD_WEIGHT = 0.5
# Pairs scored at once, and images encoded at once. They bound the memory.
_PAIRS, _IMAGES = 400, 100


class Found(NamedTuple):
    """A picture that matches a sentence."""

    image_id: int
    file: Path
    score: float
    """The larger, the better. Scores of different queries cannot be compared."""


class FoundCaption(NamedTuple):
    """A caption that matches a picture, and the image that it was written for."""

    text: str
    image_id: int
    score: float


class Ranking(NamedTuple):
    """The best candidates of each query, the best first, as int64 [Q, K]."""

    first: np.ndarray
    """By the embedding alone."""
    second: np.ndarray
    """The same candidates, by embedding and decoder together."""


class Searcher:
    """Searches the pictures and the captions of a work directory.

    Args:
        run: a run, or a captioner exported from one.
        weights: of that run.
        work: the work directory to be searched, with features of the run's backbone.
        device: where the decoder computes.
        split: search the images and captions of this split only.

    Attributes:
        vocabulary: the run's.
        images: the images that are searched, in the order of the caption table.

    Raises:
        UserError: files are missing, damaged or do not belong together; or there are no training
            captions to train the embedding on (see `embedding_file.load_or_train`).
    """

    def __init__(
        self,
        run: RunFolder,
        weights: Path,
        work: WorkFolder,
        device: torch.device,
        split: str | None = None,
    ) -> None:
        if not work.captions.exists():
            raise UserError(
                f"{work.path} is not a work directory: it has no {work.captions.name}; to find "
                f"pictures in a plain folder by words: {SEARCH} --folder {work.path}"
            )
        self._model, self.vocabulary, config = load_decoder(run, weights, device)
        self._device = device
        self._description = config["features"]
        self._table = load(work.captions)
        self._store = open_features(work)
        self._store.expect(fingerprint_of(self._description), named(run.path), self._description)
        self._embedding = load_or_train(run, work, self.vocabulary, self._store.fingerprint)
        self._searched = SearchedImages(work, self._store, self._table, self._embedding, split)
        self.images = self._searched.images
        with torch.inference_mode():
            self._background = self._model.encode(self._embedding.background.to(device))

    @property
    def captions(self) -> list[tuple[Caption, int]]:
        """The captions with at least one known word, each with its image's index in `images`."""
        return [
            (caption, index)
            for index, image in enumerate(self.images)
            for caption in image.captions
            if any(token in self.vocabulary.ids for token in caption.tokens)
        ]

    def unknown(self, sentence: str) -> list[str]:
        """Return the words of a sentence that the vocabulary lacks, which the search ignores."""
        return [word for word in query_words(sentence) if word not in self.vocabulary.ids]

    def find(self, sentence: str, top: int = 10) -> list[Found]:
        """Return the `top` pictures that match a sentence best, the best first.

        Raises:
            UserError: the sentence has no word, or no word of the vocabulary.
        """
        words = query_words(sentence)
        if not words:
            raise UserError("expected a sentence to search for, found no word")
        tokens = self.vocabulary.encode(words)
        if all(token <= UNK for token in tokens[: len(words)]):
            raise UserError(
                f"no word of the sentence is known ({first_few(words)}): each is missing or rare "
                "in the training captions; try more common words"
            )
        ranked, scores = self._rank_images([tokens], self._encode, max(top, CANDIDATES))
        return [
            Found(self.images[i].id, self._table.path(self.images[i]), score)
            for i, score in zip(ranked.second[0, :top], scores[0, :top], strict=True)
        ]

    def find_captions(self, picture: Path, top: int = 10) -> list[FoundCaption]:
        """Return the `top` captions that match a picture best, all distinct, the best first.

        Raises:
            UserError: there are no captions.
            PictureError: the picture cannot be read.
        """
        distinct = {caption.text: (caption, index) for caption, index in self.captions}
        captions = list(distinct.values())
        if not captions:
            raise UserError(
                f"expected captions to search, found none for the {len(self.images)} images; "
                "search a work directory or a split that has captions"
            )
        features = features_of(backbone_of(self._description, self._device), picture)
        with torch.inference_mode():
            vector_1D = self._embedding.model.pictures(features.pooled_IC)
            memory = self._model.encode(features.to(self._device))
        tokens = [self.vocabulary.encode(caption.tokens) for caption, _ in captions]
        candidates = max(top, CANDIDATES)
        ranked, scores = self._rank_captions(tokens, vector_1D, lambda _: memory, candidates)
        return [
            FoundCaption(captions[i][0].text, self.images[captions[i][1]].id, score)
            for i, score in zip(ranked.second[0, :top], scores[0, :top], strict=True)
        ]

    def rank_all(self, progress: Callable[[int], None]) -> tuple[Ranking, Ranking]:
        """Rank the images for every caption, and the captions for every image.

        All encoded images are held in memory, 0.15 MB each at hidden and attention size 384.

        Args:
            progress: called with the number of queries finished since the last call.

        Returns:
            For each of `captions` the indices of the best `images`, and for each of `images` the
            indices of the best `captions`.
        """
        tokens = [self.vocabulary.encode(caption.tokens) for caption, _ in self.captions]
        blocks = np.array_split(np.arange(len(self.images)), -(-len(self.images) // _IMAGES))
        memory = Memory.joined([self._encode(block) for block in blocks])

        def encoded(indices: np.ndarray) -> Memory:
            return memory.select(torch.from_numpy(indices).to(self._device))

        image_ND = self._searched.image_ND.float()
        images, _ = self._rank_images(tokens, encoded, CANDIDATES, progress)
        captions, _ = self._rank_captions(tokens, image_ND, encoded, CANDIDATES, progress)
        return images, captions

    @torch.inference_mode()
    def _encode(self, indices: np.ndarray) -> Memory:
        rows = self._searched.rows(indices)
        features = read_features(self._store, rows, every_region=True)
        return self._model.encode(features.to(self._device))

    def _rank_images(
        self,
        tokens: Sequence[list[int]],
        encode: Callable[[np.ndarray], Memory],
        candidates: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[Ranking, np.ndarray]:
        """Return the ranking of images for each caption, and the second pass's scores."""
        # A caption's mean probability over other pictures is the same for all candidates here, so
        # it cannot change their order.
        found = self._searched.nearest(self._sentences(tokens), candidates)
        evidence_QK = torch.empty_like(found.cosine_QK)
        queries = max(1, _PAIRS // found.index_QK.shape[1])
        for block in torch.arange(len(tokens)).split(queries):
            index_QK = found.index_QK[block]
            indices, image_B = np.unique(index_QK.flatten().numpy(), return_inverse=True)
            captions = [tokens[query] for query in block.tolist() for _ in index_QK[0]]
            given_B = self._log_likelihood(encode(indices), captions, torch.from_numpy(image_B))
            evidence_QK[block] = given_B.view(index_QK.shape)
            progress(len(block))
        return _second_pass(found, evidence_QK)

    def _rank_captions(
        self,
        tokens: Sequence[list[int]],
        image_QD: Tensor,
        encode: Callable[[np.ndarray], Memory],
        candidates: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[Ranking, np.ndarray]:
        """Return the ranking of captions for each image, and the second pass's scores."""
        found = nearest(image_QD, self._sentences(tokens), candidates)
        needed, inverse_QK = found.index_QK.unique(return_inverse=True)
        prior_N = self._log_prior([tokens[i] for i in needed.tolist()])
        evidence_QK = torch.empty_like(found.cosine_QK)
        for query, index_K in enumerate(found.index_QK):
            captions = [tokens[i] for i in index_K.tolist()]
            image_B = torch.zeros(len(captions), dtype=torch.int64)
            given_B = self._log_likelihood(encode(np.array([query])), captions, image_B)
            evidence_QK[query] = given_B - prior_N[inverse_QK[query]]
            progress(1)
        return _second_pass(found, evidence_QK)

    @torch.inference_mode()
    def _sentences(self, tokens: Sequence[list[int]]) -> Tensor:
        blocks = (pad(tokens[i : i + _PAIRS]) for i in range(0, len(tokens), _PAIRS))
        return torch.cat([self._embedding.model.sentences(block) for block in blocks])

    def _log_prior(self, tokens: Sequence[list[int]]) -> Tensor:
        """Return the logarithm of each caption's mean probability over the background images."""
        images = self._background.images
        size = max(1, _PAIRS // images)
        priors = []
        for start in range(0, len(tokens), size):
            block = tokens[start : start + size]
            captions = [caption for _ in range(images) for caption in block]
            image_B = torch.arange(images).repeat_interleave(len(block))
            given_B = self._log_likelihood(self._background, captions, image_B)
            priors.append(given_B.view(images, len(block)).logsumexp(0) - math.log(images))
        return torch.cat(priors)

    def _log_likelihood(
        self, memory: Memory, captions: Sequence[list[int]], image_B: Tensor
    ) -> Tensor:
        tokens_BT = pad(captions).to(self._device)
        return log_likelihood(self._model, memory, tokens_BT, image_B.to(self._device)).cpu()


def _second_pass(found: Nearest, evidence_QK: Tensor) -> tuple[Ranking, np.ndarray]:
    """Sort the candidates by the sum of the embedding's logit and the decoder's evidence."""
    score_QK = found.cosine_QK / TEMPERATURE + LIKELIHOOD_WEIGHT * evidence_QK
    score_QK, order_QK = score_QK.sort(dim=1, descending=True, stable=True)
    second_QK = found.index_QK.gather(1, order_QK)
    return Ranking(found.index_QK.numpy(), second_QK.numpy()), score_QK.numpy()
