"""Document frequencies of n-grams, for CIDEr-D, of captions that are read one after another."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decoder.cider import Frequencies
from decoder.ngrams import ngrams, padded, spread
from features.errors import UserError
from features.scratch import scratch_folder
from pipeline.captions import Image
from pipeline.vocabulary import EOS, Vocabulary

_BLOCK = 2000  # images whose n-grams are counted at once
_IN_MEMORY = 2**20  # n-grams that are counted before they are added to those on the disk


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

    The memory is that of the n-grams that occur in two images, 16 bytes for each, and about 100 MB,
    however many others there are: these are counted on the disk of TMPDIR.

    Raises:
        UserError: the disk is full.
    """
    none = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    waiting, total = [none], 0
    with scratch_folder() as folder:
        for block in _blocks(images):
            total += len(block)
            keys = ngrams_by_image(encode_all_words(block, vocabulary))
            waiting.append(torch.unique(keys, return_counts=True))
            if sum(len(key) for key, _ in waiting) > _IN_MEMORY:
                _add_to_disk(folder, _sum(waiting))
                waiting = [none]
        if any(folder.iterdir()):
            _add_to_disk(folder, _sum(waiting))
            parts = [_shared(_on_disk(path)) for path in folder.iterdir()]
        else:
            parts = [_shared(_sum(waiting))]
    key, images_U = (torch.cat(column) for column in zip(*parts, strict=True))
    key_U, order_U = key.sort()
    return Frequencies(key_U, images_U[order_U], total)


def _add_to_disk(folder: Path, counted: tuple[Tensor, Tensor]) -> None:
    """Add n-grams and their counts to files, of which each holds one part of all n-grams."""
    part_U = (spread(counted[0]) >> 56) + 128  # 0 to 255
    pairs_U2 = torch.stack(counted, 1)[part_U.argsort()]
    after = part_U.bincount(minlength=256).cumsum(0)
    try:
        for part, pairs in enumerate(pairs_U2.tensor_split(after[:-1])):
            with (folder / str(part)).open("ab") as file:
                file.write(pairs.numpy().tobytes())
    except OSError as error:
        raise UserError(
            f"cannot write counts of n-grams to {folder}: {error.strerror}; free some space, or "
            "set TMPDIR to a folder on a larger disk"
        ) from error


def _on_disk(path: Path) -> tuple[Tensor, Tensor]:
    """Return the n-grams of a file, and the sums of their counts."""
    key, count = torch.from_numpy(np.fromfile(path, np.int64)).view(-1, 2).T
    return _sum([(key, count)])


def _shared(counted: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the n-grams that occur in two images or more, and their counts."""
    key_U, images_U = counted
    return key_U[images_U > 1], images_U[images_U > 1]


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
