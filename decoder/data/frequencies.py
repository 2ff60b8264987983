"""Document frequencies of n-grams, for CIDEr-D, of captions that are read one after another."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice

import torch
from torch import Tensor

from decoder.cider import Frequencies
from decoder.ngrams import ngrams, padded
from pipeline.captions import Image
from pipeline.vocabulary import EOS, Vocabulary

_BLOCK = 2000  # images whose n-grams are counted at once


def encode_all_words(images: Iterable[Image], vocabulary: Vocabulary) -> list[list[list[int]]]:
    """Return each image's captions as token ids for the reward, each ending in EOS.

    As `decoder.cider.all_words_encoded`, but the id of a word that the vocabulary lacks is a hash
    of it, so that no such word has to be remembered.
    """

    def encode(token: str) -> int:
        known = vocabulary.ids.get(token)
        if known is not None:
            return known
        return len(vocabulary) + int.from_bytes(blake2b(token.encode(), digest_size=6).digest())

    return [[[*map(encode, caption.tokens), EOS] for caption in image.captions] for image in images]


def count_frequencies(images: Iterable[Image], vocabulary: Vocabulary) -> Frequencies:
    """Count the images in whose captions each n-gram occurs.

    The memory is that of the distinct n-grams, about 85 bytes for each at the peak, however many
    images there are; 16 bytes for each that occurs in two images are kept.
    """
    counted = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    waiting: list[tuple[Tensor, Tensor]] = []
    total = 0
    for block in _blocks(images):
        total += len(block)
        keys = ngrams_by_image(encode_all_words(block, vocabulary))
        waiting.append(torch.unique(keys, return_counts=True))
        # Merging costs as much as all that was counted, so it waits until there is as much again.
        if sum(len(key) for key, _ in waiting) > len(counted[0]):
            counted = _sum([counted, *waiting])
            waiting.clear()
    key_U, images_U = _sum([counted, *waiting])
    shared_U = images_U > 1
    return Frequencies(key_U[shared_U], images_U[shared_U], total)


def ngrams_by_image(captions: Sequence[Sequence[list[int]]]) -> Tensor:
    """Return the distinct n-grams of each image's captions, int64, one image after the other."""
    every = [caption for of_image in captions for caption in of_image]
    image_C = torch.arange(len(captions)).repeat_interleave(torch.tensor(list(map(len, captions))))
    key_CNT, real_CNT = ngrams(padded(every), torch.tensor(list(map(len, every))))
    caption, _, _ = real_CNT.nonzero(as_tuple=True)
    key_U, number = key_CNT[real_CNT].unique(return_inverse=True)
    return key_U[(image_C[caption] * len(key_U) + number).unique() % len(key_U)]


def _blocks(images: Iterable[Image]) -> Iterator[Sequence[Image]]:
    images = iter(images)
    while block := list(islice(images, _BLOCK)):
        yield block


def _sum(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return all n-grams of the parts, ascending, and the sums of their counts."""
    key, count = (torch.cat(column) for column in zip(*parts, strict=True))
    key, order = key.sort()
    key_U, repeated_U = key.unique_consecutive(return_counts=True)
    after_U = count[order].cumsum(0)[repeated_U.cumsum(0) - 1]
    return key_U, after_U.diff(prepend=after_U.new_zeros(1))
