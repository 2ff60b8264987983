"""Writing captions word by word: greedy, beam search and sampling.

Shape suffixes: I images, K captions of each, B captions of all images, T words, t words so far,
V words that can be written (the vocabulary from EOS on), L images that still have an unfinished
caption, C choices of a caption's next word, G groups of beams.

All three compute only the images that still have an unfinished caption, and stop with the last one.
No special word but EOS can come out: a decoder has no output for the others.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from decoder.data.batches import Features
from decoder.generation.options import GenerateOptions
from decoder.model.cells import State
from features.errors import UserError
from pipeline.vocabulary import BOS, EOS, PAD


class NotFinite(UserError):
    """The decoder's scores are not numbers: its weights or the features hold infinity or NaN."""


class Images(Protocol):
    """What a writer keeps of each image while it writes."""

    @property
    def images(self) -> int:
        """I."""

    def select(self: "M", index: Tensor) -> "M":
        """Return what is kept of the images at `index`, in that order."""


M = TypeVar("M", bound=Images)


class Writer(Protocol[M]):
    """What gives the probability of each next word: a `Decoder`, or several as one `Ensemble`."""

    def encode(self, features: Features) -> M:
        """Compute what does not depend on the words."""

    def start(self, memory: M, rows: int) -> State:
        """Return the state of `rows` captions, those of an image together, before any word."""

    def next_word(self, words_B: Tensor, memory: M, state: State) -> tuple[Tensor, State]:
        """Read one more word of each caption; return the logits of the next one [B, V]."""


Forbidden = Callable[[Tensor], Tensor]
"""Which words may not come next: from the captions so far [B, t], all of them of t words or ended
and padded, to a mask [B, V]. No row may forbid everything."""


class Generated(NamedTuple):
    """Captions of a batch, for each image the best first (samples in no order)."""

    tokens_IKT: Tensor
    """int64, padded with PAD; each caption ends in EOS, but for a sample cut off at its longest."""
    log_probability_IK: Tensor
    """float32, sum over the caption's words; minus infinity for a beam that found none."""

    def best_first(self, score_IK: Tensor) -> "Generated":
        """Return each image's captions by falling score, and beams that found none last."""
        exists_IK = self.log_probability_IK > -torch.inf
        score_IK = score_IK.masked_fill(~exists_IK, -torch.inf)
        return self.reordered(score_IK.argsort(dim=1, descending=True, stable=True))

    def reordered(self, order_IK: Tensor) -> "Generated":
        """Return each image's captions in the order of their places in `order_IK`."""
        order_IKT = order_IK[:, :, None].expand_as(self.tokens_IKT)
        return Generated(
            self.tokens_IKT.gather(1, order_IKT), self.log_probability_IK.gather(1, order_IK)
        )


@torch.inference_mode()
def generate(
    model: Writer[M],
    features: Features,
    options: GenerateOptions,
    max_length: int,
    forbidden: Forbidden | None = None,
) -> Generated:
    """Write captions as `options` ask for, of at most `max_length` words and EOS."""
    memory = model.encode(features)
    if options.sample:
        count = options.samples or options.captions
        drawing = (options.temperature, options.top_k, options.top_p)
        return sample(model, memory, count, max_length, *drawing, forbidden)
    groups = (options.groups, options.diversity)
    return beam_search(
        model, memory, options.width, max_length, options.length_penalty, *groups, forbidden
    )


def greedy(model: Writer[M], memory: M, max_length: int) -> Generated:
    """Take the most probable word at each step; one caption for each image."""
    return beam_search(model, memory, 1, max_length)


def sample(
    model: Writer[M],
    memory: M,
    count: int,
    max_length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    forbidden: Forbidden | None = None,
) -> Generated:
    """Draw `count` captions for each image from the model's distribution.

    A caption that has not ended after `max_length` words is cut off there, without EOS.

    Args:
        temperature: divides the logits.
        top_k: draw among the k most probable words only; 0 draws among all.
        top_p: draw among the fewest words whose probability reaches `top_p` (Holtzman et al. 2020).
        forbidden: words that may not come next; the others' probabilities are made to sum to 1.

    Returns:
        The captions; their log-probability is that of the distribution drawn from.

    Raises:
        NotFinite: the model's scores are not finite numbers.
    """
    images = memory.images
    state = model.start(memory, images * count)
    device = state[0].device
    tokens_IKT = torch.full((images, count, max_length), PAD, device=device)
    log_probability_IK = torch.zeros(images, count, device=device)
    live_L = torch.arange(images, device=device)
    words_LK = torch.full((images, count), BOS, device=device)
    ended_LK = torch.zeros_like(words_LK, dtype=torch.bool)
    for t in range(max_length):
        logits, state = model.next_word(words_LK.flatten(), memory, state)
        if forbidden is not None:
            so_far = tokens_IKT[live_L, :, :t].flatten(0, 1)
            logits = logits.masked_fill(forbidden(so_far), -torch.inf)
        log_probabilities = (_narrow(logits / temperature, top_k, top_p)).log_softmax(-1)
        drawn = draw_words(log_probabilities.exp())[:, None]
        gained_LK = log_probabilities.gather(1, drawn).view_as(words_LK)
        words_LK = (drawn.view_as(words_LK) + EOS).masked_fill(ended_LK, PAD)
        tokens_IKT[live_L, :, t] = words_LK
        log_probability_IK[live_L] += gained_LK.masked_fill(ended_LK, 0)
        ended_LK = ended_LK | (words_LK == EOS)
        going = ~ended_LK.all(1)
        if not going.any():
            break
        if not going.all():
            state = _images(state, going)
            memory = memory.select(going)
            live_L, words_LK, ended_LK = live_L[going], words_LK[going], ended_LK[going]
    return Generated(tokens_IKT, log_probability_IK)


def draw_words(probability_BV: Tensor) -> Tensor:
    """Draw an output from each row of probabilities, int64 [B].

    One random number a row decides, and not one for each word as in torch.multinomial, which on a
    CPU takes thirty times as long.

    Raises:
        NotFinite: a probability is not a finite number.
    """
    sum_BV = probability_BV.cumsum(1)
    whole_B1 = sum_BV[:, -1:]
    _check_numbers(whole_B1)  # one NaN makes the sum NaN
    below_B1 = whole_B1.nextafter(torch.zeros_like(whole_B1))  # to which a product may be rounded
    at_B1 = (torch.rand_like(whole_B1) * whole_B1).minimum(below_B1)
    # The first output whose sum is beyond; so none of probability 0.
    return torch.searchsorted(sum_BV, at_B1, right=True).squeeze(1)


def _narrow(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set all but the `top_k` words, and the fewest that hold `top_p`, to minus infinity."""
    if 0 < top_k < logits.shape[1]:
        smallest = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        falling, order = logits.sort(dim=1, descending=True)
        probabilities = falling.softmax(1)
        # A word goes if those before it already hold enough; so the first always stays.
        spare = probabilities.cumsum(1) - probabilities >= top_p
        logits = logits.masked_fill(spare.scatter(1, order, spare), -torch.inf)
    return logits


def beam_search(
    model: Writer[M],
    memory: M,
    width: int,
    max_length: int,
    length_penalty: float = 0.0,
    groups: int = 1,
    diversity: float = 0.0,
    forbidden: Forbidden | None = None,
) -> Generated:
    """Keep the `width` most probable beginnings of each image's caption.

    A finished caption keeps its place in the beam, so that an image is done once its whole beam is
    finished. With a width of at least the number of possible captions the search is exhaustive.
    After `max_length` words a caption can only end; so one that would stop in mid-air costs what
    its end is worth, and loses to one that is whole.

    Args:
        length_penalty: captions are ranked by log-probability / (number of words and EOS) to the
            power of this; 0 ranks by log-probability, 1 by its mean over the words.
        groups: divide the beam into this many, of `width` / `groups` each, that search one after
            the other at each step (diverse beam search, Vijayakumar et al. 2016). The best of each
            group come first.
        diversity: what a beam pays, when beams are ranked at a step, for a word each time that an
            earlier group chose it at this step (Hamming diversity). Log-probabilities stay the
            model's.
        forbidden: words that may not come next; the others keep their probabilities.

    Raises:
        NotFinite: the model's scores are not finite numbers.
    """
    images = memory.images
    state = model.start(memory, images * width)
    device = state[0].device
    tokens_IKT = torch.full((images, width, max_length + 1), PAD, device=device)
    log_probability_IK = torch.full((images, width), -torch.inf, device=device)

    live_L = torch.arange(images, device=device)
    # Of the live images: the captions so far, their log-probability, whether they are finished.
    tokens_LKT = tokens_IKT.clone()
    score_LK = log_probability_IK.clone()
    # The other beams of a group start as copies of its first: they must not compete.
    score_LK[:, :: width // groups] = 0
    length_LK = torch.zeros_like(score_LK)
    ended_LK = torch.zeros_like(score_LK, dtype=torch.bool)
    words_LK = torch.full((images, width), BOS, device=device)
    for t in range(max_length + 1):
        logits, state = model.next_word(words_LK.flatten(), memory, state)
        log_total = logits.logsumexp(1, keepdim=True)
        if forbidden is not None:
            so_far = tokens_LKT[:, :, :t].flatten(0, 1)
            logits = logits.masked_fill(forbidden(so_far), -torch.inf)
        if t == max_length:
            logits[:, 1:] = -torch.inf  # the first output is EOS
        choices = min(width, logits.shape[1])
        best = logits.topk(choices, dim=1)
        gained = best.values - log_total
        _check_numbers(gained)
        shape = (len(live_L), width, choices)
        score_LKC = score_LK[:, :, None] + gained.view(shape)
        words_LKC = best.indices.view(shape) + EOS
        # A finished caption goes on in one way only: as it is.
        score_LKC[ended_LK] = -torch.inf
        score_LKC[:, :, 0] = torch.where(ended_LK, score_LK, score_LKC[:, :, 0])
        words_LKC = words_LKC.masked_fill(ended_LK[:, :, None], PAD)
        length_LK = torch.where(ended_LK, length_LK, t + 1)
        ranked_LKC = score_LKC / length_LK[:, :, None] ** length_penalty
        choice_LK = _choose(ranked_LKC, words_LKC, groups, diversity)
        parent_LK = choice_LK // choices

        words_LK = words_LKC.flatten(1).gather(1, choice_LK)
        score_LK = score_LKC.flatten(1).gather(1, choice_LK)
        length_LK = length_LK.gather(1, parent_LK)
        tokens_LKT = tokens_LKT.gather(1, parent_LK[:, :, None].expand_as(tokens_LKT))
        tokens_LKT[:, :, t] = words_LK
        ended_LK = ended_LK.gather(1, parent_LK) | (words_LK == EOS)

        # A beam of probability 0 (there were fewer captions than beams) waits for nothing.
        going = ~(ended_LK | (score_LK == -torch.inf)).all(1)
        done = ~going if t < max_length else torch.ones_like(going)
        tokens_IKT[live_L[done]] = tokens_LKT[done]
        log_probability_IK[live_L[done]] = score_LK[done]
        if done.all():
            break
        state = _reorder(state, parent_LK, going)
        if done.any():
            memory, live_L, tokens_LKT = memory.select(going), live_L[going], tokens_LKT[going]
            words_LK, score_LK = words_LK[going], score_LK[going]
            length_LK, ended_LK = length_LK[going], ended_LK[going]
    found = Generated(tokens_IKT, log_probability_IK)
    return found if groups == 1 else _best_of_each_group_first(found, length_penalty, groups)


def _choose(ranked_LKC: Tensor, words_LKC: Tensor, groups: int, diversity: float) -> Tensor:
    """Return which of each image's continuations [K * C] are kept, [L, K], group by group.

    A beam brings its K best words, which is enough: at most K - K / G of them were chosen by
    earlier groups, so even if diversity rules those out, as many are left as the group can keep.
    """
    width, choices = ranked_LKC.shape[1:]
    size = width // groups
    if groups == 1:
        return ranked_LKC.flatten(1).topk(size, dim=1).indices
    choice_LK = words_LKC.new_empty(len(words_LKC), 0)
    earlier_LK = choice_LK
    for first in range(0, width, size):
        ranked_LC = ranked_LKC[:, first : first + size].flatten(1)
        words_LC = words_LKC[:, first : first + size].flatten(1)
        times_LC = (words_LC[:, :, None] == earlier_LK[:, None]).sum(2)
        # A finished caption goes on with no word, which others may do as well.
        times_LC = times_LC.masked_fill(words_LC == PAD, 0)
        best = (ranked_LC - diversity * times_LC).topk(size, dim=1)
        choice_LK = torch.cat((choice_LK, first * choices + best.indices), 1)
        chosen_LK = words_LC.gather(1, best.indices).masked_fill(best.values == -torch.inf, PAD)
        earlier_LK = torch.cat((earlier_LK, chosen_LK), 1)
    return choice_LK


def _best_of_each_group_first(found: Generated, length_penalty: float, groups: int) -> Generated:
    """Order beams by their place in their group, those at the same place by their rank."""
    length_IK = (found.tokens_IKT != PAD).sum(2)
    ranked_IK = found.log_probability_IK / length_IK**length_penalty
    ranked_IGK = ranked_IK.unflatten(1, (groups, -1))
    ranked_IGK, beam_IGK = ranked_IGK.sort(dim=2, descending=True, stable=True)
    group_IGK = ranked_IGK.argsort(dim=1, descending=True, stable=True)
    order_IGK = group_IGK * ranked_IGK.shape[2] + beam_IGK.gather(1, group_IGK)
    return found.reordered(order_IGK.transpose(1, 2).flatten(1))


def _check_numbers(values: Tensor) -> None:
    if values.isnan().any():
        raise NotFinite("the decoder's scores of words are not finite numbers")


def _images(state: State, going: Tensor) -> State:
    """Return the state of the captions of those images that are going on."""
    return tuple(t.unflatten(0, (len(going), -1))[going].flatten(0, 1) for t in state)


def _reorder(state: State, parent_LK: Tensor, going: Tensor) -> State:
    """Return the state of each beam's parent, for those images that are going on."""
    images, width = parent_LK.shape
    first_row_L1 = torch.arange(images, device=parent_LK.device)[:, None] * width
    rows = (first_row_L1 + parent_LK)[going].flatten()
    return tuple(tensor[rows] for tensor in state)
