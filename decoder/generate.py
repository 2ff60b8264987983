"""Writing captions word by word: greedy, beam search and sampling.

Shape suffixes: I images, K captions of each, T words, V words that can be written, L images that
still have an unfinished caption.

All three compute only the images that still have an unfinished caption, and stop with the last one.
No special word but EOS can come out: a decoder has no output for the others.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from decoder.batches import Features
from decoder.models import Decoder, Memory, State
from decoder.options import GenerateOptions
from pipeline.vocabulary import BOS, EOS, PAD


class Generated(NamedTuple):
    """Captions of a batch, for each image the best first (samples in no order)."""

    tokens_IKT: Tensor
    """int64; each caption ends in EOS, unless it was cut off at T, and is padded with PAD."""
    log_probability_IK: Tensor
    """float32, sum over the caption's words."""


@torch.inference_mode()
def generate(
    model: Decoder, features: Features, options: GenerateOptions, max_length: int
) -> Generated:
    """Write captions as `options` ask for, of at most `max_length` words and EOS."""
    memory = model.encode(features)
    if options.sample:
        return sample(
            model, memory, 1, max_length, options.temperature, options.top_k, options.top_p
        )
    return beam_search(model, memory, options.beam, max_length, options.length_penalty)


def greedy(model: Decoder, memory: Memory, max_length: int) -> Generated:
    """Take the most probable word at each step; one caption for each image."""
    return beam_search(model, memory, 1, max_length)


def sample(
    model: Decoder,
    memory: Memory,
    count: int,
    max_length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Generated:
    """Draw `count` captions for each image from the model's distribution.

    Args:
        temperature: divides the logits.
        top_k: draw among the k most probable words only; 0 draws among all.
        top_p: draw among the fewest words whose probability reaches `top_p` (Holtzman et al. 2020).

    Returns:
        The captions; their log-probability is that of the distribution drawn from.
    """
    images = memory.images
    device = memory.gates_IG.device
    tokens_IKT = torch.full((images, count, max_length + 1), PAD, device=device)
    log_probability_IK = torch.zeros(images, count, device=device)
    live_L = torch.arange(images, device=device)
    words_LK = torch.full((images, count), BOS, device=device)
    ended_LK = torch.zeros_like(words_LK, dtype=torch.bool)
    state = model.start(memory, images * count)
    for t in range(max_length + 1):
        logits, state = model.next_word(words_LK.flatten(), memory, state)
        log_probabilities = (_narrow(logits / temperature, top_k, top_p)).log_softmax(-1)
        drawn = torch.multinomial(log_probabilities.exp(), 1)
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
    model: Decoder, memory: Memory, width: int, max_length: int, length_penalty: float = 0.0
) -> Generated:
    """Keep the `width` most probable beginnings of each image's caption.

    A finished caption keeps its place in the beam, so that an image is done once its whole beam is
    finished. With a width of at least the number of possible captions the search is exhaustive.

    Args:
        length_penalty: captions are ranked by log-probability / (number of words and EOS) to the
            power of this; 0 ranks by log-probability, 1 by its mean over the words.
    """
    images = memory.images
    device = memory.gates_IG.device
    words_out = model.output.out_features
    tokens_IKT = torch.full((images, width, max_length + 1), PAD, device=device)
    log_probability_IK = torch.full((images, width), -torch.inf, device=device)

    live_L = torch.arange(images, device=device)
    # Of the live images: the captions so far, their log-probability, whether they are finished.
    tokens_LKT = tokens_IKT.clone()
    score_LK = log_probability_IK.clone()
    score_LK[:, 0] = 0  # the other beams start as copies of the first: they must not compete
    length_LK = torch.zeros_like(score_LK)
    ended_LK = torch.zeros_like(score_LK, dtype=torch.bool)
    words_LK = torch.full((images, width), BOS, device=device)
    state = model.start(memory, images * width)
    choices = min(width, words_out)
    for t in range(max_length + 1):
        logits, state = model.next_word(words_LK.flatten(), memory, state)
        best = logits.topk(choices, dim=1)
        gained = best.values - logits.logsumexp(1, keepdim=True)
        shape = (len(live_L), width, choices)
        score_LKC = score_LK[:, :, None] + gained.view(shape)
        words_LKC = best.indices.view(shape) + EOS
        # A finished caption goes on in one way only: as it is.
        score_LKC[ended_LK] = -torch.inf
        score_LKC[:, :, 0] = torch.where(ended_LK, score_LK, score_LKC[:, :, 0])
        words_LKC = words_LKC.masked_fill(ended_LK[:, :, None], PAD)
        length_LK = torch.where(ended_LK, length_LK, t + 1)
        ranked_LKC = score_LKC / length_LK[:, :, None] ** length_penalty
        choice_LK = ranked_LKC.flatten(1).topk(width, dim=1).indices
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
    return Generated(tokens_IKT, log_probability_IK)


def _images(state: State, going: Tensor) -> State:
    """Return the state of the captions of those images that are going on."""
    return tuple(t.unflatten(0, (len(going), -1))[going].flatten(0, 1) for t in state)


def _reorder(state: State, parent_LK: Tensor, going: Tensor) -> State:
    """Return the state of each beam's parent, for those images that are going on."""
    images, width = parent_LK.shape
    first_row_L1 = torch.arange(images, device=parent_LK.device)[:, None] * width
    rows = (first_row_L1 + parent_LK)[going].flatten()
    return tuple(tensor[rows] for tensor in state)
