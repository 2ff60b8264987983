"""CIDEr-D and BLEU-4 of sampled token ids: the reward of REINFORCE.

No strings and no Java: the references are prepared once as tensors of n-gram numbers, and a batch
of samples is scored by a few tensor operations on the device that the samples are on.

Shape suffixes: S samples, T tokens, N orders (n-grams of 1 to 4 tokens), M references of an image,
U distinct n-grams of a reference, C all reference captions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.captions import Image
from pipeline.vocabulary import EOS, Vocabulary

ORDERS = 4
# Standard deviation, in tokens, of the Gaussian penalty on a difference in length.
SIGMA = 6.0
# Multiplier of the polynomial hash that stands for an n-gram: 2 ** 64 / golden ratio, signed. Two
# n-grams of one data set share a hash with a chance of 1 in 10 ** 5, even at the size of COCO.
HASH = 0x9E3779B97F4A7C15 - 2**64


class _Compared(NamedTuple):
    """Samples beside the references of their images; counts are float64."""

    length_S: Tensor
    count_SNT: Tensor
    """How often the n-gram that starts at a place occurs; 0 where it occurred before."""
    idf_SNT: Tensor
    reference_length_SM: Tensor
    is_reference_SM: Tensor
    reference_count_SMNU: Tensor
    reference_idf_SMNU: Tensor
    same_SMNTU: Tensor
    """Whether a reference's n-gram is the sample's; of no two places T of one sample."""


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
        longest = int(length_C.max())
        tokens_CT = torch.tensor([[*c, *[0] * (longest - len(c))] for c in captions])
        key_CNT, real_CNT = _ngrams(tokens_CT, length_C)
        self._key, number = key_CNT[real_CNT].unique(return_inverse=True)
        caption, order, _ = real_CNT.nonzero(as_tuple=True)

        in_image = (number * images + image_C[caption]).unique() // images
        document_frequency = in_image.bincount(minlength=len(self._key))
        of_images = images
        if frequencies is not None:
            document_frequency, of_images = frequencies.of(self._key), frequencies.images
        self._log_images = torch.tensor(of_images, dtype=torch.float64).log()
        self._idf = self._log_images - document_frequency.clamp(min=1).log()

        # The distinct n-grams of each caption and order, and how often each occurs there.
        group = caption * ORDERS + order
        distinct, count = (group * len(self._key) + number).unique(return_counts=True)
        group = distinct // len(self._key)
        first_of_group = torch.searchsorted(group, group)
        place = torch.arange(len(group)) - first_of_group
        # One more caption, empty, stands in where an image has fewer references than others.
        size = (len(captions) + 1, ORDERS, int(place.max()) + 1)
        self._number_CNU = torch.full(size, -1, dtype=torch.int32)
        self._count_CNU = torch.zeros(size, dtype=torch.uint8)
        at = (group // ORDERS, group % ORDERS, place)
        self._number_CNU[at] = (distinct % len(self._key)).int()
        self._count_CNU[at] = count.clamp(max=255).to(torch.uint8)
        self._length_C = torch.cat((length_C, length_C.new_zeros(1)))

        place_in_image = torch.arange(len(captions)) - (per_image.cumsum(0) - per_image)[image_C]
        self._captions_of_image = torch.full((images, int(per_image.max())), len(captions))
        self._captions_of_image[image_C, place_in_image] = torch.arange(len(captions))
        ids, order_of_ids = torch.tensor(list(references)).sort()
        self._image_ids = ids
        self._captions_of_image = self._captions_of_image[order_of_ids]

    def to(self, device: torch.device) -> None:
        """Move everything to `device`."""
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))

    @property
    def frequencies(self) -> Frequencies:
        """The document frequencies, on the CPU."""
        images_U = (self._log_images - self._idf).exp().round().long().cpu()
        several_U = images_U > 1
        images = int(self._log_images.exp().round())
        return Frequencies(self._key.cpu()[several_U], images_U[several_U], images)

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
        row = torch.searchsorted(self._image_ids, image_ids).clamp(max=len(self._image_ids) - 1)
        if not torch.equal(self._image_ids[row], image_ids):
            raise ValueError("an image has no references")
        captions_SM = self._captions_of_image[row].repeat_interleave(
            len(samples) // len(image_ids), 0
        )

        steps = samples.shape[1]
        is_end_ST = samples == eos
        first_end_S = torch.where(is_end_ST.any(1), is_end_ST.int().argmax(1), steps - 1)
        length_S = first_end_S + 1
        key_SNT, real_SNT = _ngrams(samples, length_S)
        same = key_SNT[..., :, None] == key_SNT[..., None, :]
        same &= real_SNT[..., :, None] & real_SNT[..., None, :]
        seen_before = same.tril(-1).any(-1)
        count_SNT = same.sum(-1).masked_fill(seen_before, 0).double()
        number_SNT = torch.searchsorted(self._key, key_SNT).clamp(max=len(self._key) - 1)
        known_SNT = (self._key[number_SNT] == key_SNT) & real_SNT
        idf_SNT = torch.where(known_SNT, self._idf[number_SNT], self._log_images)
        number_SNT = number_SNT.int().masked_fill(~known_SNT | seen_before, -2)

        number_SMNU = self._number_CNU[captions_SM]
        return _Compared(
            length_S=length_S,
            count_SNT=count_SNT,
            idf_SNT=idf_SNT,
            reference_length_SM=self._length_C[captions_SM],
            is_reference_SM=captions_SM < len(self._length_C) - 1,
            reference_count_SMNU=self._count_CNU[captions_SM].double(),
            reference_idf_SMNU=self._idf[number_SMNU.clamp(min=0)],
            same_SMNTU=number_SMNU[..., None, :] == number_SNT[:, None, ..., None],
        )


def _ngrams(tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hash [B, N, T] of the n-gram that starts at each place, and whether it is whole.

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
    return torch.stack(keys, 1), torch.stack(real, 1)


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
        weight_SNT = both.count_SNT * both.idf_SNT
        reference_SMNU = both.reference_count_SMNU * both.reference_idf_SMNU
        # At most one place of the sample has a reference's n-gram: its number, counted from 1, is
        # found in small integers, which is many times as fast as a sum of products.
        steps = weight_SNT.shape[-1]
        number_T1 = torch.arange(1, steps + 1, dtype=torch.int16, device=samples.device)[:, None]
        place_SMNU = (both.same_SMNTU * number_T1).amax(-2).long()
        weight_SMNT = F.pad(weight_SNT, (1, 0))[:, None].expand(-1, place_SMNU.shape[1], -1, -1)
        shared_SMNU = weight_SMNT.gather(-1, place_SMNU)
        product_SMN = (shared_SMNU.minimum(reference_SMNU) * reference_SMNU).sum(-1)
        norm_SMN = weight_SNT.norm(dim=-1)[:, None] * reference_SMNU.norm(dim=-1)
        # Like the toolkit, which leaves the product as it is where a norm is 0: it is 0 there.
        cosine_SMN = product_SMN / norm_SMN.where(norm_SMN > 0, 1)
        # The toolkit's length of a caption is the number of its bigrams.
        difference_SM = (both.length_S - 1)[:, None] - (both.reference_length_SM - 1)
        likeness_SM = cosine_SMN.mean(-1) * (-(difference_SM**2) / (2 * SIGMA**2)).exp()
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
        allowed_SNT = (both.same_SMNTU * both.reference_count_SMNU[..., None, :]).sum(-1).amax(1)
        correct_SN = both.count_SNT.minimum(allowed_SNT).sum(-1)
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
