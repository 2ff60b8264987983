"""What people would write of a picture: n-grams of its captions, expected from its feature.

CIDEr is, but for a penalty on length, the mean cosine of a caption's n-grams with those of each
reference. So the score that a caption can expect follows from the expected n-grams of a reference,
and those are a regression on the picture: here a linear one, from the pooled feature.

Shape suffixes: N training images, I images, K candidates of each, C channels, W distinct n-grams of
the training captions, P those of each training image, one after the other, X those of the
candidates, U distinct ones among these.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.generate import Generated
from decoder.reward import ORDERS, Frequencies, ngram_vectors, whole_captions

# Of the regression: a share of the channels' mean variance. Half or twice as much is as good.
RIDGE = 0.1


class Expectation:
    """A ridge regression (Hoerl & Kennard 1970) of n-grams on pictures.

    The features are power-normalised (Perronnin et al. 2010), and of each channel as much as it
    differs between pictures.

    Args:
        pooled_NC: float32, the pooled features of the training images.
        captions: of each of these the token ids of its captions, at least one.
        frequencies: in how many training images each n-gram occurs.
    """

    def __init__(
        self,
        pooled_NC: Tensor,
        captions: Sequence[Sequence[list[int]]],
        frequencies: Frequencies,
    ) -> None:
        self._frequencies = frequencies
        scaled_NC = _power_normalised(pooled_NC)
        self._mean_C = scaled_NC.mean(0)
        scaled_NC -= self._mean_C
        self._deviation_C = scaled_NC.square().mean(0).sqrt() + 1e-3
        self._scaled_NC = scaled_NC.div_(self._deviation_C)
        covariance_CC = self._scaled_NC.T @ self._scaled_NC
        ridge = RIDGE * covariance_CC.diagonal().mean()
        covariance_CC.diagonal().add_(ridge.clamp(min=1))  # pictures may not differ at all
        self._factor_CC = torch.linalg.cholesky(covariance_CC)

        several = torch.tensor([len(told) for told in captions])
        image_of_caption = torch.arange(len(captions)).repeat_interleave(several)
        vectors = ngram_vectors([caption for told in captions for caption in told], frequencies)
        self._key_W, number = vectors.key.unique(return_inverse=True)
        image = image_of_caption[vectors.caption]
        pair, place = (number * len(captions) + image).unique(return_inverse=True)
        share = vectors.value / several[image]
        self._value_P = torch.zeros(len(pair)).index_add_(0, place, share.float())
        self._image_P = pair % len(captions)
        starts = torch.arange(len(self._key_W) + 1) * len(captions)
        self._first_W = torch.searchsorted(pair, starts)

    def shares(self, pooled_IC: Tensor) -> Tensor:
        """Return what each training image counts for in the expectation for others.

        Some count less than nothing; together an image's sum to 1 but for rounding.

        Args:
            pooled_IC: float32.

        Returns:
            float32 [I, N].
        """
        scaled_IC = (_power_normalised(pooled_IC) - self._mean_C) / self._deviation_C
        solved_CI = torch.cholesky_solve(scaled_IC.T, self._factor_CC)
        images = len(self._scaled_NC)
        return (self._scaled_NC @ solved_CI).T + 1 / images

    def cider(self, found: Generated, pooled_IC: Tensor) -> Tensor:
        """Return the CIDEr-D that each candidate can expect, but for the penalty on length.

        Args:
            found: candidates.
            pooled_IC: float32, the pooled features of the images.

        Returns:
            float64 [I, K], on the scale of 0 to 10; the regression may leave it.
        """
        tokens_IKT = found.tokens_IKT.cpu()
        images, count, _ = tokens_IKT.shape
        vectors = ngram_vectors(whole_captions(tokens_IKT.flatten(0, 1)), self._frequencies)
        place_X = torch.searchsorted(self._key_W, vectors.key).clamp(max=len(self._key_W) - 1)
        known_X = self._key_W[place_X] == vectors.key
        place_U, number_X = place_X[known_X].unique(return_inverse=True)
        expected_UI = self._expected(place_U, self.shares(pooled_IC))
        caption_X = vectors.caption[known_X]
        agreement_X = vectors.value[known_X] * expected_UI[number_X, caption_X // count]
        total_B = torch.zeros(images * count, dtype=torch.float64)
        total_B.index_add_(0, caption_X, agreement_X)
        return 10 / ORDERS * total_B.view(images, count)

    def _expected(self, place_U: Tensor, share_IN: Tensor) -> Tensor:
        """Return what the n-grams at some places are expected to weigh in a reference, [U, I]."""
        count_U = self._first_W[place_U + 1] - self._first_W[place_U]
        offset_U = count_U.cumsum(0) - count_U
        entries = torch.arange(int(count_U.sum()))
        entries += (self._first_W[place_U] - offset_U).repeat_interleave(count_U)
        return F.embedding_bag(
            self._image_P[entries],
            share_IN.T.contiguous(),
            offset_U,
            mode="sum",
            per_sample_weights=self._value_P[entries],
        )


def _power_normalised(pooled: Tensor) -> Tensor:
    return pooled.sign() * pooled.abs().sqrt()
