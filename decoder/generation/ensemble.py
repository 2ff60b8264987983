"""An ensemble of decoders, or of views of each image, that generates one caption together."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from decoder.data.batches import Features
from decoder.model.cells import State
from decoder.model.decoders import Decoder, Memory


class Memories(NamedTuple):
    """The encoded images of each member."""

    of_members: tuple[Memory, ...]

    @property
    def images(self) -> int:
        """Number of images, I."""
        return self.of_members[0].images

    def select(self, index: Tensor) -> "Memories":
        """Return the memories of the images at `index`, in that order."""
        return Memories(tuple(memory.select(index) for memory in self.of_members))


class Ensemble:
    """A `LanguageModel` whose word probabilities are the mean of its members'.

    Each pair of a model and a view is a member. The mean is taken of the probabilities, not of
    their logarithms: a word with probability 0 in one member can still be generated if the others
    give it a high one, and the result needs no renormalisation.

    Args:
        models: decoders that share the vocabulary and the kind of features, in evaluation mode.
        views: number of views of each image.
    """

    def __init__(self, models: Sequence[Decoder], views: int = 1) -> None:
        self.models = models
        self.views = views
        self._members = [model for model in models for _ in range(views)]
        self._tensors: list[int] = []  # number of tensors in each member's state

    def encode(self, features: Features) -> Memories:
        """Compute what does not depend on the words; the views of an image are contiguous."""
        views = [of_view(features, view, self.views) for view in range(self.views)]
        return Memories(tuple(model.encode(view) for model in self.models for view in views))

    def start(self, memory: Memories, rows: int) -> State:
        """Concatenate the members' states before the first word; see `Decoder.start`."""
        each = zip(self._members, memory.of_members, strict=True)
        states = [model.start(of_member, rows) for model, of_member in each]
        self._tensors = [len(state) for state in states]
        return sum(states, start=())

    def next_word(self, words_B: Tensor, memory: Memories, state: State) -> tuple[Tensor, State]:
        """Read a word of each caption; return the log-probability of the next one [B, V]."""
        log_probabilities: list[Tensor] = []
        next_state: list[Tensor] = []
        rest = iter(state)
        for model, of_member, tensors in zip(
            self._members, memory.of_members, self._tensors, strict=True
        ):
            own = tuple(islice(rest, tensors))
            logits_BV, own = model.next_word(words_B, of_member, own)
            log_probabilities.append(logits_BV.log_softmax(-1))
            next_state += own
        divisor = torch.tensor(len(log_probabilities)).log().item()
        return torch.stack(log_probabilities).logsumexp(0) - divisor, tuple(next_state)


def of_view(features: Features, view: int, views: int) -> Features:
    """Return the features of one view of each image, where an image's `views` are contiguous."""
    return features.each(lambda tensor: tensor[view::views])
