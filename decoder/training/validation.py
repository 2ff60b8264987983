"""Validation: the averaged weights write captions, whose scores choose the best weights."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from decoder.data.batches import Features
from decoder.data.layout import filled_up, images_at_once, is_static
from decoder.data.readers import SplitReader
from decoder.generation.constraints import constraints
from decoder.generation.generate import Generated, NotFinite, beam_search
from decoder.generation.options import GenerateOptions
from decoder.model.capture import Graphs
from decoder.model.decoders import Decoder
from decoder.training import distributed
from decoder.training.state import TrainingState
from evaluation.diagnostics import diagnose
from evaluation.validation import Validator
from features.distributed import broadcast, rank, world_size
from pipeline.captions import Image
from pipeline.vocabulary import Vocabulary


class Scores(NamedTuple):
    """Scores of an epoch's validation captions."""

    figures: dict[str, float]
    """Those of `Validator.score` for the captions of the beam search, with the CIDEr of the greedy
    captions as "greedy_CIDEr", and the share of bad endings."""
    tokenizer: str
    """The tokenizer used."""


_NO_SCORES = Scores({}, "")


class Validation:
    """Writes captions of the validation images, as decoder.caption does, and scores them.

    Args:
        state: the training, whose averaged weights are validated.
        images: the validation images.
        validator: scores their captions; in the first process only.
        vocabulary: of the captions.
        beam: width of the beam search whose captions choose the best weights.
        length_penalty: of that search.
        graphs: runs the searches on a GPU.
    """

    def __init__(
        self,
        state: TrainingState,
        images: SplitReader,
        validator: Validator | None,
        vocabulary: Vocabulary,
        beam: int,
        length_penalty: float,
        graphs: Graphs,
    ) -> None:
        self.state = state
        self.images = images
        self.validator = validator
        self.vocabulary = vocabulary
        self.beam = beam
        self.widths = sorted({1, beam})  # 1 is greedy
        self._length_penalty = length_penalty
        self._graphs = graphs
        self.averaged: Decoder | None = None
        """The model with the averaged weights that were validated last, in evaluation mode. It is
        always the same copy, so that a CUDA graph finds its weights."""
        self._thread = ThreadPoolExecutor(1)  # waits for scores; it starts when it is used
        self._forbidden = constraints(GenerateOptions(), vocabulary, vocabulary.max_length)

    @property
    def batch_size(self) -> int:
        """Number of images whose captions are written at once.

        On a GPU, where the last batch is filled up, all batches have about as many.
        """
        device, share = self.state.failed.device, -(-len(self.images) // world_size())
        most = images_at_once(device, self.beam)
        return -(-share // -(-share // most)) if is_static(device) else min(most, share)

    def begin(self) -> None:
        """Start tokenizing the references in the background, if that has not started yet."""
        if self.validator is not None:
            self.validator.begin()

    def run(self, save_if_due: Callable[[], None]) -> Future[Scores]:
        """Write the captions of the averaged weights, and score them.

        Where the validator works `beside` this process, the scores follow later. Meanwhile
        `averaged` holds the weights that they are of.

        Args:
            save_if_due: called after every batch, when the state has its captions.

        Raises:
            UserError: the model's scores are not finite numbers.
        """
        written = self._write_all(save_if_due)
        scores: Future[Scores] = Future()
        if self.validator is None:  # the first process has it
            scores.set_result(broadcast(_NO_SCORES))
            return scores
        self.begin()
        ids = [image.id for image in self.images.images]
        of_width = [dict(zip(ids, texts, strict=True)) for texts in zip(*written, strict=True)]
        if self.validator.beside:
            return self._thread.submit(_scored, self.validator, of_width)
        scores.set_result(broadcast(_scored(self.validator, of_width)))
        return scores

    def close(self) -> None:
        """End what works in the background."""
        if self.validator is not None:
            self.validator.close()

    def _write_all(self, save_if_due: Callable[[], None]) -> list[list[str]]:
        """Return the captions of all validation images; each process writes its share of them."""
        averaged, world, progress = self.averaged_model(), world_size(), self.state.progress
        if world > 1:  # each has other captions, and only the first saves a state
            progress.written = []
        written = progress.written
        size = self.batch_size
        if len(written) < len(self.images):  # a state of another device may end within a batch
            del written[len(written) // size * size :]
        done = -(-len(written) // size)
        shares: list[list[list[str]]] = []
        for images, features in self.images.batches(size, first=done + rank(), step=world):
            shares.append(self.write_captions(averaged, images, features))
            if world == 1:
                written += shares[-1]
                save_if_due()
        if world == 1:
            return written
        return [captions for share in distributed.gather(shares) for captions in share]

    def averaged_model(self) -> Decoder:
        """Return `averaged`, with the present averaged weights."""
        if self.averaged is None:
            self.averaged = copy.deepcopy(self.state.model)
        self.averaged.load_state_dict(self.state.average)
        return self.averaged.eval()

    @torch.inference_mode()
    def write_captions(
        self, model: Decoder, images: list[Image], features: Features
    ) -> list[list[str]]:
        """Return for each image the captions that `model` writes, one for each of `widths`.

        Raises:
            UserError: the model's scores are not finite numbers.
        """
        device = next(model.parameters()).device

        def function(*features: Tensor) -> tuple[Tensor, ...]:
            searches = self._search(model, Features(*features))
            return tuple(tensor for search in searches for tensor in search)

        try:
            if is_static(device):
                filled = filled_up(features.to(device), self.batch_size)
                given = [tensor for tensor in filled if tensor is not None]
                found = iter(self._graphs.run("search", function, given))
                searches = [
                    Generated(tokens, scores).checked()
                    for tokens, scores in zip(found, found, strict=True)
                ]
            else:
                searches = [search.checked() for search in self._search(model, features)]
        except NotFinite as error:
            ids = torch.tensor([image.id for image in images])
            what = f"{error}, in validation,"
            raise self.state.non_finite_error(what, ids, features) from error
        best_tokens = (search.tokens_IKT[: len(images), 0].tolist() for search in searches)
        return [
            [self.vocabulary.decode(tokens) for tokens in of_image]
            for of_image in zip(*best_tokens, strict=True)
        ]

    def _search(self, model: Decoder, features: Features) -> list[Generated]:
        """Return the captions of images by a search of each of `widths`."""
        memory = model.encode(features)
        longest, penalty = self.vocabulary.max_length, self._length_penalty
        return [
            beam_search(model, memory, width, longest, penalty, forbidden=self._forbidden)
            for width in self.widths
        ]


def _scored(validator: Validator, of_width: list[dict[int, str]]) -> Scores:
    """Score captions by image id, of each width; the widest search is the one that counts."""
    best = of_width[-1]
    figures = validator.score(best, of_width[0] if len(of_width) > 1 else None)
    figures.setdefault("greedy_CIDEr", figures["CIDEr"])
    figures["bad_endings"] = diagnose(best.values())["bad_endings"]
    return Scores(figures, validator.tokenizer)
