"""Reduced-rank ridge regression: the directions of picture features that best predict words.

Shape suffixes: C channels, W words or n-grams, K directions.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ReducedRank(NamedTuple):
    """A regression that predicts the words of features x as (x @ directions * strength) @ words.T.

    The directions are sorted by falling strength.
    """

    directions_CK: Tensor
    """Projections of the features on them are uncorrelated over the pictures, up to the ridge."""
    strength_K: Tensor
    words_WK: Tensor
    """Orthonormal columns."""


def reduced_rank(factor_CC: Tensor, cross_CW: Tensor, rank: int) -> ReducedRank:
    """Return the best regression of a given rank (Mukherjee & Zhu 2011).

    With L the Cholesky factor of the features' covariance, the full regression is
    inverse(L).T @ inverse(L) @ cross. Here the nearest matrix of the given rank replaces
    inverse(L) @ cross. A randomised singular value decomposition (Halko et al. 2011) computes it,
    using torch's random numbers.

    Args:
        factor_CC: L, lower triangular, of the covariance with the ridge on its diagonal.
        cross_CW: the covariance of features and words.
        rank: K; it is lower if there are fewer channels or words.
    """
    whitened_CW = torch.linalg.solve_triangular(factor_CC, cross_CW, upper=False)
    basis_CK, strength_K, words_WK = torch.svd_lowrank(whitened_CW, min(rank, *whitened_CW.shape))
    directions_CK = torch.linalg.solve_triangular(factor_CC.T, basis_CK, upper=True)
    return ReducedRank(directions_CK, strength_K, words_WK)
