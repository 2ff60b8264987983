"""Several decoders, or several views of each image, that write one caption together."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from decoder.data.batches import Features
from decoder.model.cells import State
from decoder.model.decoders import Decoder, Memory


class Memories(NamedTuple):
    """What each member keeps of the images."""

    of_members: tuple[Memory, ...]

    @property
    def images(self) -> int:
        """I."""
        return self.of_members[0].images

    def select(self, index: Tensor) -> "Memories":
        """Return the memories of the images at `index`, in that order."""
        return Memories(tuple(memory.select(index) for memory in self.of_members))


class Ensemble:
    """Writes by the mean of its members' word probabilities, as a
    `decoder.generation.generate.Writer`.

    Each model with each view is a member. The mean is that of the probabilities, not of their
    logarithms: a word that one member thinks impossible can still be written if the others are sure
    of it, and the result needs no new normalisation.

    Args:
        models: decoders of one vocabulary and one kind of features, in evaluation mode.
        views: of each image.
    """

    def __init__(self, models: Sequence[Decoder], views: int = 1) -> None:
        self.models = models
        self.views = views
        self._members = [model for model in models for _ in range(views)]
        self._tensors: list[int] = []  # of each member's state; the same at every start

    def encode(self, features: Features) -> Memories:
        """Compute what does not depend on the words; an image's views stand together."""
        views = [of_view(features, view, self.views) for view in range(self.views)]
        return Memories(tuple(model.encode(view) for model in self.models for view in views))

    def start(self, memory: Memories, rows: int) -> State:
        """Return the members' states, one after the other; see `Decoder.start`."""
        each = zip(self._members, memory.of_members, strict=True)
        states = [model.start(of_member, rows) for model, of_member in each]
        self._tensors = [len(state) for state in states]
        return sum(states, start=())

    def next_word(self, words_B: Tensor, memory: Memories, state: State) -> tuple[Tensor, State]:
        """Read a word of each caption; return the log-probability of the next one [B, V]."""
        each: list[Tensor] = []
        next_state: list[Tensor] = []
        rest = iter(state)
        for model, of_member, tensors in zip(
            self._members, memory.of_members, self._tensors, strict=True
        ):
            own = tuple(islice(rest, tensors))
            logits_BV, own = model.next_word(words_B, of_member, own)
            each.append(logits_BV.log_softmax(-1))
            next_state += own
        divisor = torch.tensor(len(each)).log().item()
        return torch.stack(each).logsumexp(0) - divisor, tuple(next_state)


def of_view(features: Features, view: int, views: int) -> Features:
    """Return the features of one view, of images whose views stand together."""
    return Features(*(tensor[view::views] for tensor in features))
