"""The classification CNNs of torchvision, cut after their last feature map.

Only what needs one of them imports this: torchvision takes longer to import than all else together.
"""

import hashlib
import http.client
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from features.errors import UserError
from features.pretrained import Published, checksum_in, transform

# The networks of torchvision that have attention instead of a last feature map.
_TRANSFORMERS = ["vit_*", "swin_*", "maxvit_*"]


def names() -> list[str]:
    """Return the names that `published` knows."""
    return list(torchvision.models.list_models(module=torchvision.models, exclude=_TRANSFORMERS))


def published(name: str) -> Published:
    """Return the network `name` of `names()`, its weights downloaded if need be.

    Raises:
        UserError: the weights cannot be downloaded, are damaged or hold more than weights.
    """
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = _download(weights.url)
    preset = weights.transforms()
    described = transform(
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
    return Published(until_last_map(classifier, preset.crop_size[0]), weights.name, file, described)


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
