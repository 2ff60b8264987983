"""A CNN with its published weights, and what is written down of its transform."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from torch import nn


class Published(NamedTuple):
    """A network with its published weights."""

    until_last_map: nn.Module
    """Normalised pixels [B, 3, height, width] to its last feature map."""
    weights: str
    """Their name."""
    file: Path
    """Where they are."""
    transform: dict[str, Any]
    """What the network expects, as `transform` describes it."""


def transform(
    size: int, interpolation: str, scale: float, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Return the description of a transform: resize, then (pixel / scale - mean) / std."""
    return {
        "size": [size, size],
        "resize": "whole picture, aspect ratio not kept",
        "interpolation": interpolation,
        "scale": scale,
        "mean": list(mean),
        "std": list(std),
    }


def checksum_in(url: str) -> str:
    """Return the first digits of a file's SHA-256, in which torchvision's file names end."""
    return Path(urlparse(url).path).stem.rpartition("-")[2]
