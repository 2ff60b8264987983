"""CIDEr-D and BLEU-4 of sampled token ids: the reward of REINFORCE.

No strings and no Java: the references are prepared once as tensors of n-gram numbers, and a batch
of samples is scored by a few tensor operations on the device that the samples are on.

Shape suffixes: S samples, T tokens, N orders (n-grams of 1 to 4 tokens), I images, M references of
an image and W distinct n-grams of an image (the most that any has), C all reference captions,
U distinct n-grams of all, D those of each caption and E those of each image, one after the other,
X places of an image's samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.captions import Image
from pipeline.vocabulary import EOS, PAD, Vocabulary

ORDERS = 4
# Standard deviation, in tokens, of the Gaussian penalty on a difference in length.
SIGMA = 6.0
# Multiplier of the polynomial hash that stands for an n-gram: 2 ** 64 / golden ratio, signed. Two
# n-grams of one data set share a hash with a chance of 1 in 10 ** 5, even at the size of COCO.
HASH = 0x9E3779B97F4A7C15 - 2**64
_HASH_INVERSE = pow(HASH, -1, 2**64) - 2**64  # also signed
_BLOCK = 4000  # captions at once, which bounds the memory


class _Compared(NamedTuple):
    """Samples beside the references of their images."""

    length_S: Tensor
    count_SNT: Tensor
    """uint8, how often the n-gram that starts at a place occurs, 0 if none does."""
    share_SNT: Tensor
    """float64, 1 / count, or 0: with it, a sum over places is one over distinct n-grams."""
    idf_SNT: Tensor
    """float64"""
    reference_length_SM: Tensor
    is_reference_SM: Tensor
    reference_count_SNTM: Tensor
    """uint8, how often each reference has the n-gram that starts at a place of the sample."""
    reference_norm_SNM: Tensor
    """float64, length of each reference's vector of n-grams, each weighted by its count and idf."""


def all_words_encoded(images: list[Image], vocabulary: Vocabulary) -> dict[int, list[list[int]]]:
    """Return each image's captions as token ids for the reward, each ending in EOS.

    Unlike `Vocabulary.encode`, words that the vocabulary lacks get ids of their own, beyond it. No
    sample can hold such an id, so an unknown word never earns reward, while document frequencies
    and lengths stay those of the real captions.
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
    """In how many images' captions an n-gram occurs; those of one image only are not listed."""

    key_U: Tensor
    """int64, ascending: the n-grams, as `_ngrams` numbers them."""
    images_U: Tensor
    """int64, the number of images, at least 2."""
    images: int
    """Of all images."""

    def of(self, key: Tensor) -> Tensor:
        """Return the number of images for each n-gram of `key`, 1 if it is not listed."""
        if len(self.key_U) == 0:
            return torch.ones_like(key)
        place = torch.searchsorted(self.key_U, key).clamp(max=len(self.key_U) - 1)
        return torch.where(self.key_U[place] == key, self.images_U[place], 1)


class References:
    """The n-grams of all reference captions and their document frequencies, as tensors.

    Args:
        references: image id to token-id sequences, each ending in the end token.
        frequencies: document frequencies of other captions, to be taken instead of these.

    Raises:
        ValueError: there is no image, or an image without reference.
    """

    def __init__(
        self, references: dict[int, list[list[int]]], frequencies: Frequencies | None = None
    ) -> None:
        if not references or not all(references.values()):
            raise ValueError("expected at least one image, and a reference for each image")
        captions = [caption for several in references.values() for caption in several]
        per_image = torch.tensor([len(several) for several in references.values()])
        images = len(per_image)
        image_C = torch.arange(images).repeat_interleave(per_image)

        length_C = torch.tensor([len(caption) for caption in captions])
        key_CNT, real_CNT = _ngrams(_filled(captions), length_C)
        self._key, number = _spread(key_CNT[real_CNT]).unique(return_inverse=True)
        self._first_B, self._fullest = _buckets(self._key)
        caption, order, _ = real_CNT.nonzero(as_tuple=True)

        in_image = (number * images + image_C[caption]).unique() // images
        document_frequency = in_image.bincount(minlength=len(self._key))
        of_images = images
        if frequencies is not None:
            document_frequency, of_images = frequencies.of(_gathered(self._key)), frequencies.images
        self._log_images = torch.tensor(of_images, dtype=torch.float64).log()
        self._idf = self._log_images - document_frequency.clamp(min=1).double().log()

        # How often each caption has each n-gram; the captions of an image stand in columns.
        place_C = torch.arange(len(captions)) - (per_image.cumsum(0) - per_image)[image_C]
        most = int(per_image.max())
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
        self._image_ids, self._order_of_ids = torch.tensor(list(references)).sort()

    def to(self, device: torch.device) -> None:
        """Move everything to `device`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    @property
    def frequencies(self) -> Frequencies:
        """The document frequencies, on the CPU."""
        images_U = (self._log_images - self._idf).exp().round().long().cpu()
        several_U = images_U > 1
        key_U, order_U = _gathered(self._key.cpu()[several_U]).sort()
        images = int(self._log_images.exp().round())
        return Frequencies(key_U, images_U[several_U][order_U], images)

    def compare(self, image_ids: Tensor, samples: Tensor, eos: int) -> _Compared:
        """Find the n-grams of `samples` in the references of their images.

        Raises:
            ValueError: an image has no references, or there is not a whole number of samples
                for each image.
        """
        if len(image_ids) == 0 or len(samples) % len(image_ids):
            raise ValueError(f"{len(samples)} samples cannot belong to {len(image_ids)} images")
        if self._key.device != samples.device:
            self.to(samples.device)
        place_I = torch.searchsorted(self._image_ids, image_ids).clamp(max=len(self._image_ids) - 1)
        if not torch.equal(self._image_ids[place_I], image_ids):
            raise ValueError("an image has no references")
        image_I = self._order_of_ids[place_I]
        each = len(samples) // len(image_ids)
        image_S = image_I.repeat_interleave(each)

        steps = samples.shape[1]
        is_end_ST = samples == eos
        first_end_S = torch.where(is_end_ST.any(1), is_end_ST.int().argmax(1), steps - 1)
        length_S = first_end_S + 1
        key_SNT, real_SNT = _ngrams(samples, length_S)
        number_SNT, known_SNT = self._find(_spread(key_SNT))
        idf_SNT = torch.where(known_SNT, self._idf.take(number_SNT), self._log_images)
        number_SNT = number_SNT.int().masked_fill_(~known_SNT, -1)

        # The n-grams of each image of the batch, ascending, and after them numbers beyond all.
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
        return _Compared(
            length_S=length_S,
            count_SNT=count_SNT,
            share_SNT=share_SNT,
            idf_SNT=idf_SNT,
            reference_length_SM=self._length_IM[image_S],
            is_reference_SM=self._length_IM[image_S] > 0,
            reference_count_SNTM=self._count_EM[entry_SNT].mul_(shared_SNT1),
            reference_norm_SNM=self._norm_INM[image_S],
        )

    def _find(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of each n-gram among all, and whether it is one of them."""
        buckets, last = len(self._first_B), len(self._key) - 1
        number = self._first_B.take((key >> _shift(buckets)).add_(buckets // 2)).long()
        for _ in range(self._fullest):
            number += self._key.take(number.clamp_(max=last)) < key
        number.clamp_(max=last)
        return number, self._key.take(number) == key


def _spread(key: Tensor) -> Tensor:
    """Return other keys, among which those of n-grams that begin alike lie far from each other."""
    return key * HASH


def _gathered(key: Tensor) -> Tensor:
    """Return the keys that `_spread` made these of."""
    return key * _HASH_INVERSE


def _buckets(key_U: Tensor) -> tuple[Tensor, int]:
    """Divide spread keys, ascending, by their first bits: a bucket holds one or a few of them.

    Returns:
        int32 [buckets], how many keys come before each bucket, and the size of the fullest one.
    """
    buckets = 2 << len(key_U).bit_length()
    least_B = (torch.arange(buckets) - buckets // 2) << _shift(buckets)
    first_B = torch.searchsorted(key_U, least_B)
    size_B = first_B.diff(append=torch.tensor([len(key_U)]))
    return first_B.int(), int(size_B.max())


def _shift(buckets: int) -> int:
    """Return how many of a key's 64 bits do not tell its bucket."""
    return 65 - buckets.bit_length()


def _occurrences(key_SNT: Tensor, real_SNT: Tensor) -> tuple[Tensor, Tensor]:
    """Return how often the n-gram at a place occurs, as `_Compared.count_SNT`, and `share_SNT`."""
    count_SNT = (key_SNT[..., :, None] == key_SNT[..., None, :]).sum(-1)
    return count_SNT.clamp(max=255).mul_(real_SNT).byte(), real_SNT / count_SNT.double()


def _ngrams(tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hash [B, N, T] of the n-gram that starts at each place, and whether there is one.

    Where none does the hash is 0, which no n-gram is expected to have.

    Args:
        tokens: int64 [B, T].
        length: int64 [B], how many of the tokens count.
    """
    place = torch.arange(tokens.shape[1], device=tokens.device)
    keys, real = [], []
    for n in range(1, ORDERS + 1):
        key = torch.full_like(tokens, n)
        for i in range(n):
            key = key * HASH + tokens.roll(-i, dims=1) + 1
        keys.append(key)
        real.append(place + n <= length[:, None])
    is_real = torch.stack(real, 1)
    return torch.stack(keys, 1).mul_(is_real), is_real


def _filled(captions: Sequence[list[int]]) -> Tensor:
    """Return captions as one tensor [C, T], short ones filled up with anything."""
    longest = max(map(len, captions))
    return torch.tensor([[*caption, *[0] * (longest - len(caption))] for caption in captions])


class NgramVectors(NamedTuple):
    """The distinct n-grams of captions, those of a caption together."""

    key: Tensor
    """int64, the n-gram, as `_ngrams` numbers it."""
    caption: Tensor
    """int64, the caption that has it."""
    value: Tensor
    """float64, count times idf, over the length of the caption's vector of that order: the product
    of two captions' vectors is the sum of their cosines over the orders."""


def ngram_vectors(captions: Sequence[list[int]], frequencies: Frequencies) -> NgramVectors:
    """Return the vectors of n-grams that CIDEr compares.

    Args:
        captions: token ids, at least one in each.
        frequencies: in how many images each n-gram occurs.
    """
    log_images = torch.tensor(frequencies.images, dtype=torch.float64).log()
    parts = []
    for start in range(0, len(captions), _BLOCK):
        block = captions[start : start + _BLOCK]
        length_C = torch.tensor([len(caption) for caption in block])
        key_CNT, real_CNT = _ngrams(_filled(block), length_C)
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
    """Return captions without their padding, but none of them empty."""
    return [[token for token in row if token != PAD] or [EOS] for row in tokens_BT.tolist()]


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, section 4), as the official toolkit computes it.

    The document frequencies are those of the references given, each image being one document.

    Args:
        references: image id to token-id sequences, each ending in the end token; or references
            prepared before, to share their memory.

    Raises:
        ValueError: as `References` does.
    """

    def __init__(self, references: dict[int, list[list[int]]] | References) -> None:
        self.references = (
            references if isinstance(references, References) else References(references)
        )

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        """Score samples on the toolkit's scale, where 10 is a perfect match.

        Args:
            image_ids: int64 [B].
            samples: int64 [B * K, T], K samples for each image, padded after the first `eos`,
                which counts as a token; a row without `eos` counts whole.
            eos: the end token's id.

        Returns:
            float32 [B * K], on the samples' device.

        Raises:
            ValueError: an image has no references, or the sizes do not fit.
        """
        likeness_SM, is_reference_SM = self.likeness(image_ids, samples, eos)
        total_S = likeness_SM.sum(1) / is_reference_SM.sum(1)
        return (10 * total_S).float()

    def likeness(self, image_ids: Tensor, samples: Tensor, eos: int) -> tuple[Tensor, Tensor]:
        """Compare samples with each reference of their images; arguments and errors as above.

        Returns:
            float64 [B * K, M] from 0 to 1, and which references there are: images may have fewer
            than M, and the likeness to those that are not there is 0.
        """
        both = self.references.compare(image_ids, samples, eos)
        square_SNT = both.idf_SNT**2 * both.share_SNT
        shared_SNTM = both.reference_count_SNTM.minimum(both.count_SNT[..., None])
        product_SNTM = shared_SNTM.double().mul_(both.reference_count_SNTM)
        product_SNM = (square_SNT[..., None, :] @ product_SNTM).squeeze(2)
        norm_SN = (square_SNT * both.count_SNT.double() ** 2).sum(-1).sqrt()
        norm_SNM = norm_SN[..., None] * both.reference_norm_SNM
        # Like the toolkit, which leaves the product as it is where a norm is 0: it is 0 there.
        cosine_SNM = product_SNM / norm_SNM.where(norm_SNM > 0, 1)
        # The toolkit's length of a caption is the number of its bigrams.
        difference_SM = (both.length_S - 1)[:, None] - (both.reference_length_SM - 1)
        likeness_SM = cosine_SNM.mean(1) * (-(difference_SM**2) / (2 * SIGMA**2)).exp()
        return likeness_SM * both.is_reference_SM, both.is_reference_SM


class Bleu4:
    """BLEU-4 of each sample (Papineni et al. 2002), as the official toolkit computes a sentence's.

    Args and errors are those of `CiderD`.
    """

    def __init__(self, references: dict[int, list[list[int]]] | References) -> None:
        self.references = (
            references if isinstance(references, References) else References(references)
        )

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        """Score samples from 0 to 1; arguments, result and errors are those of `CiderD`."""
        both = self.references.compare(image_ids, samples, eos)
        correct_SNT = both.count_SNT.minimum(both.reference_count_SNTM.amax(-1))
        correct_SN = (correct_SNT * both.share_SNT).sum(-1)
        order_N = torch.arange(ORDERS, device=samples.device)
        guessed_SN = (both.length_S[:, None] - order_N).clamp(min=0)
        # The toolkit's guards against a division by 0 and the logarithm of 0.
        precision_SN = (correct_SN + 1e-15) / (guessed_SN + 1e-9)
        bleu_S = precision_SN.log().mean(1).exp()
        # Brevity is measured against the reference of nearest length, the shorter of two.
        distance_SM = (both.reference_length_SM - both.length_S[:, None]).abs()
        rank_SM = (2 * distance_SM + (both.reference_length_SM > both.length_S[:, None])).where(
            both.is_reference_SM, torch.iinfo(torch.int64).max
        )
        nearest_S = both.reference_length_SM.gather(1, rank_SM.argmin(1, keepdim=True)).squeeze(1)
        ratio_S = (both.length_S + 1e-15) / (nearest_S + 1e-9)
        return (bleu_S * (1 - 1 / ratio_S).clamp(max=0).exp()).float()
