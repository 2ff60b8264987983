"""The frozen CNN, or several, by name: published weights, their transform, the last feature map."""

import hashlib
import http.client
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from features import efficientnet_lite
from features.backends import ONE_BY_ONE, Joint, Network, Run, choose
from features.errors import UserError, unknown_name
from features.views import cut

# The networks of torchvision that have attention instead of a last feature map.
_TRANSFORMERS = ["vit_*", "swin_*", "maxvit_*"]


@dataclass(frozen=True)
class Backbone:
    """A CNN that turns pictures into region features.

    Attributes:
        description: everything the features depend on, as JSON-able values; a store with the same
            description holds the same kind of features.
        device: where it runs.
        backend: what runs it; see `features.backends`.
        run: uint8 [B, H, W, 3], resized pictures, to their features, as `features` returns them.
    """

    description: dict[str, Any]
    device: torch.device
    backend: str
    run: Run

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        height, width = self.description["transform"]["size"]
        return height, width

    @property
    def one_by_one(self) -> bool:
        """Whether threads should give it single pictures: it computes each on one core."""
        return self.backend in ONE_BY_ONE

    def views(self, picture: Image.Image, names: Sequence[str]) -> np.ndarray:
        """Return views of an RGB picture, resized to the network's input: uint8 [views, H, W, 3].

        Args:
            picture: decoded.
            names: among `features.views.VIEWS`.
        """
        method = Image.Resampling[self.description["transform"]["interpolation"].upper()]
        return cut(picture, names, self.size, method)

    def transform(self, picture: Image.Image) -> Tensor:
        """Resize an RGB picture, all of it, to the network's input: uint8 [3, H, W].

        The aspect ratio is not kept: captions speak of what lies at the edges too, which the
        published centre crop would cut off.
        """
        (whole,) = self.views(picture, ["whole"])
        return torch.from_numpy(whole).permute(2, 0, 1)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of transformed pictures, uint8 [B, 3, H, W].

        Returns:
            float32 [B, regions, channels], the last map averaged over a grid whose regions run row
            by row, and float32 [B, channels], its mean.
        """
        return self.run(images.permute(0, 2, 3, 1).contiguous())


def names() -> list[str]:
    """Return the names that `load_backbone` knows."""
    cnns = torchvision.models.list_models(module=torchvision.models, exclude=_TRANSFORMERS)
    return sorted([*efficientnet_lite.VARIANTS, *cnns])


def load_backbone(
    name: str, grid: int, device: torch.device, backend: str = "auto", batch_size: int = 32
) -> Backbone:
    """Load a network with its published weights, downloading them if need be.

    Args:
        name: one of `names()`, or several joined by +; see `load_network`.
        grid: height and width of the grid that the last feature map is averaged to.
        device: where to run.
        backend: what runs it, see `features.backends.choose`. For fewer than some dozen pictures
            take "eager", the others take longer to start.
        batch_size: how many pictures will go through it together.

    Raises:
        UserError: as `load_network`, or the backend does not work here.
    """
    network, description = load_network(name, grid, device)
    height, width = description["transform"]["size"]
    chosen, run = choose(backend, network, (height, width), device, batch_size)
    return Backbone(description, device, chosen, run)


def load_network(name: str, grid: int, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network, see `load_backbone`, and the description of its features.

    Several names joined by + make one network: each CNN sees the picture at the largest of their
    input sizes, and their channels stand side by side.

    Raises:
        UserError: a name is unknown or comes twice, the weights cannot be downloaded or are
            damaged, or a last feature map is smaller than the grid.
    """
    each = name.split("+")
    for one in each:
        if one not in names():
            raise unknown_name("backbone", one, names())
    if len(set(each)) < len(each):
        raise UserError(f"--backbone {name}: a network beside itself sees nothing more")
    published = [
        _lite(one) if one in efficientnet_lite.VARIANTS else _torchvision(one) for one in each
    ]
    transform = _joint([one.transform for one in published])
    networks = [
        _network(one, part, transform["size"], grid, device)
        for one, part in zip(each, published, strict=True)
    ]
    description = {
        "backbone": name,
        "weights": "+".join(part.weights for part in published),
        "weights_sha256": "+".join(
            hashlib.sha256(part.file.read_bytes()).hexdigest() for part in published
        ),
        "transform": transform,
        "grid": [grid, grid],
        "channels": sum(channels for _, channels in networks),
        "dtype": "float16",
    }
    network = networks[0][0] if len(networks) == 1 else Joint(part for part, _ in networks)
    return network.to(device).eval(), description


def _network(
    name: str, published: "_Published", size: list[int], grid: int, device: torch.device
) -> tuple[Network, int]:
    """Return one network for pixels of a size, and its number of channels."""
    cnn = published.until_last_map.to(device).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        channels, height, width = cnn(torch.zeros(1, 3, *size, device=device)).shape[1:]
    if grid > min(height, width):
        raise UserError(
            f"the last feature map of {name} is {height} x {width}, smaller than --grid {grid}"
        )
    return Network(cnn, published.transform, (height, width), (grid, grid)), channels


def _joint(transforms: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the transform of networks that see the same pixels: the largest of their sizes."""
    if len(transforms) == 1:
        return transforms[0]
    largest = max(transforms, key=lambda transform: transform["size"])
    own = {key: [transform[key] for transform in transforms] for key in ("scale", "mean", "std")}
    return {**largest, **own}


def until_last_map(classifier: nn.Module, size: int) -> nn.Module:
    """Cut a torchvision CNN after its last feature map, before pooling and classifier.

    That is the last value in its forward pass that has more than one position and does not come
    from the classifier (SqueezeNet's is convolutional). It is searched for in the traced pass, not
    among the modules, because DenseNet's last ReLU is none.

    Args:
        classifier: the network, put into evaluation mode.
        size: height and width of its input.
    """
    classifier.eval()
    _, nodes = get_graph_node_names(classifier, suppress_diff_warning=True)
    body = [node for node in nodes if not node.startswith("classifier")]
    every_node = create_feature_extractor(classifier, body, suppress_diff_warning=True)
    with torch.inference_mode():
        values = every_node(torch.zeros(1, 3, size, size))
    maps = [node for node, value in values.items() if _is_map(value)]
    last = create_feature_extractor(classifier, maps[-1:], suppress_diff_warning=True)
    return _OnlyValue(last)


class _OnlyValue(nn.Module):
    """A feature extractor that returns its one value rather than a dictionary."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        (value,) = self.extractor(images).values()
        return value


def _is_map(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] > 1


class _LiteLastMap(nn.Module):
    """An EfficientNet-Lite that returns its last feature map."""

    def __init__(self, classifier: efficientnet_lite.EfficientNetLite) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.last_map(images)


class _Published(NamedTuple):
    """A network with its published weights: their name and file, and the transform they expect."""

    until_last_map: nn.Module
    weights: str
    file: Path
    transform: dict[str, Any]


def _lite(name: str) -> _Published:
    network = efficientnet_lite.load_efficientnet_lite(name)
    file = efficientnet_lite.weights_file(name)
    transform = _transform(
        size=efficientnet_lite.VARIANTS[name].size,
        interpolation="bicubic",
        scale=1.0,
        mean=[efficientnet_lite.MEAN] * 3,
        std=[efficientnet_lite.STD] * 3,
    )
    return _Published(_LiteLastMap(network), file.name, file, transform)


def _torchvision(name: str) -> _Published:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = _download(weights.url)
    preset = weights.transforms()
    transform = _transform(
        size=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        scale=255.0,
        mean=preset.mean,
        std=preset.std,
    )
    try:  # torchvision unpickles whatever it gets; what loads like this has nothing but tensors
        torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{file} has more in it than weights, or is damaged; delete it") from error
    classifier = torchvision.models.get_model(name, weights=weights)
    return _Published(
        until_last_map(classifier, preset.crop_size[0]), weights.name, file, transform
    )


def _transform(
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


def _download(url: str) -> Path:
    """Return the local file of published weights, fetched if it is not there, and checked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    by_hand = f"download {url} by hand and put it at {path}"
    digits = checksum_in(url)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digits)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except RuntimeError as error:  # from torch.hub: invalid hash value
        raise UserError(f"what {url} sent is damaged ({error}); try again, or {by_hand}") from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {url} ({error}); {by_hand}") from error
    if not found.startswith(digits):
        raise UserError(
            f"{path} is damaged: its SHA-256 starts with {found[:8]}, not {digits}; delete it"
        )
    return path
