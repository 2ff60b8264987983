"""What the frozen CNNs themselves see: the ImageNet classes of a picture, from its features.

The last layer of an EfficientNet-Lite is linear in the pooled feature, so no picture is needed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from features.efficientnet_lite import VARIANTS, weights_file

_CLASSES = Path(__file__).with_name("imagenet_classes.txt")


class Label(NamedTuple):
    """A class of ImageNet, such as "espresso"."""

    name: str
    probability: float
    """From 0 to 1, by the CNNs' softmax."""


class Labels:
    """The last layers of one or several EfficientNet-Lites, averaged.

    Args:
        backbones: their names, in the order of their features' channels.
    """

    def __init__(self, backbones: list[str]) -> None:
        layers = []
        for name in backbones:
            weights = torch.load(weights_file(name), map_location="cpu", weights_only=True)
            layers.append((weights["_fc.weight"], weights["_fc.bias"]))
        self._weight_LC = torch.cat([weight for weight, _ in layers], 1) / len(layers)
        self._bias_L = torch.stack([bias for _, bias in layers]).mean(0)
        self._names = _CLASSES.read_text(encoding="utf-8").splitlines()

    @staticmethod
    def of(description: Mapping[str, Any]) -> "Labels | None":
        """Return the labels for features of this description, None if its CNNs have none here."""
        backbones = description["backbone"].split("+")
        return Labels(backbones) if VARIANTS.keys() >= set(backbones) else None

    def best(self, pooled_IC: Tensor, count: int = 3, least: float = 0.05) -> list[list[Label]]:
        """Return each picture's most probable classes, the best first.

        Args:
            pooled_IC: float32, the pooled features.
            count: how many classes at most.
            least: the smallest probability of a class that is returned.
        """
        logits_IL = F.linear(pooled_IC.cpu(), self._weight_LC, self._bias_L)
        best_IK = logits_IL.softmax(1).topk(count)
        return [
            [
                Label(self._names[index], round(probability, 3))
                for probability, index in zip(probabilities, indices, strict=True)
                if probability >= least
            ]
            for probabilities, indices in zip(
                best_IK.values.tolist(), best_IK.indices.tolist(), strict=True
            )
        ]
