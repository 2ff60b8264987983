"""Novelty: how unlike the training pictures a picture is, from its pooled feature.

It is the part of the feature that the principal components of the training pictures do not explain
(Jackson & Mudholkar 1979). Pages of text, diagrams and drawings have far more of it than
photographs. Features are normalised as in `decoder.ranking.expectation`.

Shape suffixes: N training pictures, I pictures, C channels, K components.
"""

from pathlib import Path

import torch
from torch import Tensor

from decoder.ranking.expectation import power_normalised
from decoder.runs import checkpoints
from features.errors import UserError

# With 256 components, a threshold that 3 % of 300 everyday photographs exceed is exceeded by 97 %
# of 140 drawn pages, diagrams and the like; see EXPERIMENTS.md.
COMPONENTS = 256


class Novelty:
    """The principal components of the training pictures.

    Args:
        tensors: float32 "mean" and "deviation" [C] of the normalised features, and "components" [K,
            C], orthonormal.

    Raises:
        ValueError: a tensor is missing or left over, or has a wrong shape, type or value.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        components, channels = tensors["components"].shape
        shapes = {
            "mean": (channels,),
            "deviation": (channels,),
            "components": (components, channels),
        }
        there = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if there != shapes:
            raise ValueError(f"expected tensors of {shapes}, found {there}")
        for tensor in tensors.values():
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise ValueError("expected finite float32 numbers")
        self._tensors = tensors

    @staticmethod
    def fit(pooled_NC: Tensor, components: int = COMPONENTS) -> "Novelty":
        """Return the components of training pictures, by a randomised decomposition.

        Args:
            pooled_NC: float32, the pooled features of the pictures.
            components: K, at most; it is lower if there are few pictures.
        """
        scaled_NC = power_normalised(pooled_NC)
        mean_C = scaled_NC.mean(0)
        deviation_C = scaled_NC.std(0, correction=0) + 1e-3
        scaled_NC = (scaled_NC - mean_C) / deviation_C
        # Components that explain most of what few pictures have in common would explain them all.
        rank = max(1, min(components, len(pooled_NC) // 8, pooled_NC.shape[1] // 2))
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            _, _, components_CK = torch.svd_lowrank(scaled_NC, rank, niter=4)
        return Novelty(
            {
                "mean": mean_C,
                "deviation": deviation_C,
                "components": components_CK.T.contiguous(),
            }
        )

    def of(self, pooled_IC: Tensor) -> Tensor:
        """Return the novelty of pictures, float32 [I]: mean squared rest of each channel.

        Args:
            pooled_IC: float32, their pooled features.
        """
        tensors = self._tensors
        scaled_IC = (power_normalised(pooled_IC) - tensors["mean"]) / tensors["deviation"]
        explained_IK = scaled_IC @ tensors["components"].T
        rest_I = scaled_IC.square().sum(1) - explained_IK.square().sum(1)
        return rest_I / scaled_IC.shape[1]

    def save(self, path: Path, provenance: dict[str, str]) -> None:
        """Write the components in 8 bits and their provenance as the header, atomically."""
        checkpoints.save(path, checkpoints.quantize(self._tensors), provenance)

    @staticmethod
    def load(path: Path, provenance: dict[str, str], channels: int) -> "Novelty":
        """Read a file that `save` wrote, and check its provenance and number of channels.

        Raises:
            UserError: the file is missing or damaged, or belongs to another captioner.
        """
        tensors, header = checkpoints.load(path, torch.device("cpu"))
        try:
            if header != provenance:
                raise ValueError("it belongs to another captioner")
            novelty = Novelty(checkpoints.dequantize(tensors))
            if tensors["mean"].shape != (channels,):
                raise ValueError(f"expected {channels} channels")
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} does not fit this captioner ({error!r:.200}); copy the whole "
                "original folder again"
            ) from error
        return novelty
