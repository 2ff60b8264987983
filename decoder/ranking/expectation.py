"""The expected CIDEr-D of a caption against what people would write about its picture.

Except for its penalty on length, CIDEr-D is the mean cosine between the n-grams of a caption and
those of each reference. It is linear in the references, so its expectation follows from the
expected n-grams of a reference. A linear regression on the pooled feature predicts these.

Shape suffixes: N training images, I images, K candidates of each image, C channels, R rank,
W distinct n-grams of the training captions, P pairs of an n-gram and a training image that has it,
X n-grams of the candidates, U distinct ones among these.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.cider import Frequencies, ngram_vectors, whole_captions
from decoder.generation.generate import Generated
from decoder.ngrams import ORDERS
from decoder.regression import reduced_rank
from decoder.runs import checkpoints
from features.errors import UserError

# Ridge penalty as a share of the channels' mean variance. Half or twice as much does equally well.
RIDGE = 0.1
# Size of an exported regression: its rank, and the number of n-grams, those in the most images.
RANK, NGRAMS = 384, 10_000


class Weights(NamedTuple):
    """Weights of a candidate's scores when captions are reranked, beside 1 for the consensus."""

    expectation: float
    """Of the expected CIDEr-D, from 0 to 10."""
    cosine: float
    """Of the cosine in the joint embedding."""
    log_probability: float
    """Of the natural log-probability of the caption."""


# Chosen on validation captions of Flickr8k, and for exported regressions on those of Flickr8k and
# everyday photographs; see EXPERIMENTS.md.
WEIGHTS, EXPORTED_WEIGHTS = Weights(20.0, 10.0, 0.0), Weights(12.0, 15.0, 0.15)
_WEIGHTS = "weights"  # their key in the header; exports of version 0.2 have none


class Expectation:
    """A ridge regression (Hoerl & Kennard 1970) from pictures to the n-grams of their captions.

    Features are power-normalised (Perronnin et al. 2010), then standardised for each channel.

    Args:
        pooled_NC: float32, the pooled features of the training images.
        captions: the captions of each of these images as token ids, at least one for each image.
        frequencies: the number of training images in which each n-gram occurs.
    """

    def __init__(
        self,
        pooled_NC: Tensor,
        captions: Sequence[Sequence[list[int]]],
        frequencies: Frequencies,
    ) -> None:
        self.weights = WEIGHTS
        self._frequencies = frequencies
        scaled_NC = power_normalised(pooled_NC)
        self._mean_C = scaled_NC.mean(0)
        scaled_NC -= self._mean_C
        self._deviation_C = scaled_NC.square().mean(0).sqrt() + 1e-3
        self._scaled_NC = scaled_NC.div_(self._deviation_C)
        covariance_CC = self._scaled_NC.T @ self._scaled_NC
        ridge = RIDGE * covariance_CC.diagonal().mean()
        # At least 1, which keeps the matrix positive definite if all pictures are the same.
        covariance_CC.diagonal().add_(ridge.clamp(min=1))
        self._factor_CC = torch.linalg.cholesky(covariance_CC)

        # The n-gram vector of an image is the mean over its captions. The vectors are sparse, with
        # an entry for each pair of an n-gram and an image, sorted by n-gram and then by image.
        images = len(captions)
        captions_N = torch.tensor([len(of_image) for of_image in captions])
        image_of_caption = torch.arange(images).repeat_interleave(captions_N)
        vectors = ngram_vectors([one for of_image in captions for one in of_image], frequencies)
        self._key_W, number = vectors.key.unique(return_inverse=True)
        image = image_of_caption[vectors.caption]
        pair, index = (number * images + image).unique(return_inverse=True)
        share = vectors.value / captions_N[image]
        self._value_P = torch.zeros(len(pair)).index_add_(0, index, share.float())
        self._image_P = pair % images
        starts = torch.arange(len(self._key_W) + 1) * images
        self._first_W = torch.searchsorted(pair, starts)

    def shares(self, pooled_IC: Tensor) -> Tensor:
        """Return the weight of each training image in the prediction for other images.

        A linear regression predicts a weighted sum of what it was fitted to. Weights may be
        negative; those of an image sum to 1.

        Args:
            pooled_IC: float32, the pooled features of the other images.

        Returns:
            float32 [I, N].
        """
        scaled_IC = (power_normalised(pooled_IC) - self._mean_C) / self._deviation_C
        solved_CI = torch.cholesky_solve(scaled_IC.T, self._factor_CC)
        images = len(self._scaled_NC)
        return (self._scaled_NC @ solved_CI).T + 1 / images

    def cider(self, candidates: Generated, pooled_IC: Tensor) -> Tensor:
        """Return the expected CIDEr-D of each candidate, without the penalty on length.

        Args:
            candidates: captions of each image.
            pooled_IC: float32, the pooled features of the images.

        Returns:
            float64 [I, K] on the scale of 0 to 10, which a linear regression may exceed.
        """
        share_NI = self.shares(pooled_IC).T.contiguous()

        def predict(index_U: Tensor) -> Tensor:
            return self._sums(index_U, share_NI)

        return _expected_cider(candidates, self._frequencies, self._key_W, predict)

    def reduced(self, rank: int = RANK, ngrams: int = NGRAMS) -> "ReducedExpectation":
        """Return a low-rank approximation, which holds no training picture and no caption.

        Args:
            rank: R.
            ngrams: W, the number of n-grams kept, those in the most training images.
        """
        images, known = len(self._scaled_NC), len(self._key_W)
        index_U = self._first_W.diff().topk(min(ngrams, known)).indices.sort().values
        low_rank = reduced_rank(self._factor_CC, self._sums(index_U, self._scaled_NC).T, rank)
        tensors = {
            "key": self._key_W[index_U],
            "mean": self._sums(index_U, torch.full((images, 1), 1 / images)).squeeze(1),
            "words": low_rank.words_WK * low_rank.strength_K.sqrt(),
            "directions": (low_rank.directions_CK * low_rank.strength_K.sqrt()).T.contiguous(),
            "feature_mean": self._mean_C,
            "feature_deviation": self._deviation_C,
        }
        return ReducedExpectation(tensors, self._frequencies)

    def _sums(self, index_U: Tensor, of_image_NX: Tensor) -> Tensor:
        """Return, for the n-grams at `index_U`, the sum of `of_image_NX` over the images.

        Images are weighted by the n-gram's value in their captions.
        """
        count_U = self._first_W[index_U + 1] - self._first_W[index_U]
        offset_U = count_U.cumsum(0) - count_U
        entries = torch.arange(int(count_U.sum()))
        entries += (self._first_W[index_U] - offset_U).repeat_interleave(count_U)
        return F.embedding_bag(
            self._image_P[entries],
            of_image_NX,
            offset_U,
            mode="sum",
            per_sample_weights=self._value_P[entries],
        )


class ReducedExpectation:
    """The low-rank regression that `Expectation.reduced` returns.

    Args:
        tensors: "key" int64 [W], the n-grams in ascending order; and as float32 "mean" [W], "words"
            [W, R], "directions" [R, C], "feature_mean" and "feature_deviation" [C].
        frequencies: the number of training images in which each n-gram occurs.
        weights: how to rerank with it.

    Raises:
        ValueError: a tensor is missing or left over, or has a wrong shape, type or value.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        frequencies: Frequencies,
        weights: Weights = EXPORTED_WEIGHTS,
    ) -> None:
        key_W, (words, rank) = tensors["key"], tensors["words"].shape
        channels = len(tensors["feature_mean"])
        shapes = {
            "key": (words,),
            "mean": (words,),
            "words": (words, rank),
            "directions": (rank, channels),
            "feature_mean": (channels,),
            "feature_deviation": (channels,),
        }
        there = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if there != shapes or key_W.dtype != torch.int64 or not (key_W[1:] > key_W[:-1]).all():
            raise ValueError(f"expected ascending n-grams and tensors of {shapes}, found {there}")
        others = [tensor for name, tensor in tensors.items() if name != "key"]
        if not all(one.dtype == torch.float32 and one.isfinite().all() for one in others):
            raise ValueError("expected finite float32 numbers")
        self.weights = weights
        self._tensors = tensors
        self._frequencies = frequencies

    def cider(self, candidates: Generated, pooled_IC: Tensor) -> Tensor:
        """Approximate `Expectation.cider`."""
        tensors = self._tensors
        centred_IC = power_normalised(pooled_IC) - tensors["feature_mean"]
        picture_RI = tensors["directions"] @ (centred_IC / tensors["feature_deviation"]).T

        def predict(index_U: Tensor) -> Tensor:
            return tensors["words"][index_U] @ picture_RI + tensors["mean"][index_U, None]

        return _expected_cider(candidates, self._frequencies, tensors["key"], predict)

    def save(self, path: Path, provenance: dict[str, str]) -> None:
        """Write the regression in 8 bits and its provenance as the header, atomically."""
        header = {**provenance, _WEIGHTS: list(self.weights)}
        checkpoints.save(path, checkpoints.quantize(self._tensors), header)

    @staticmethod
    def load(
        path: Path, provenance: dict[str, str], frequencies: Frequencies, channels: int
    ) -> "ReducedExpectation":
        """Read a file that `save` wrote, and check its provenance and number of channels.

        Raises:
            UserError: the file is missing or damaged, or belongs to another captioner.
        """
        tensors, header = checkpoints.load(path, torch.device("cpu"))
        try:
            weights = Weights(*map(float, header.pop(_WEIGHTS, WEIGHTS)))
            if header != provenance:
                raise ValueError("it belongs to another captioner")
            if not all(map(math.isfinite, weights)):
                raise ValueError(f"expected finite weights, found {weights}")
            if tensors["feature_mean"].shape != (channels,):
                raise ValueError(f"expected {channels} channels")
            return ReducedExpectation(checkpoints.dequantize(tensors), frequencies, weights)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} does not fit this captioner ({error!r:.200}); copy the whole "
                "original folder again"
            ) from error


def _expected_cider(
    candidates: Generated,
    frequencies: Frequencies,
    key_W: Tensor,
    predict: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute `Expectation.cider` from predicted n-grams.

    Args:
        candidates: captions of each image.
        frequencies: the number of training images in which each n-gram occurs.
        key_W: the n-grams that can be predicted, in ascending order.
        predict: returns the value of n-grams, given by their indices in `key_W`, for each image,
            float32 [U, I].
    """
    tokens_IKT = candidates.tokens_IKT.cpu()
    images, count, _ = tokens_IKT.shape
    vectors = ngram_vectors(whole_captions(tokens_IKT.flatten(0, 1)), frequencies)
    index_X = torch.searchsorted(key_W, vectors.key).clamp(max=len(key_W) - 1)
    known_X = key_W[index_X] == vectors.key
    index_U, number_X = index_X[known_X].unique(return_inverse=True)
    caption_X = vectors.caption[known_X]
    agreement_X = vectors.value[known_X] * predict(index_U)[number_X, caption_X // count]
    total_B = torch.zeros(images * count, dtype=torch.float64)
    total_B.index_add_(0, caption_X, agreement_X)
    return 10 / ORDERS * total_B.view(images, count)


def power_normalised(pooled: Tensor) -> Tensor:
    """Return the square roots of features, with their signs, which tame large values."""
    return pooled.sign() * pooled.abs().sqrt()
