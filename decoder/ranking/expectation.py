"""What people would write of a picture: n-grams of its captions, expected from its feature.

CIDEr is, but for a penalty on length, the mean cosine of a caption's n-grams with those of each
reference. So the score that a caption can expect follows from the expected n-grams of a reference,
and those are a regression on the picture: here a linear one, from the pooled feature.

Shape suffixes: N training images, I images, K candidates of each, C channels, R rank, W distinct
n-grams of the training captions, P those of each training image, one after the other, X those of
the candidates, U distinct ones among these.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.cider import ORDERS, Frequencies, ngram_vectors, whole_captions
from decoder.generation.generate import Generated
from decoder.regression import reduced_rank
from decoder.runs import checkpoints
from features.errors import UserError

# Of the regression: a share of the channels' mean variance. Half or twice as much is as good.
RIDGE = 0.1
# What goes out with a captioner: so many directions, of the n-grams that most pictures have.
RANK, NGRAMS = 384, 10_000


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
        share_NI = self.shares(pooled_IC).T.contiguous()

        def expect(place_U: Tensor) -> Tensor:
            return self._sums(place_U, share_NI)

        return _cider(found, self._frequencies, self._key_W, expect)

    def reduced(self, rank: int = RANK, ngrams: int = NGRAMS) -> "ReducedExpectation":
        """Return nearly the same, which holds no training picture and none of its captions.

        Args:
            rank: R.
            ngrams: how many it expects at all, those that most pictures have.
        """
        known = len(self._key_W)
        place_U = self._first_W.diff().topk(min(ngrams, known)).indices.sort().values
        images = len(self._scaled_NC)
        found = reduced_rank(self._factor_CC, self._sums(place_U, self._scaled_NC).T, rank)
        tensors = {
            "key": self._key_W[place_U],
            "mean": self._sums(place_U, torch.full((images, 1), 1 / images)).squeeze(1),
            "words": found.words_WK * found.strength_K.sqrt(),
            "directions": (found.directions_CK * found.strength_K.sqrt()).T.contiguous(),
            "feature_mean": self._mean_C,
            "feature_deviation": self._deviation_C,
        }
        return ReducedExpectation(tensors, self._frequencies)

    def _sums(self, place_U: Tensor, of_image_NX: Tensor) -> Tensor:
        """Return, for n-grams at some places, the sum over images of weight times `of_image`."""
        count_U = self._first_W[place_U + 1] - self._first_W[place_U]
        offset_U = count_U.cumsum(0) - count_U
        entries = torch.arange(int(count_U.sum()))
        entries += (self._first_W[place_U] - offset_U).repeat_interleave(count_U)
        return F.embedding_bag(
            self._image_P[entries],
            of_image_NX,
            offset_U,
            mode="sum",
            per_sample_weights=self._value_P[entries],
        )


class ReducedExpectation:
    """A regression of low rank, as `Expectation.reduced` makes it.

    Args:
        tensors: "key" int64 [W], ascending; and as float32 "mean" [W], "words" [W, R], "directions"
            [R, C], "feature_mean" and "feature_deviation" [C].
        frequencies: in how many training images each n-gram occurs.

    Raises:
        ValueError: these do not fit together.
    """

    def __init__(self, tensors: dict[str, Tensor], frequencies: Frequencies) -> None:
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
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != shapes or key_W.dtype != torch.int64 or not (key_W[1:] > key_W[:-1]).all():
            raise ValueError(f"expected ascending n-grams and tensors of {shapes}, found {found}")
        others = [tensor for name, tensor in tensors.items() if name != "key"]
        if not all(one.dtype == torch.float32 and one.isfinite().all() for one in others):
            raise ValueError("expected finite numbers of 32 bits")
        self._tensors = tensors
        self._frequencies = frequencies

    def cider(self, found: Generated, pooled_IC: Tensor) -> Tensor:
        """Return what `Expectation.cider` does, nearly."""
        of = self._tensors
        scaled_IC = (_power_normalised(pooled_IC) - of["feature_mean"]) / of["feature_deviation"]
        picture_RI = of["directions"] @ scaled_IC.T

        def expect(place_U: Tensor) -> Tensor:
            return of["words"][place_U] @ picture_RI + of["mean"][place_U, None]

        return _cider(found, self._frequencies, of["key"], expect)

    def save(self, path: Path, made_of: dict[str, str]) -> None:
        """Write it in 8 bits, and what it belongs to, atomically."""
        checkpoints.save(path, checkpoints.quantize(self._tensors), made_of)

    @staticmethod
    def load(
        path: Path, made_of: dict[str, str], frequencies: Frequencies, channels: int
    ) -> "ReducedExpectation":
        """Read what `save` wrote, for features of so many channels.

        Raises:
            UserError: the file is damaged, or belongs to something else.
        """
        tensors, header = checkpoints.load(path, torch.device("cpu"))
        try:
            if header != made_of:
                raise ValueError("it belongs to another captioner")
            if tensors["feature_mean"].shape != (channels,):
                raise ValueError(f"expected {channels} channels")
            return ReducedExpectation(checkpoints.dequantize(tensors), frequencies)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} does not fit ({error!r:.200}); copy the whole folder again from where it "
                "is from"
            ) from error


def _cider(
    found: Generated,
    frequencies: Frequencies,
    key_W: Tensor,
    expect: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return `Expectation.cider`, given what n-grams at some places of `key_W` weigh, [U, I]."""
    tokens_IKT = found.tokens_IKT.cpu()
    images, count, _ = tokens_IKT.shape
    vectors = ngram_vectors(whole_captions(tokens_IKT.flatten(0, 1)), frequencies)
    place_X = torch.searchsorted(key_W, vectors.key).clamp(max=len(key_W) - 1)
    known_X = key_W[place_X] == vectors.key
    place_U, number_X = place_X[known_X].unique(return_inverse=True)
    caption_X = vectors.caption[known_X]
    agreement_X = vectors.value[known_X] * expect(place_U)[number_X, caption_X // count]
    total_B = torch.zeros(images * count, dtype=torch.float64)
    total_B.index_add_(0, caption_X, agreement_X)
    return 10 / ORDERS * total_B.view(images, count)


def _power_normalised(pooled: Tensor) -> Tensor:
    return pooled.sign() * pooled.abs().sqrt()
