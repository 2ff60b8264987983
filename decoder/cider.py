"""CIDEr-D of token ids: the reward of REINFORCE, and the similarity of candidate captions.

No strings and no Java: the references are prepared once as tensors of n-gram numbers, and a batch
of samples is scored by a few tensor operations on the device that the samples are on. On a GPU
these never wait for the host, and their shapes depend on the numbers of images, samples and tokens
and on the data set alone, so a CUDA graph can capture them.

Shape suffixes: S samples, T tokens, N orders (n-grams of 1 to 4 tokens), I images, M references and
W distinct n-grams of an image (the largest numbers of any image), C all reference captions, U
distinct n-grams of all captions, D those of each caption and E those of each image, one after the
other, X positions of an image's samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from decoder.ngrams import ORDERS, buckets, ngrams, padded, scramble, shift, unscramble
from pipeline.captions import Image
from pipeline.vocabulary import EOS, PAD, Vocabulary

# Standard deviation, in tokens, of the Gaussian penalty on a difference in length.
SIGMA = 6.0
_BLOCK = 4000  # captions processed at once, to bound the memory


class Compared(NamedTuple):
    """Samples compared with the references of their images."""

    length_S: Tensor
    count_SNT: Tensor
    """uint8, number of occurrences of the n-gram that starts at each position, 0 if none does."""
    share_SNT: Tensor
    """float64, 1 / count, or 0; with these weights, sums over positions count each n-gram once."""
    idf_SNT: Tensor
    """float64"""
    reference_length_SM: Tensor
    is_reference_SM: Tensor
    reference_count_SNTM: Tensor
    """uint8, number of occurrences in each reference of the n-gram at each position of a sample."""
    reference_norm_SNM: Tensor
    """float64, norm of each reference's vector of n-grams, weighted by count and idf."""


def all_words_encoded(
    images: Sequence[Image], vocabulary: Vocabulary
) -> dict[int, list[list[int]]]:
    """Return each image's captions as token ids for the reward, each ending in EOS.

    Unlike `Vocabulary.encode`, this gives words that the vocabulary lacks their own ids, beyond it.
    No sample can hold such an id, so an unknown word never earns a reward, while document
    frequencies and lengths stay those of the real captions.
    """
    ids = dict(vocabulary.ids)
    return {
        image.id: [
            [ids.setdefault(token, len(ids)) for token in caption.tokens] + [EOS]
            for caption in image.captions
        ]
        for image in images
    }


class Frequencies(NamedTuple):
    """Document frequencies: the number of images whose captions have an n-gram, if at least 2."""

    key_U: Tensor
    """int64, ascending: hashes of the n-grams, from `ngrams`."""
    images_U: Tensor
    """int64, number of images with each n-gram, at least 2."""
    images: int
    """Number of all images."""

    def of(self, key: Tensor) -> Tensor:
        """Return the number of images for each n-gram of `key`, 1 if it is not listed."""
        if len(self.key_U) == 0:
            return torch.ones_like(key)
        index = torch.searchsorted(self.key_U, key).clamp(max=len(self.key_U) - 1)
        return torch.where(self.key_U[index] == key, self.images_U[index], 1)


class References:
    """The n-grams of all reference captions and their document frequencies, as tensors.

    Args:
        references: image id to token-id sequences, each ending in the end token.
        frequencies: document frequencies of other captions, to use instead of those of these.

    Raises:
        ValueError: there is no image, or an image without reference.
    """

    def __init__(
        self, references: dict[int, list[list[int]]], frequencies: Frequencies | None = None
    ) -> None:
        if not references or not all(references.values()):
            raise ValueError("expected at least one image, and a reference for each image")
        captions = [caption for of_image in references.values() for caption in of_image]
        count_I = torch.tensor([len(of_image) for of_image in references.values()])
        images = len(count_I)
        image_C = torch.arange(images).repeat_interleave(count_I)

        length_C = torch.tensor([len(caption) for caption in captions])
        key_CNT, real_CNT = ngrams(padded(captions), length_C)
        self._key, number = scramble(key_CNT[real_CNT]).unique(return_inverse=True)
        self._first_B, self._fullest = buckets(self._key)
        caption, order, _ = real_CNT.nonzero(as_tuple=True)

        in_image = (number * images + image_C[caption]).unique() // images
        document_frequency = in_image.bincount(minlength=len(self._key))
        of_images = images
        self._frequencies = frequencies
        if frequencies is not None:
            document_frequency = frequencies.of(unscramble(self._key))
            of_images = frequencies.images
        self._log_images = torch.tensor(of_images, dtype=torch.float64).log()
        self._idf = self._log_images - document_frequency.clamp(min=1).double().log()

        # Counts of each n-gram in each caption; a column for each of an image's captions.
        place_C = torch.arange(len(captions)) - (count_I.cumsum(0) - count_I)[image_C]
        most = int(count_I.max())
        distinct, count = (number * len(captions) + caption).unique(return_counts=True)
        number_D, caption_D = distinct // len(captions), distinct % len(captions)
        count_D = count.clamp(max=255).double()
        of_image, entry_D = (image_C[caption_D] * len(self._key) + number_D).unique(
            return_inverse=True
        )
        self._number_E = (of_image % len(self._key)).int()
        self._first_E = torch.searchsorted(of_image, torch.arange(images + 1) * len(self._key))
        self._place_W = torch.arange(int(self._first_E.diff().max()))
        self._count_EM = torch.zeros(len(of_image), most, dtype=torch.uint8)
        self._count_EM[entry_D, place_C[caption_D]] = count_D.to(torch.uint8)

        squares = torch.zeros(images, ORDERS, most, dtype=torch.float64)
        order_of_number = torch.zeros_like(self._key)
        order_of_number[number] = order
        at = (image_C[caption_D], order_of_number[number_D], place_C[caption_D])
        squares.index_put_(at, (count_D * self._idf[number_D]) ** 2, accumulate=True)
        self._norm_INM = squares.sqrt()
        self._length_IM = torch.zeros(images, most, dtype=torch.int64)
        self._length_IM[image_C, place_C] = length_C
        self._row_of_id = {image_id: row for row, image_id in enumerate(references)}

    def to(self, device: torch.device) -> None:
        """Move everything to `device`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    @property
    def frequencies(self) -> Frequencies:
        """The document frequencies, on the CPU."""
        images_U = (self._log_images - self._idf).exp().round().long().cpu()
        shared_U = images_U > 1
        key_U, order_U = unscramble(self._key.cpu()[shared_U]).sort()
        images = int(self._log_images.exp().round())
        return Frequencies(key_U, images_U[shared_U][order_U], images)

    def rows(self, image_ids: Tensor, device: torch.device) -> Tensor:
        """Return the rows of images for `compare`, int64 [I] on `device`.

        They are looked up on the host, so image ids on a GPU cost a wait for it. References that
        are elsewhere are moved to `device`.

        Args:
            image_ids: int64 [I].
            device: where the samples are.

        Raises:
            ValueError: an image has no references.
        """
        if self._key.device != device:
            self.to(device)
        try:
            rows = [self._row_of_id[image_id] for image_id in image_ids.tolist()]
        except KeyError as error:
            raise ValueError(f"image {error} has no references") from error
        return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)

    def compare(self, image_I: Tensor, samples: Tensor, eos: int) -> Compared:
        """Look up the n-grams of `samples` in the references of their images.

        Args:
            image_I: int64, the rows of the images, from `rows`.
            samples: as in `Reward.__call__`, on the same device.
            eos: the end token's id.

        Raises:
            ValueError: the number of samples is not a multiple of the number of images.
        """
        if len(image_I) == 0 or len(samples) % len(image_I):
            raise ValueError(f"{len(samples)} samples cannot belong to {len(image_I)} images")
        image_S = image_I.repeat_interleave(len(samples) // len(image_I))

        steps = samples.shape[1]
        is_end_ST = samples == eos
        first_end_S = torch.where(is_end_ST.any(1), is_end_ST.int().argmax(1), steps - 1)
        length_S = first_end_S + 1
        key_SNT, real_SNT = ngrams(samples, length_S)
        number_SNT, known_SNT = self._find(scramble(key_SNT))
        idf_SNT = torch.where(known_SNT, self._idf.take(number_SNT), self._idf_of(key_SNT))
        number_SNT = number_SNT.int().masked_fill_(~known_SNT, -1)

        # The n-grams of each image of the batch, ascending, padded with the largest number.
        entry_IW = self._first_E[image_I][:, None] + self._place_W
        beyond_IW = entry_IW >= self._first_E[image_I + 1][:, None]
        entry_IW = entry_IW.clamp_(max=len(self._number_E) - 1)
        number_IW = self._number_E[entry_IW].masked_fill_(beyond_IW, torch.iinfo(torch.int32).max)
        number_IX = number_SNT.view(len(image_I), -1)
        column_IX = torch.searchsorted(number_IW, number_IX).clamp_(max=number_IW.shape[1] - 1)
        shared_IX = number_IW.gather(1, column_IX) == number_IX
        entry_SNT = entry_IW.gather(1, column_IX).view_as(key_SNT)
        shared_SNT1 = shared_IX.view_as(key_SNT)[..., None]
        count_SNT, share_SNT = _occurrences(key_SNT, real_SNT)
        return Compared(
            length_S=length_S,
            count_SNT=count_SNT,
            share_SNT=share_SNT,
            idf_SNT=idf_SNT,
            reference_length_SM=self._length_IM[image_S],
            is_reference_SM=self._length_IM[image_S] > 0,
            reference_count_SNTM=self._count_EM[entry_SNT].mul_(shared_SNT1),
            reference_norm_SNM=self._norm_INM[image_S],
        )

    def _idf_of(self, key: Tensor) -> Tensor:
        """Return the idf of n-grams that no reference has."""
        if self._frequencies is None:
            return self._log_images
        images = self._frequencies.of(key.to(self._frequencies.key_U.device))
        return self._log_images - images.to(key.device).double().log()

    def _find(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return each n-gram's index among the ascending keys, and whether it is one of them."""
        count, last = len(self._first_B), len(self._key) - 1
        number = self._first_B.take((key >> shift(count)).add_(count // 2)).long()
        for _ in range(self._fullest):
            number += self._key.take(number.clamp_(max=last)) < key
        number.clamp_(max=last)
        return number, self._key.take(number) == key


def _occurrences(key_SNT: Tensor, real_SNT: Tensor) -> tuple[Tensor, Tensor]:
    """Return `Compared.count_SNT` and `Compared.share_SNT`."""
    count_SNT = (key_SNT[..., :, None] == key_SNT[..., None, :]).sum(-1)
    return count_SNT.clamp(max=255).mul_(real_SNT).byte(), real_SNT / count_SNT.double()


class NgramVectors(NamedTuple):
    """The distinct n-grams of captions, one caption after the other."""

    key: Tensor
    """int64, hash of the n-gram, from `ngrams`."""
    caption: Tensor
    """int64, index of the caption."""
    value: Tensor
    """float64, count times idf, divided by the norm of the caption's vector of that order. So the
    dot product of two captions' vectors is the sum of their cosines over the orders."""


def ngram_vectors(captions: Sequence[list[int]], frequencies: Frequencies) -> NgramVectors:
    """Return the vectors of n-grams that CIDEr compares.

    Args:
        captions: token ids, at least one in each caption.
        frequencies: number of images with each n-gram.
    """
    log_images = torch.tensor(frequencies.images, dtype=torch.float64).log()
    parts = []
    for start in range(0, len(captions), _BLOCK):
        block = captions[start : start + _BLOCK]
        length_C = torch.tensor([len(caption) for caption in block])
        key_CNT, real_CNT = ngrams(padded(block), length_C)
        caption, order, _ = real_CNT.nonzero(as_tuple=True)
        keys, number = key_CNT[real_CNT].unique(return_inverse=True)
        row = caption * ORDERS + order
        distinct, count = (row * len(keys) + number).unique(return_counts=True)
        key, row = keys[distinct % len(keys)], distinct // len(keys)
        weight = count * (log_images - frequencies.of(key).double().log())
        square = torch.zeros(len(block) * ORDERS, dtype=torch.float64)
        norm = square.index_add_(0, row, weight**2).sqrt()[row]
        parts.append((key, row // ORDERS + start, weight / norm.where(norm > 0, 1)))
    return NgramVectors(*(torch.cat(part) for part in zip(*parts, strict=True)))


def whole_captions(tokens_BT: Tensor) -> list[list[int]]:
    """Return captions without their padding; an empty one becomes [EOS]."""
    return [[token for token in row if token != PAD] or [EOS] for row in tokens_BT.tolist()]


class Reward:
    """Scores sampled captions by the references of their images.

    Args:
        references: image id to token-id sequences, each ending in the end token; or prepared
            references, to share their memory.

    Raises:
        ValueError: as `References` does.
    """

    def __init__(self, references: dict[int, list[list[int]]] | References) -> None:
        self.references = (
            references if isinstance(references, References) else References(references)
        )

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        """Score samples.

        Args:
            image_ids: int64 [B].
            samples: int64 [B * K, T], K samples for each image, padded after the first `eos`,
                which counts as a token; in a row without `eos` all tokens count.
            eos: the end token's id.

        Returns:
            float32 [B * K], on the samples' device.

        Raises:
            ValueError: an image has no references, or the sizes do not fit.
        """
        return self.score(self.references.rows(image_ids, samples.device), samples, eos)

    def score(self, image_I: Tensor, samples: Tensor, eos: int) -> Tensor:
        """Score samples as `__call__` does, all of it on their device.

        Args:
            image_I: int64 [B], the rows of the images, from `References.rows`.
            samples: as in `__call__`.
            eos: the end token's id.
        """
        return self.of(self.references.compare(image_I, samples, eos))

    def of(self, both: Compared) -> Tensor:
        """Score samples that are compared with their references, float32 [S]."""
        raise NotImplementedError


class CiderD(Reward):
    """CIDEr-D (Vedantam et al. 2015, section 4), as the official toolkit computes it.

    The document frequencies are those of the references; each image is one document. The scale is
    the toolkit's, where 10 is a perfect match. For arguments and errors see `Reward`.
    """

    def of(self, both: Compared) -> Tensor:
        """Score samples that are compared with their references, float32 [S]."""
        total_S = self.likeness(both).sum(1) / both.is_reference_SM.sum(1)
        return (10 * total_S).float()

    def likeness(self, both: Compared) -> Tensor:
        """Return the likeness of samples to each reference of their images.

        Returns:
            float64 [S, M] from 0 to 1. Images may have fewer than M references; the likeness to
            the others is 0.
        """
        square_SNT = both.idf_SNT**2 * both.share_SNT
        shared_SNTM = both.reference_count_SNTM.minimum(both.count_SNT[..., None])
        product_SNTM = shared_SNTM.double().mul_(both.reference_count_SNTM)
        product_SNM = (square_SNT[..., None, :] @ product_SNTM).squeeze(2)
        norm_SN = (square_SNT * both.count_SNT.double() ** 2).sum(-1).sqrt()
        norm_SNM = norm_SN[..., None] * both.reference_norm_SNM
        # Where a norm is 0 the product is 0 too; like the toolkit, do not divide it.
        cosine_SNM = product_SNM / norm_SNM.where(norm_SNM > 0, 1)
        # The toolkit's length of a caption is the number of its bigrams.
        difference_SM = (both.length_S - 1)[:, None] - (both.reference_length_SM - 1)
        likeness_SM = cosine_SNM.mean(1) * (-(difference_SM**2) / (2 * SIGMA**2)).exp()
        return likeness_SM * both.is_reference_SM
