"""The classification CNNs of torchvision, cut after their last feature map.

Import this module only where one of them is needed: torchvision takes longer to import than
everything else together.
"""

import hashlib
import http.client
import warnings
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from features.errors import UserError
from features.files import reading
from features.pretrained import Pretrained, describe_transform, sha256_prefix
from features.weights import load_weights, read_weights

# The networks of torchvision that have no last feature map.
_TRANSFORMERS = ["vit_*", "swin_*", "maxvit_*"]


def names() -> list[str]:
    """Return the names that `pretrained` accepts."""
    return list(torchvision.models.list_models(module=torchvision.models, exclude=_TRANSFORMERS))


def pretrained(name: str, file: Path | None = None) -> Pretrained:
    """Return the network `name` of `names()`; its weights are downloaded if they are missing.

    Args:
        name: of the network.
        file: weights to load instead of the published ones.

    Raises:
        UserError: the weights cannot be downloaded, are damaged, contain more than tensors or do
            not fit.
    """
    weights = torchvision.models.get_model_weights(name).DEFAULT
    own = file
    file = _download(weights.url) if own is None else own
    preset = weights.transforms()
    transform = describe_transform(
        size=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        scale=255.0,
        mean=preset.mean,
        std=preset.std,
    )
    if own is not None:
        return Pretrained(_filled(name, own, preset.crop_size[0]), "file", own, transform)
    try:  # torchvision unpickles any file; one that loads like this contains only tensors
        torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{file} contains more than tensors, or is damaged; delete it") from error
    classifier = torchvision.models.get_model(name, weights=weights)
    cnn = until_last_map(classifier, preset.crop_size[0])
    return Pretrained(cnn, weights.name, file, transform)


def _filled(name: str, file: Path, size: int) -> nn.Module:
    """Return a network up to its last feature map, with weights from a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inception's, that it draws its first weights slowly
        classifier = torchvision.models.get_model(name, weights=None)
    cnn = until_last_map(classifier, size)
    used = {key.removeprefix("extractor.") for key in cnn.state_dict()}
    own = classifier.state_dict().keys()
    load_weights(
        cnn.extractor, read_weights(file), file, name, lambda key: key in used or key not in own
    )
    return cnn


def until_last_map(classifier: nn.Module, size: int) -> "_OnlyValue":
    """Cut a torchvision CNN after its last feature map, before pooling and classifier.

    The last feature map is the last value in the forward pass that has more than one position and
    does not come from the classifier (SqueezeNet's is convolutional). The traced pass is searched
    instead of the modules, because DenseNet's last ReLU is not a module.

    Args:
        classifier: the network, which is put into evaluation mode.
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
    """A feature extractor that returns its only value instead of a dictionary."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        (value,) = self.extractor(images).values()
        return value


def _is_map(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] > 1


def _download(url: str) -> Path:
    """Download published weights unless they are there, check them, and return their path."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    by_hand = f"download {url} by hand and put it at {path}"
    digits = sha256_prefix(url)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digits)
    except RuntimeError as error:  # from torch.hub: invalid hash value
        raise UserError(
            f"the file downloaded from {url} is damaged ({error}); try again, or {by_hand}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {url} ({error}); {by_hand}") from error
    with reading(path):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(digits):
        raise UserError(
            f"{path} is damaged: its SHA-256 starts with {found[:8]}, not {digits}; delete it"
        )
    return path
