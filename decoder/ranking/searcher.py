"""Finding pictures by a sentence and captions by a picture, in two passes.

Scoring every pair with the decoder would take minutes a query. So the joint embedding chooses the
nearest few, and only these are ranked by the decoder: by how much likelier the picture makes the
caption than other pictures do. What is likely whatever the picture (a short caption, plain words)
says nothing about this one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoder.data.batches import Features, pad
from decoder.data.pictures import backbone_of, features_of
from decoder.model.decoders import Memory
from decoder.ranking.embedding import TEMPERATURE, embedding_of
from decoder.ranking.index import image_vectors
from decoder.ranking.likelihood import log_likelihood
from decoder.runs.loading import load_decoder
from features.errors import UserError, first_few
from features.store import FeatureStore
from features.store import fingerprint as fingerprint_of
from pipeline import captions as tables
from pipeline.captions import Caption, Image
from pipeline.text import tokenize
from pipeline.vocabulary import UNK
from pipeline.work import RunFolder, WorkFolder

# So many of the nearest does the decoder look at.
CANDIDATES = 50
# What a nat of the decoder counts for beside one of the embedding (see EXPERIMENTS.md).
LIKELIHOOD = 0.5
_PAIRS = 400
_IMAGES = 100


class Found(NamedTuple):
    """A picture that was found."""

    image_id: int
    file: Path
    score: float
    """The larger the better; to be compared within one search only."""


class FoundCaption(NamedTuple):
    """A caption that was found, and the image that somebody wrote it for."""

    text: str
    image_id: int
    score: float


class Ranking(NamedTuple):
    """For each query its best candidates, best first, as int64 [queries, candidates]."""

    first: np.ndarray
    """By the embedding alone."""
    second: np.ndarray
    """The same candidates, by embedding and decoder together."""


class Searcher:
    """Searches the pictures and the captions of a work directory.

    Args:
        run: a run, or a captioner that was made of one.
        weights: of that run.
        work: the work directory to be searched; its features must be the run's kind.
        device: where the decoder runs.
        split: search the images and captions of this split only.

    Raises:
        UserError: files are missing, damaged or do not belong together, or there is nothing to
            learn the search from (see `search_index.embedding_of`).
    """

    def __init__(
        self,
        run: RunFolder,
        weights: Path,
        work: WorkFolder,
        device: torch.device,
        split: str | None = None,
    ) -> None:
        self._model, self.vocabulary, config = load_decoder(run, weights, device)
        self._device = device
        self._description = config["features"]
        self._table = tables.load(work.captions)
        self._store = FeatureStore(work.features)
        self._store.expect(
            fingerprint_of(self._description), f"the run {run.path}", self._description
        )
        self._embedding = embedding_of(run, work, self.vocabulary, self._store.fingerprint)
        stored = image_vectors(work, self._store, self._embedding)
        place = {int(image_id): n for n, image_id in enumerate(stored.image_ids)}
        images = self._table.images if split is None else self._table.split(split)
        self.images: list[Image] = [image for image in images if image.id in place]
        """Those that can be found, in the order of the caption table."""
        if not self.images:
            raise UserError(
                f"none of the {len(images)} images of {work.path} has features to search by"
            )
        self._image_ND = stored.vectors_ND[[place[image.id] for image in self.images]]
        self._rows = self._store.rows([image.id for image in self.images])
        with torch.inference_mode():
            self._others = self._model.encode(self._embedding.others.to(device))

    @property
    def captions(self) -> list[tuple[Caption, int]]:
        """Every caption that a word of the vocabulary is in, and the place of its image."""
        return [
            (caption, place)
            for place, image in enumerate(self.images)
            for caption in image.captions
            if any(token in self.vocabulary.ids for token in caption.tokens)
        ]

    def unknown(self, sentence: str) -> list[str]:
        """Return the words of a sentence that the vocabulary lacks, which the search leaves out."""
        return [word for word in tokenize(sentence) if word not in self.vocabulary.ids]

    def find(self, sentence: str, top: int = 10) -> list[Found]:
        """Return the `top` pictures that fit a sentence best, the best first.

        Raises:
            UserError: the sentence has no word, or none that the vocabulary has.
        """
        words = tokenize(sentence)
        if not words:
            raise UserError("expected a sentence to search for, found no word")
        tokens = self.vocabulary.encode(words)
        if all(token <= UNK for token in tokens[: len(words)]):
            raise UserError(
                f"none of the words {first_few(words)} is known: they are not in the training "
                "captions, or too seldom; try plainer words"
            )
        (ranked, scores) = self._rank_images([tokens], self._encode, max(top, CANDIDATES))
        return [
            Found(self.images[i].id, self._table.path(self.images[i]), score)
            for i, score in zip(ranked.second[0, :top], scores[0, :top], strict=True)
        ]

    def find_captions(self, picture: Path, top: int = 10) -> list[FoundCaption]:
        """Return the `top` captions that fit a picture best, no text twice, the best first.

        Raises:
            UserError: there are no captions.
            PictureError: the picture cannot be read.
        """
        different = {caption.text: (caption, place) for caption, place in self.captions}
        captions = list(different.values())
        if not captions:
            raise UserError("there are no captions to search among")
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

        All images are encoded first, and kept: 0.15 MB each at hidden and attention size 384.

        Args:
            progress: told of each number of queries that are done.

        Returns:
            The places in `images` for each of `captions`, and those in `captions` for each of
            `images`.
        """
        tokens = [self.vocabulary.encode(caption.tokens) for caption, _ in self.captions]
        blocks = np.array_split(np.arange(len(self.images)), -(-len(self.images) // _IMAGES))
        memory = Memory.joined([self._encode(block) for block in blocks])

        def chosen(places: np.ndarray) -> Memory:
            return memory.select(torch.from_numpy(places).to(self._device))

        images, _ = self._rank_images(tokens, chosen, CANDIDATES, progress)
        captions, _ = self._rank_captions(tokens, self._image_ND, chosen, CANDIDATES, progress)
        return images, captions

    @torch.inference_mode()
    def _encode(self, places: np.ndarray) -> Memory:
        rows = self._rows[places]
        features = Features(
            torch.from_numpy(self._store.grid(rows)), torch.from_numpy(self._store.pooled(rows))
        )
        return self._model.encode(features.to(self._device))

    def _rank_images(
        self,
        tokens: Sequence[list[int]],
        encode: Callable[[np.ndarray], Memory],
        candidates: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[Ranking, np.ndarray]:
        """Return the ranking of images for each caption, and the second pass's scores."""
        # How likely the caption is with other pictures is the same for all: it is left out here.
        nearest = _nearest(self._sentences(tokens), self._image_ND, candidates)
        evidence = torch.empty_like(nearest.cosine_QK)
        each = max(1, _PAIRS // nearest.index_QK.shape[1])
        for block in torch.arange(len(tokens)).split(each):
            index_QK = nearest.index_QK[block]
            places, image_B = np.unique(index_QK.flatten().numpy(), return_inverse=True)
            captions = [tokens[query] for query in block.tolist() for _ in index_QK[0]]
            found_B = self._log_likelihood(encode(places), captions, torch.from_numpy(image_B))
            evidence[block] = found_B.view(index_QK.shape)
            progress(len(block))
        return _second_pass(nearest, evidence)

    def _rank_captions(
        self,
        tokens: Sequence[list[int]],
        image_QD: Tensor,
        encode: Callable[[np.ndarray], Memory],
        candidates: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[Ranking, np.ndarray]:
        """Return the ranking of captions for each image, and the second pass's scores."""
        nearest = _nearest(image_QD, self._sentences(tokens), candidates)
        needed, inverse = nearest.index_QK.unique(return_inverse=True)
        anyway_B = self._with_others([tokens[i] for i in needed.tolist()])
        evidence = torch.empty_like(nearest.cosine_QK)
        for query, index_K in enumerate(nearest.index_QK):
            captions = [tokens[i] for i in index_K.tolist()]
            image_B = torch.zeros(len(captions), dtype=torch.int64)
            found_B = self._log_likelihood(encode(np.array([query])), captions, image_B)
            evidence[query] = found_B - anyway_B[inverse[query]]
            progress(1)
        return _second_pass(nearest, evidence)

    @torch.inference_mode()
    def _sentences(self, tokens: Sequence[list[int]]) -> Tensor:
        blocks = (pad(tokens[i : i + _PAIRS]) for i in range(0, len(tokens), _PAIRS))
        return torch.cat([self._embedding.model.sentences(block) for block in blocks])

    def _with_others(self, tokens: Sequence[list[int]]) -> Tensor:
        """Return the logarithm of each caption's mean probability over other images, [captions]."""
        others = self._others.images
        each = max(1, _PAIRS // others)
        found = []
        for start in range(0, len(tokens), each):
            block = tokens[start : start + each]
            captions = [caption for _ in range(others) for caption in block]
            image_B = torch.arange(others).repeat_interleave(len(block))
            found_B = self._log_likelihood(self._others, captions, image_B)
            found.append(found_B.view(others, len(block)).logsumexp(0) - math.log(others))
        return torch.cat(found)

    def _log_likelihood(
        self, memory: Memory, captions: Sequence[list[int]], image_B: Tensor
    ) -> Tensor:
        tokens_BT = pad(captions).to(self._device)
        return log_likelihood(self._model, memory, tokens_BT, image_B.to(self._device)).cpu()


class _Nearest(NamedTuple):
    index_QK: Tensor
    cosine_QK: Tensor


def _nearest(query_QD: Tensor, among_ND: Tensor, count: int) -> _Nearest:
    """Return the `count` nearest of unit vectors, the nearest first; of few, all."""
    tops: Iterator[tuple[Tensor, Tensor]] = (
        (block @ among_ND.T).topk(min(count, len(among_ND))) for block in query_QD.split(_PAIRS)
    )
    cosine, index = zip(*tops, strict=True)
    return _Nearest(torch.cat(index), torch.cat(cosine))


def _second_pass(nearest: _Nearest, evidence_QK: Tensor) -> tuple[Ranking, np.ndarray]:
    score_QK = nearest.cosine_QK / TEMPERATURE + LIKELIHOOD * evidence_QK
    score_QK, order_QK = score_QK.sort(dim=1, descending=True, stable=True)
    second_QK = nearest.index_QK.gather(1, order_QK)
    return Ranking(nearest.index_QK.numpy(), second_QK.numpy()), score_QK.numpy()
