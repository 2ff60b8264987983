"""Rewards of sampled captions: CIDEr-D, and a mixture of it with BLEU-4.

Shape suffixes as in `decoder.cider`.
"""

import torch
from torch import Tensor

from decoder.cider import CiderD, Compared, Reward
from decoder.ngrams import ORDERS


class Bleu4(Reward):
    """BLEU-4 of a sentence (Papineni et al. 2002), as the official toolkit computes it.

    Its scale is from 0 to 1. For arguments and errors see `Reward`.
    """

    def of(self, both: Compared) -> Tensor:
        """Score samples that are compared with their references, float32 [S]."""
        correct_SNT = both.count_SNT.minimum(both.reference_count_SNTM.amax(-1))
        correct_SN = (correct_SNT * both.share_SNT).sum(-1)
        order_N = torch.arange(ORDERS, device=both.length_S.device)
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


class MixedReward(Reward):
    """CIDEr-D mixed with a share of BLEU-4, both over the same references.

    BLEU-4 is multiplied by 10, which puts it on CIDEr-D's scale of 0 to 10.

    Args:
        references: image id to token-id sequences, each ending in the end token.
        bleu_weight: share of BLEU-4, from 0 to 1.

    Raises:
        ValueError: as `References` does.
    """

    def __init__(self, references: dict[int, list[list[int]]], bleu_weight: float) -> None:
        super().__init__(references)
        self.cider = CiderD(self.references)
        self.bleu = Bleu4(self.references)
        self.bleu_weight = bleu_weight

    def of(self, both: Compared) -> Tensor:
        """Score samples that are compared with their references, float32 [S]."""
        cider = self.cider.of(both)
        if self.bleu_weight == 0:
            return cider
        bleu = 10 * self.bleu.of(both)
        return (1 - self.bleu_weight) * cider + self.bleu_weight * bleu
