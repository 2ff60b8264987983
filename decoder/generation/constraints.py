"""Constraints on captions: functions from the captions so far to the words forbidden next.

Each is a `decoder.generation.generate.Forbidden`.

Shape suffixes as in `decoder.generation.generate`; W places in a caption, n words of an n-gram.
"""

import torch
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
        mask_BV = so_far_Bt.new_zeros((len(so_far_Bt), words - EOS), dtype=torch.bool)
        if so_far_Bt.shape[1] < n:
            return mask_BV
        # If an n-gram begins with the caption's last n - 1 words, its last word is forbidden.
        ngrams_BWn = so_far_Bt.unfold(1, n, 1)
        last_B1n = so_far_Bt[:, None, 1 - n :]
        caption, place = (ngrams_BWn[:, :, :-1] == last_B1n).all(2).nonzero(as_tuple=True)
        following = ngrams_BWn[caption, place, -1]
        real = following != PAD  # a finished caption is padded
        mask_BV[caption[real], following[real] - EOS] = True
        return mask_BV

    return forbidden


def no_repeated_phrase(joining: int | None, words: int) -> Forbidden:
    """Forbid the word that would complete an immediate repetition, as in "a hat a hat".

    Args:
        joining: id of a word, such as "and", that may stand between the phrase and its repetition.
        words: size of the vocabulary, special words included.
    """

    def forbidden(so_far_Bt: Tensor) -> Tensor:
        mask_BV = so_far_Bt.new_zeros((len(so_far_Bt), words - EOS), dtype=torch.bool)
        length = so_far_Bt.shape[1]
        for gap in (0, 1) if joining is not None else (0,):
            for phrase in range(1, (length + 1 - gap) // 2 + 1):
                # Compare the phrase without its last word to the one before, whose last word is
                # then forbidden.
                begun = length - phrase + 1
                before = begun - phrase - gap
                same_B = (so_far_Bt[:, begun:] == so_far_Bt[:, before : before + phrase - 1]).all(1)
                if gap:
                    same_B &= so_far_Bt[:, begun - 1] == joining
                last_B = so_far_Bt[:, before + phrase - 1]
                caption = (same_B & (last_B > EOS)).nonzero().squeeze(1)
                mask_BV[caption, last_B[caption] - EOS] = True
        return mask_BV

    return forbidden


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
        is_bad_here = is_bad.to(so_far_Bt.device)
        captions, length = so_far_Bt.shape
        mask_BV = so_far_Bt.new_zeros((captions, words - EOS), dtype=torch.bool)
        if length == max_length - 1:
            mask_BV |= is_bad_here[EOS:]
        mask_BV[:, 0] = is_bad_here[so_far_Bt[:, -1]] if length else True
        return mask_BV

    return forbidden
