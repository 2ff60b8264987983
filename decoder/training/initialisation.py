"""Initial weights from the training set: how pictures differ, and how frequent words are.

Random weights spend the first epochs learning two things that can be computed beforehand. Most of a
CNN's feature is the same in every picture, so a unit of a random embedding is on, or off, for all
pictures. And the frequency of words is known.

Shape suffixes: N images, C channels, W words beyond the special ones, V words that can be written,
H hidden size, K directions.
"""

import math

import torch
from torch import Tensor, nn

from decoder.data.readers import TrainingReader
from decoder.model.decoders import Decoder
from decoder.regression import reduced_rank
from pipeline.vocabulary import EOS

MOST_IMAGES = 10_000  # for the regression
MOST_GRIDS = 200  # for the mean and variance of regions
RIDGE = 0.1  # of the regression, as a share of the channels' mean variance
_ROUNDING = 1e-4  # a smaller correlation is a rounding error


@torch.no_grad()
def initialise(model: Decoder, training: TrainingReader) -> None:
    """Fit the image embeddings and the output's bias of a new model to the training set.

    The embeddings start as random mixtures of the directions of the pooled feature that best
    predict the words of the captions (`decoder.regression`). Each unit has another of the opposite
    direction, since a ReLU passes one side only. Units have mean 0 and variance 1 over pooled
    features, or over regions. The output's bias is the logarithm of the words' frequencies.

    This takes a few seconds, and random numbers from torch. With a single image only the output's
    bias is set.
    """
    count_V = training.word_counts()
    bias_V = (count_V + 1.0).log()  # + 1: no word is impossible
    model.output.bias.copy_(bias_V - bias_V.mean())

    chosen = training.spread(MOST_IMAGES)
    pooled_NC = training.pooled(chosen)
    mean_C = pooled_NC.mean(0)
    pooled_NC -= mean_C
    shares_WN = _shares(training.captions_of(chosen), len(count_V) - 1)
    directions_CK = predictive_directions(pooled_NC, shares_WN, -(-model.hidden // 2))
    if directions_CK is None:
        return
    if model.reads_pooled:
        _embed(model.pooled_embedding, directions_CK, pooled_NC + mean_C)
    if model.attends:
        sample = training.features(training.spread(MOST_GRIDS))
        grid_IRC, mask_IR = sample.grid_IRC, sample.mask_IR
        regions_NC = grid_IRC.flatten(0, 1) if mask_IR is None else grid_IRC[mask_IR]
        _embed(model.region_embedding, directions_CK, regions_NC)


def predictive_directions(pooled_NC: Tensor, shares_WN: Tensor, count: int) -> Tensor | None:
    """Return `count` random mixtures of the directions that best predict the words, [C, K].

    Args:
        pooled_NC: float32, of mean 0.
        shares_WN: float32, sparse, share of an image's captions that have the word.
        count: K.

    Returns:
        float32; None if no direction predicts anything.
    """
    images = len(pooled_NC)
    covariance_CC = pooled_NC.T @ pooled_NC / images
    ridge = RIDGE * covariance_CC.diagonal().mean()
    if not 0 < ridge < math.inf:  # features that are not finite are named in training
        return None
    covariance_CC.diagonal().add_(ridge)
    mean_W, square_W = ((shares_WN**n).sum(1).to_dense() / images for n in (1, 2))
    scale_W = images * (square_W - mean_W**2 + 1e-3).sqrt()  # + 1e-3 keeps the rarest words small
    cross_CW = (shares_WN @ pooled_NC).T / scale_W
    factor_CC = torch.linalg.cholesky(covariance_CC)
    directions_CK, strength_K, _ = reduced_rank(factor_CC, cross_CW, count)
    real_K = strength_K > (1e-3 * strength_K[0]).clamp(min=_ROUNDING)
    if not real_K.any():
        return None
    directions_CK, strength_K = directions_CK[:, real_K], strength_K[real_K]
    # Scaled from unit variance by the square root of each direction's strength.
    scaled_CK = directions_CK * (strength_K / strength_K[0]).sqrt()
    return scaled_CK @ torch.linalg.qr(torch.randn(count, len(strength_K)))[0].T


def _embed(layer: nn.Linear, directions_CK: Tensor, inputs_NC: Tensor) -> None:
    """Set a layer to the directions and their opposites, with mean 0 and variance 1 over inputs."""
    mean_C = inputs_NC.mean(0)
    deviation_K = (inputs_NC @ directions_CK).std(0)
    weight_KC = (directions_CK / (deviation_K + 1e-6)).T
    weight_HC = torch.cat((weight_KC, -weight_KC))[: layer.out_features]
    layer.weight.copy_(weight_HC)
    layer.bias.copy_(-(weight_HC @ mean_C))


def _shares(captions: list[list[list[int]]], words: int) -> Tensor:
    """Return the share of each image's captions that have each word, float32, sparse [W, N]."""
    count_N = torch.tensor([len(of_image) for of_image in captions])
    image_of_caption = torch.arange(len(captions)).repeat_interleave(count_N)
    every = [caption for of_image in captions for caption in of_image]
    caption = torch.arange(len(every)).repeat_interleave(torch.tensor([len(c) for c in every]))
    word = torch.tensor([token for c in every for token in c]) - EOS - 1
    pair = (caption * words + word)[word >= 0].unique()  # a word counts once in a caption
    image = image_of_caption[pair // words]
    shape = words, len(captions)
    return torch.sparse_coo_tensor(
        torch.stack((pair % words, image)), 1 / count_N[image], shape, check_invariants=True
    ).coalesce()
