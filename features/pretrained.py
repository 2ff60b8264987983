"""What every source of pretrained CNNs returns: the network, its weights and its transform."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from torch import nn


class Pretrained(NamedTuple):
    """A CNN with its weights, without its classifier."""

    until_last_map: nn.Module
    """From normalised pixels, float32 [B, 3, height, width], to the last feature map."""
    weights: str
    """Name of the weights; "file" for those of a file of the user."""
    file: Path
    """File of the weights."""
    transform: dict[str, Any]
    """What the network expects of its input; see `describe_transform`."""


def describe_transform(
    size: int | Sequence[int],
    interpolation: str,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Any]:
    """Describe a transform that resizes the picture, then computes (pixel / scale - mean) / std.

    Args:
        size: height and width of the network's input, or one number for both.
        interpolation: how the picture is resized, a name of Pillow in lower case.
        scale: as in the formula.
        mean: as in the formula, for each colour.
        std: as in the formula, for each colour.
    """
    return {
        "size": [size, size] if isinstance(size, int) else list(size),
        "resize": "whole picture, aspect ratio not kept",
        "interpolation": interpolation,
        "scale": scale,
        "mean": list(mean),
        "std": list(std),
    }


def sha256_prefix(url: str) -> str:
    """Return the first digits of a file's SHA-256, with which torchvision's file names end."""
    return Path(urlparse(url).path).stem.rpartition("-")[2]
