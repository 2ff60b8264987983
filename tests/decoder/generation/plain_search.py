"""Plain beam search: one image, Python lists, every word of every beam tried.

It shares no code with `decoder.generation.generate`; the tests compare the two, beam by beam.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from decoder.data.batches import Features
from decoder.model.decoders import Decoder
from pipeline.vocabulary import BOS, EOS, PAD

NextWord = Callable[[list[int]], Tensor]
"""From the words so far to the log-probability of each next word from EOS on."""


@torch.no_grad()
def next_word(model: Decoder, features: Features, tokens: list[int]) -> Tensor:
    """Compute a `NextWord` of one image by reading the caption from its beginning."""
    memory = model.encode(features)
    state = model.start(memory, 1)
    for word in [BOS, *tokens]:
        logits, state = model.next_word(torch.tensor([word]), memory, state)
    return logits[0].log_softmax(0)


def beams(
    next_words: NextWord,
    width: int,
    longest: int,
    groups: int = 1,
    diversity: float = 0.0,
    length_penalty: float = 0.0,
) -> list[list[tuple[float, list[int]]]]:
    """Return the beams of each group as (log-probability, tokens), the best first."""
    each: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(groups)]
    for length in range(longest + 1):
        taken: list[int] = []
        for group, beam in enumerate(each):
            candidates = []
            for score, tokens in beam:
                if tokens[-1:] == [EOS]:
                    candidates.append((rank(score, tokens, length_penalty), score, tokens))
                    continue
                following = next_words(tokens)
                for w in range(len(following)) if length < longest else [0]:
                    longer = [*tokens, w + EOS]
                    total = score + following[w].item()
                    paid = diversity * taken.count(w + EOS)
                    candidates.append((rank(total, longer, length_penalty) - paid, total, longer))
            kept = sorted(candidates, reverse=True)[: width // groups]
            taken += [tokens[-1] for _, _, tokens in kept if len(tokens) == length + 1]
            each[group] = [(score, tokens) for _, score, tokens in kept]
    for group, beam in enumerate(each):
        each[group] = sorted(beam, key=lambda b: -rank(*b, length_penalty))
    return each


def rank(score: float, tokens: list[int], length_penalty: float) -> float:
    """Return the score that beams are ranked by."""
    return score / len(tokens) ** length_penalty


def stripped(tokens: Tensor) -> list[int]:
    """Return a caption without its padding."""
    return [token for token in tokens.tolist() if token != PAD]
