"""Captions word by word: greedy decoding, beam search and sampling.

Shape suffixes: I images, K captions per image, B captions of all images, T words, t words so far,
V words that can be generated (the vocabulary from EOS on), L images that still have an unfinished
caption, C choices of a caption's next word, G groups of beams.

All three compute only the images that still have an unfinished caption, and stop with the last one.
On a GPU all images stay until every caption has ended, or in a CUDA graph to the last step (see
`decoder.data.layout`), with the same captions.
EOS is the only special word that can be generated: a decoder has no output for the others.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from decoder.data.batches import Features
from decoder.data.layout import is_static, may_wait
from decoder.generation.options import GenerateOptions
from decoder.model.cells import State
from features.errors import UserError
from pipeline.vocabulary import BOS, EOS, PAD


class NotFinite(UserError):
    """The decoder's scores are NaN: its weights or the features hold infinity or NaN."""


class EncodedImages(Protocol):
    """What a model computes once for each image, before the first word."""

    @property
    def images(self) -> int:
        """Number of images, I."""

    def select(self: "M", index: Tensor) -> "M":
        """Return the encodings of the images at `index`, in that order."""


M = TypeVar("M", bound=EncodedImages)


class LanguageModel(Protocol[M]):
    """A model of the next word, given the image: a `Decoder`, or several as an `Ensemble`."""

    def encode(self, features: Features) -> M:
        """Compute what does not depend on the words."""

    def start(self, memory: M, rows: int) -> State:
        """Return the state of `rows` captions before their first word, grouped by image."""

    def next_word(self, words_B: Tensor, memory: M, state: State) -> tuple[Tensor, State]:
        """Read one more word of each caption; return the logits of the next one [B, V]."""


Forbidden = Callable[[Tensor], Tensor]
"""The words that may not come next. It takes the captions so far [B, t], padded after their end,
and returns a mask [B, V] that leaves at least one word in each row."""


class Generated(NamedTuple):
    """The captions of a batch of images. Those of a beam search are sorted, the best first."""

    tokens_IKT: Tensor
    """int64, padded with PAD. Each caption ends with EOS, except a sample cut off at `max_length`.
    """
    log_probability_IK: Tensor
    """float32, the sum over the caption's words and EOS; minus infinity for an unused beam, NaN
    if the model's scores were."""

    def checked(self) -> "Generated":
        """Return the captions.

        Raises:
            NotFinite: a log-probability is NaN.
        """
        _expect_numbers(self.log_probability_IK)
        return self

    def best_first(self, score_IK: Tensor) -> "Generated":
        """Sort each image's captions by falling score, with unused beams last."""
        return self.reordered(self.order_by(score_IK))

    def order_by(self, score_IK: Tensor) -> Tensor:
        """Return the order of each image's captions by falling score, int64 [I, K]; see above."""
        exists_IK = self.log_probability_IK > -torch.inf
        score_IK = score_IK.masked_fill(~exists_IK, -torch.inf)
        return score_IK.argsort(dim=1, descending=True, stable=True)

    def reordered(self, order_IK: Tensor) -> "Generated":
        """Return the captions in another order: `order_IK[i, k]` of each image i at position k."""
        order_IKT = order_IK[:, :, None].expand_as(self.tokens_IKT)
        return Generated(
            self.tokens_IKT.gather(1, order_IKT), self.log_probability_IK.gather(1, order_IK)
        )


@torch.inference_mode()
def generate(
    model: LanguageModel[M],
    features: Features,
    options: GenerateOptions,
    max_length: int,
    forbidden: Forbidden | None = None,
) -> Generated:
    """Generate captions of at most `max_length` words and EOS by the method that `options` choose.

    Raises:
        NotFinite: the model's scores are not finite numbers.
    """
    memory = model.encode(features)
    if options.sample:
        generated = sample(
            model,
            memory,
            options.samples or options.captions,
            max_length,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            forbidden=forbidden,
        )
    else:
        generated = beam_search(
            model,
            memory,
            options.width,
            max_length,
            length_penalty=options.length_penalty,
            groups=options.groups,
            diversity=options.diversity,
            forbidden=forbidden,
        )
    return generated.checked()


def greedy(model: LanguageModel[M], memory: M, max_length: int) -> Generated:
    """Take the most probable word at each step; one caption for each image."""
    return beam_search(model, memory, 1, max_length)


def sample(
    model: LanguageModel[M],
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
        top_k: draw only from the k most probable words; 0 draws from all.
        top_p: draw only from the fewest words whose probabilities sum to at least `top_p` (nucleus
            sampling, Holtzman et al. 2020).
        forbidden: the words that may not come next; the other probabilities are renormalised.

    Returns:
        The captions; their log-probabilities are those of the distribution they were drawn from.

    Raises:
        NotFinite: the model's scores are not finite numbers; on a CPU only.
    """
    images = memory.images
    state = model.start(memory, images * count)
    device = state[0].device
    static = is_static(device)
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
        log_probabilities = _truncated(logits / temperature, top_k, top_p).log_softmax(-1)
        drawn = draw_words(log_probabilities.exp())[:, None]
        gained_LK = log_probabilities.gather(1, drawn).view_as(words_LK)
        words_LK = (drawn.view_as(words_LK) + EOS).masked_fill(ended_LK, PAD)
        tokens_IKT[live_L, :, t] = words_LK
        log_probability_IK[live_L] += gained_LK.masked_fill(ended_LK, 0)
        ended_LK = ended_LK | (words_LK == EOS)
        if static:
            if _all_ended(ended_LK, t):
                break
            continue
        going = ~ended_LK.all(1)
        if not going.any():
            break
        if not going.all():
            state = _unfinished(state, going)
            memory = memory.select(going)
            live_L, words_LK, ended_LK = live_L[going], words_LK[going], ended_LK[going]
    return Generated(tokens_IKT, log_probability_IK)


def draw_words(probability_BV: Tensor) -> Tensor:
    """Draw an output from each row of probabilities, int64 [B].

    On a CPU it draws one random number for each row. torch.multinomial draws one for each word,
    which takes thirty times as long there, but on a GPU less than the sums: of words that arrive
    after exponential times, at the rates of their probabilities, the first one is drawn.

    Raises:
        NotFinite: a probability is not a finite number; on a CPU only.
    """
    if is_static(probability_BV.device):
        time_BV = torch.empty_like(probability_BV).exponential_()
        least = torch.finfo(time_BV.dtype).tiny  # 0 / 0 is not a number
        return (probability_BV / time_BV.clamp_(min=least)).argmax(1)
    sum_BV = probability_BV.cumsum(1)
    total_B1 = sum_BV[:, -1:]
    _expect_numbers(total_B1)  # one NaN makes the sum NaN
    # The product may be rounded up to the total, which lies beyond the last output.
    below_B1 = total_B1.nextafter(torch.zeros_like(total_B1))
    at_B1 = (torch.rand_like(total_B1) * total_B1).minimum(below_B1)
    # The first output whose cumulative sum is greater: never one of probability 0.
    return torch.searchsorted(sum_BV, at_B1, right=True).squeeze(1)


def _truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set the logits of words outside the top k or the nucleus to minus infinity."""
    if 0 < top_k < logits.shape[1]:
        smallest = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        falling, order = logits.sort(dim=1, descending=True)
        probabilities = falling.softmax(1)
        # A word is dropped if those before it already reach top_p, so the first always stays.
        spare = probabilities.cumsum(1) - probabilities >= top_p
        logits = logits.masked_fill(spare.scatter(1, order, spare), -torch.inf)
    return logits


def beam_search(
    model: LanguageModel[M],
    memory: M,
    width: int,
    max_length: int,
    length_penalty: float = 0.0,
    groups: int = 1,
    diversity: float = 0.0,
    forbidden: Forbidden | None = None,
) -> Generated:
    """Keep the `width` most probable beginnings of each image's caption.

    A finished caption keeps its place in the beam, and an image is done once its beam holds only
    finished captions. A width of at least the number of possible captions searches exhaustively.
    After `max_length` words a caption can only end, and its score includes the probability of EOS:
    a caption cut off in mid-sentence therefore loses to a complete one.

    Args:
        length_penalty: captions are ranked by log-probability / length ** length_penalty, where the
            length counts EOS; 0 ranks by log-probability, 1 by its mean over the words.
        groups: divide the beam into this number of groups of `width` / `groups` beams, which search
            one after the other at each step (diverse beam search, Vijayakumar et al. 2016). The
            best caption of each group comes first.
        diversity: subtracted from a word's score each time an earlier group chose the same word at
            this step (Hamming diversity). It affects the ranking only, not the log-probabilities.
        forbidden: the words that may not come next; the others keep their probabilities.

    Returns:
        `width` captions for each image. A beam is unused if fewer captions than beams exist.
    """
    images = memory.images
    state = model.start(memory, images * width)
    device = state[0].device
    static = is_static(device)
    tokens_IKT = torch.full((images, width, max_length + 1), PAD, device=device)
    log_probability_IK = torch.full((images, width), -torch.inf, device=device)

    live_L = torch.arange(images, device=device)
    # For the live images: the captions so far, log-probability, length, whether they ended.
    tokens_LKT = tokens_IKT.clone()
    score_LK = log_probability_IK.clone()
    # The beams of a group start as copies of its first one, so only the first may compete.
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
        shape = (len(live_L), width, choices)
        score_LKC = score_LK[:, :, None] + (best.values - log_total).view(shape)
        words_LKC = best.indices.view(shape) + EOS
        # A finished caption has a single continuation: itself.
        score_LKC = score_LKC.masked_fill(ended_LK[:, :, None], -torch.inf)
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
        # Nothing needs to wait for an unused beam (fewer captions than beams).
        finished_LK = ended_LK | (score_LK == -torch.inf)
        if static:
            if _all_ended(finished_LK, t):
                break
            state = _of_parents(state, parent_LK)
            continue

        going = ~finished_LK.all(1)
        done = ~going if t < max_length else torch.ones_like(going)
        tokens_IKT[live_L[done]] = tokens_LKT[done]
        log_probability_IK[live_L[done]] = score_LK[done]
        if done.all():
            break
        state = _of_parents(state, parent_LK, going)
        if done.any():
            memory, live_L, tokens_LKT = memory.select(going), live_L[going], tokens_LKT[going]
            words_LK, score_LK = words_LK[going], score_LK[going]
            length_LK, ended_LK = length_LK[going], ended_LK[going]
    if static:
        tokens_IKT, log_probability_IK = tokens_LKT, score_LK
    beams = Generated(tokens_IKT, log_probability_IK)
    return beams if groups == 1 else _best_of_each_group_first(beams, length_penalty, groups)


def _choose(ranked_LKC: Tensor, words_LKC: Tensor, groups: int, diversity: float) -> Tensor:
    """Choose the continuations to keep, int64 [L, K], among K * C of each image, group by group.

    The K best words of a beam are enough: earlier groups chose at most K - K / G of them. Even if
    diversity rules those out, K / G are left, which is the size of a group.
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
        # The padding of a finished caption is not a word and costs nothing.
        times_LC = times_LC.masked_fill(words_LC == PAD, 0)
        best = (ranked_LC - diversity * times_LC).topk(size, dim=1)
        choice_LK = torch.cat((choice_LK, first * choices + best.indices), 1)
        chosen_LK = words_LC.gather(1, best.indices).masked_fill(best.values == -torch.inf, PAD)
        earlier_LK = torch.cat((earlier_LK, chosen_LK), 1)
    return choice_LK


def _best_of_each_group_first(beams: Generated, length_penalty: float, groups: int) -> Generated:
    """Order beams by their rank in their group, and those of the same rank by their score."""
    length_IK = (beams.tokens_IKT != PAD).sum(2)
    ranked_IK = beams.log_probability_IK / length_IK**length_penalty
    ranked_IGK = ranked_IK.unflatten(1, (groups, -1))
    ranked_IGK, beam_IGK = ranked_IGK.sort(dim=2, descending=True, stable=True)
    group_IGK = ranked_IGK.argsort(dim=1, descending=True, stable=True)
    order_IGK = group_IGK * ranked_IGK.shape[2] + beam_IGK.gather(1, group_IGK)
    return beams.reordered(order_IGK.transpose(1, 2).flatten(1))


def _all_ended(ended_LK: Tensor, t: int) -> bool:
    """Return whether all captions are known to have ended; every fourth step waits to know it."""
    return t % 4 == 3 and may_wait() and bool(ended_LK.all())


def _expect_numbers(values: Tensor) -> None:
    if values.isnan().any():
        raise NotFinite("the decoder's scores of words are not finite numbers")


def _unfinished(state: State, going: Tensor) -> State:
    """Return the state of the captions of the images that are not finished."""
    return tuple(t.unflatten(0, (len(going), -1))[going].flatten(0, 1) for t in state)


def _of_parents(state: State, parent_LK: Tensor, going: Tensor | None = None) -> State:
    """Return the state of each beam's parent, for all images or those that are not finished."""
    images, width = parent_LK.shape
    first_row_L1 = torch.arange(images, device=parent_LK.device)[:, None] * width
    rows_LK = first_row_L1 + parent_LK
    rows = (rows_LK if going is None else rows_LK[going]).flatten()
    return tuple(tensor[rows] for tensor in state)
