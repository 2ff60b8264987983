"""Reduced-rank ridge regression: what pictures tell of words, by their strongest directions.

Shape suffixes: C channels, W words or n-grams, K directions.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ReducedRank(NamedTuple):
    """A regression that predicts x as (x @ directions_CK * strength_K) @ words_WK.T."""

    directions_CK: Tensor
    """Of the features, the strongest first; uncorrelated over the pictures but for the ridge."""
    strength_K: Tensor
    words_WK: Tensor
    """Orthonormal."""


def reduced_rank(factor_CC: Tensor, cross_CW: Tensor, rank: int) -> ReducedRank:
    """Return the best regression of so few directions (Mukherjee & Zhu 2011).

    With L the Cholesky factor of the features' covariance, the whole regression is
    inverse(L).T @ inverse(L) @ cross; here with the nearest matrix of that rank in the place of
    inverse(L) @ cross, found at random (Halko et al. 2011).

    Args:
        factor_CC: L, lower, of the covariance with the ridge on its diagonal.
        cross_CW: the covariance of features and words.
        rank: K, or less if there are fewer channels or words.
    """
    whitened_CW = torch.linalg.solve_triangular(factor_CC, cross_CW, upper=False)
    basis_CK, strength_K, words_WK = torch.svd_lowrank(whitened_CW, min(rank, *whitened_CW.shape))
    directions_CK = torch.linalg.solve_triangular(factor_CC.T, basis_CK, upper=True)
    return ReducedRank(directions_CK, strength_K, words_WK)
