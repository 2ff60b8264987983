"""Rewards of sampled captions: CIDEr-D, and a mixture of it with BLEU-4.

Shape suffixes as in `decoder.cider`.
"""

from typing import Protocol

import torch
from torch import Tensor

from decoder.cider import ORDERS, CiderD, References


class Reward(Protocol):
    """What REINFORCE rewards samples with; see `decoder.cider.CiderD.__call__`."""

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        """Return the reward of each sample, float32 [S]."""


class Bleu4:
    """BLEU-4 of a sentence (Papineni et al. 2002), as the official toolkit computes it.

    Args:
        references: prepared reference captions.
    """

    def __init__(self, references: References) -> None:
        self.references = references

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
        # The brevity penalty compares with the reference of nearest length, the shorter of two.
        distance_SM = (both.reference_length_SM - both.length_S[:, None]).abs()
        rank_SM = (2 * distance_SM + (both.reference_length_SM > both.length_S[:, None])).where(
            both.is_reference_SM, torch.iinfo(torch.int64).max
        )
        nearest_S = both.reference_length_SM.gather(1, rank_SM.argmin(1, keepdim=True)).squeeze(1)
        ratio_S = (both.length_S + 1e-15) / (nearest_S + 1e-9)
        return (bleu_S * (1 - 1 / ratio_S).clamp(max=0).exp()).float()


class MixedReward:
    """CIDEr-D mixed with a share of BLEU-4, both over the same references.

    BLEU-4 is multiplied by 10, which puts it on CIDEr-D's scale of 0 to 10.

    Args:
        references: image id to token-id sequences, each ending in the end token.
        bleu_weight: share of BLEU-4, from 0 to 1.

    Raises:
        ValueError: as `References` does.
    """

    def __init__(self, references: dict[int, list[list[int]]], bleu_weight: float) -> None:
        prepared = References(references)
        self.cider = CiderD(prepared)
        self.bleu = Bleu4(prepared)
        self.bleu_weight = bleu_weight

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        """Reward samples; arguments, result and errors are those of `CiderD.__call__`."""
        cider = self.cider(image_ids, samples, eos)
        if self.bleu_weight == 0:
            return cider
        bleu = 10 * self.bleu(image_ids, samples, eos)
        return (1 - self.bleu_weight) * cider + self.bleu_weight * bleu
