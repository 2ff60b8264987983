"""Constraints on captions: functions from the captions so far to the words forbidden next.

Each is a `decoder.generation.generate.Forbidden`.

Shape suffixes as in `decoder.generation.generate`; W places in a caption, n words of an n-gram or
of each caption, D distances between words, from 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.generation.generate import Forbidden
from decoder.generation.options import GenerateOptions
from evaluation.diagnostics import BAD_ENDINGS
from pipeline.vocabulary import EOS, PAD, Vocabulary


def constraints(
    options: GenerateOptions, vocabulary: Vocabulary, max_length: int
) -> Forbidden | None:
    """Combine the constraints that `options` choose, or return None if they choose none.

    A caption for which every word is forbidden may end where it is. This can happen only if the
    vocabulary has fewer words that may end a caption than a caption has places.
    """
    rules: list[Forbidden] = []
    if not options.repeat_phrases:
        rules.append(no_repeated_phrase(vocabulary.ids.get("and"), len(vocabulary)))
    if options.no_repeat_ngram:
        rules.append(no_repeated_ngram(options.no_repeat_ngram, len(vocabulary)))
    if options.no_bad_endings:
        bad = [vocabulary.ids[word] for word in BAD_ENDINGS if word in vocabulary.ids]
        rules.append(no_endings(bad, len(vocabulary), max_length))
    if not rules:
        return None

    def forbidden(so_far_Bt: Tensor) -> Tensor:
        mask_BV = torch.stack([rule(so_far_Bt) for rule in rules]).any(0)
        mask_BV[:, 0] &= ~mask_BV.all(1)
        return mask_BV

    return forbidden


def no_repeated_ngram(n: int, words: int) -> Forbidden:
    """Forbid the words that would complete an n-gram that the caption already contains.

    Args:
        n: at least 2.
        words: size of the vocabulary, special words included.
    """

    def forbidden(so_far_Bt: Tensor) -> Tensor:
        if so_far_Bt.shape[1] < n:
            return so_far_Bt.new_zeros((len(so_far_Bt), words - EOS), dtype=torch.bool)
        # If an n-gram begins with the caption's last n - 1 words, its last word is forbidden.
        ngrams_BWn = so_far_Bt.unfold(1, n, 1)
        last_B1n = so_far_Bt[:, None, 1 - n :]
        same_BW = (ngrams_BWn[:, :, :-1] == last_B1n).all(2)
        return _mask(ngrams_BWn[:, :, -1], same_BW, words)

    return forbidden


def no_repeated_phrase(joining: int | None, words: int) -> Forbidden:
    """Forbid the word that would complete an immediate repetition, as in "a hat a hat".

    Args:
        joining: id of a word, such as "and", that may stand between the phrase and its repetition.
        words: size of the vocabulary, special words included.
    """

    def forbidden(so_far_Bt: Tensor) -> Tensor:
        length = so_far_Bt.shape[1]
        if length == 0:
            return so_far_Bt.new_zeros((len(so_far_Bt), words - EOS), dtype=torch.bool)
        # How many of the last words equal the words D places before them.
        before_BDt = F.pad(so_far_Bt, (length, 0), value=-1).unfold(1, length, 1)[:, :length]
        same_BDt = before_BDt == so_far_Bt[:, None]
        run_BD = same_BDt.flip(2).cumprod(2).sum(2).flip(1)
        distance_D = torch.arange(1, length + 1, device=so_far_Bt.device)
        # The word D places before the next one completes a phrase of D words, or of D - 1 words if
        # the joining word stands between.
        last_BD = so_far_Bt.flip(1)
        completes_BD = run_BD >= distance_D - 1
        if joining is not None:
            joined_BD = F.pad(last_BD[:, :-1] == joining, (1, 0))
            completes_BD |= joined_BD & (run_BD >= distance_D - 2)
        return _mask(last_BD, completes_BD & (last_BD > EOS), words)

    return forbidden


def _mask(words_Bn: Tensor, chosen_Bn: Tensor, words: int) -> Tensor:
    """Return the mask [B, V] of the chosen ones of some words of each caption."""
    mask_BV = words_Bn.new_zeros((len(words_Bn), words), dtype=torch.bool)
    # PAD stands for none, because it cannot be generated.
    return mask_BV.scatter_(1, words_Bn.masked_fill(~chosen_Bn, PAD), True)[:, EOS:]


def no_endings(bad: list[int], words: int, max_length: int) -> Forbidden:
    """Forbid empty captions, and captions that end with one of the words `bad`.

    A bad word is also forbidden as the last of `max_length` words, since only EOS can follow it.

    Args:
        bad: the words' ids.
        words: size of the vocabulary, special words included.
        max_length: maximum number of words in a caption.
    """
    is_bad = torch.zeros(words, dtype=torch.bool)
    is_bad[bad] = True

    def forbidden(so_far_Bt: Tensor) -> Tensor:
        nonlocal is_bad
        is_bad = is_bad.to(so_far_Bt.device)  # copied once, for a copy waits
        captions, length = so_far_Bt.shape
        mask_BV = so_far_Bt.new_zeros((captions, words - EOS), dtype=torch.bool)
        if length == max_length - 1:
            mask_BV |= is_bad[EOS:]
        mask_BV[:, 0] = is_bad[so_far_Bt[:, -1]] if length else True
        return mask_BV

    return forbidden
