"""Layers whose constructors only allocate memory; `init_weights` draws the weights.

A decoder that is loaded from disk needs no initial weights.
"""

from torch import nn


class Linear(nn.Linear):
    """torch's linear layer, without initial weights."""

    def reset_parameters(self) -> None:
        """Do nothing; torch's constructor calls this."""

    def init_weights(self) -> None:
        """Draw the weights as torch's constructor does."""
        super().reset_parameters()


class Embedding(nn.Embedding):
    """torch's embedding, without initial weights."""

    def reset_parameters(self) -> None:
        """Do nothing; torch's constructor calls this."""

    def init_weights(self) -> None:
        """Draw the weights as torch's constructor does."""
        super().reset_parameters()
