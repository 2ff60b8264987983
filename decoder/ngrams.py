"""N-grams of token ids as hashes of 64 bits, and buckets to look them up.

Shape suffixes as in `decoder.cider`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ORDERS = 4
# Multiplier of the polynomial hash of an n-gram: 2 ** 64 / golden ratio, signed. Even in a data set
# of COCO's size the chance that any two n-grams share a hash is 1 in 10 ** 5.
HASH = 0x9E3779B97F4A7C15 - 2**64
_HASH_INVERSE = pow(HASH, -1, 2**64) - 2**64  # also signed


def ngrams(tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hash of the n-gram that starts at each position, and whether there is one.

    Args:
        tokens: int64 [B, T].
        length: int64 [B], number of tokens that are not padding.

    Returns:
        int64 [B, N, T], 0 where no n-gram starts (a hash of 0 is not to be expected); bool.
    """
    position = torch.arange(tokens.shape[1], device=tokens.device)
    keys, real = [], []
    for n in range(1, ORDERS + 1):
        key = torch.full_like(tokens, n)
        for i in range(n):
            key = key * HASH + tokens.roll(-i, dims=1) + 1
        keys.append(key)
        real.append(position + n <= length[:, None])
    is_real = torch.stack(real, 1)
    return torch.stack(keys, 1).mul_(is_real), is_real


def padded(captions: Sequence[list[int]]) -> Tensor:
    """Return captions as one int64 tensor [C, T]; the padding has no meaning."""
    longest = max(map(len, captions))
    return torch.tensor([[*caption, *[0] * (longest - len(caption))] for caption in captions])


def scramble(key: Tensor) -> Tensor:
    """Return keys in which n-grams with the same first words are far from each other."""
    return key * HASH


def unscramble(key: Tensor) -> Tensor:
    """Return the keys from which `scramble` computed these."""
    return key * _HASH_INVERSE


def buckets(key_U: Tensor) -> tuple[Tensor, int]:
    """Divide ascending scrambled keys by their first bits into buckets of at most a few keys.

    Returns:
        int32 [buckets], the number of keys before each bucket; and the size of the fullest one.
    """
    count = 2 << len(key_U).bit_length()
    least_B = (torch.arange(count) - count // 2) << shift(count)
    first_B = torch.searchsorted(key_U, least_B)
    size_B = first_B.diff(append=torch.tensor([len(key_U)]))
    return first_B.int(), int(size_B.max())


def shift(count: int) -> int:
    """Return by how many bits to shift a key of 64 bits to get its bucket of `count`."""
    return 65 - count.bit_length()
