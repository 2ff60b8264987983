"""The networks of timm (PyTorch Image Models) by name, cut after their last feature map.

Import this module only where one of them is needed: timm takes seconds to import.
"""

import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from features.errors import UserError, first_line, unknown_name
from features.pretrained import Pretrained, describe_transform
from features.weights import by_hand, load_weights, read_weights

PREFIX = "timm:"
# Names of timm's resizing methods, which are Pillow's; a few networks were trained with a random
# choice of bilinear and bicubic.
_METHODS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def pretrained(name: str, file: Path | None = None) -> Pretrained:
    """Return a network of timm with its published weights or those of a file.

    Args:
        name: "timm:" and a name of timm, with or without the tag of the weights, such as
            "timm:resnet50_clip.openai".
        file: weights to load instead of the published ones.

    Raises:
        UserError: timm has no such network, the network has no feature map, or its weights cannot
            be downloaded or do not fit.
    """
    own = name.removeprefix(PREFIX)
    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if own not in known:
        raise unknown_name("backbone", name, sorted(PREFIX + one for one in known))
    network: Any = timm.create_model(own, pretrained=False).eval()
    published = network.pretrained_cfg
    source = "file"
    if file is None:
        file, source = _download(name, published), str(published.get("hf_hub_id") or own)
    _fill(network, file, name)
    data = resolve_model_data_config(network)
    size = list(data["input_size"][1:])
    method = data["interpolation"]
    transform = describe_transform(
        size=size,
        interpolation=method if method in _METHODS else "bicubic",
        scale=255.0,
        mean=data["mean"],
        std=data["std"],
    )
    return Pretrained(_UntilLastMap(network, name, size), source, file, transform)


def _download(name: str, published: dict[str, Any]) -> Path:
    """Return the file of the published weights, downloaded unless it is there."""
    own = name.removeprefix(PREFIX)
    repository, url = str(published.get("hf_hub_id") or ""), str(published.get("url") or "")
    if not repository and not url:
        raise UserError(
            f"no weights of {name} are published; give your own with --weights FILE, or choose one "
            "of its tags: "
            + (", ".join(PREFIX + n for n in timm.list_models(f"{own}.*", pretrained=True)) or "-")
        )
    wanted = str(published.get("hf_hub_filename") or "model.safetensors") if repository else url
    known_as = f"{published['architecture']}.{published.get('tag') or 'default'}"
    local = by_hand(known_as + Path(wanted).suffix)
    if local.is_file():
        return local
    try:
        if repository:
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(repository, wanted))
        local.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(local))
    except Exception as error:  # the hub's client and its transports raise many types
        raise UserError(
            f"cannot download the weights of {name}, expected {wanted} of "
            f"{repository or 'its publisher'} ({type(error).__name__}: "
            f"{first_line(error)[:150]}); try again with a connection, download the file on "
            f"another computer and put it at {local}, or give your own with --weights FILE"
        ) from error
    return local


def _fill(network: Any, file: Path, name: str) -> None:
    """Load weights, all but the classifier's, into a network of timm."""
    tensors = read_weights(file)
    # Most of timm's architectures translate the names of their first publishers' files.
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        try:
            tensors = translate(tensors, network)
        except Exception as error:  # it expects the names of one of its publishers
            raise UserError(
                f"--weights {file}: expected the weights of {name}, found others "
                f"({type(error).__name__}: {first_line(error)[:150]}); give its own file"
            ) from error
    classifiers = network.pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    heads = tuple(f"{one}." for one in classifiers)
    load_weights(network, tensors, file, name, lambda key: not key.startswith(heads))


class _UntilLastMap(nn.Module):
    """A network of timm up to its last feature map, always with the channels second.

    Args:
        network: in evaluation mode.
        name: for messages.
        size: height and width of its input.

    Raises:
        UserError: it has no feature map.
    """

    def __init__(self, network: Any, name: str, size: list[int]) -> None:
        super().__init__()
        self.network: Any = network
        self._way = "second"
        with torch.inference_mode():
            last = network.forward_features(torch.zeros(1, 3, *size))
        channels = network.num_features
        if (
            isinstance(last, Tensor)
            and last.ndim == 3
            and hasattr(network, "forward_intermediates")
        ):
            self._way = "tokens"
        elif not isinstance(last, Tensor) or last.ndim != 4 or min(last.shape[1:]) < 1:
            raise UserError(
                f"--backbone {name} has no feature map: expected channels at positions, found "
                f"{_shape(last)}; choose a CNN, such as timm:resnet50 or timm:convnext_base"
            )
        elif getattr(network, "output_fmt", "NCHW") == "NHWC" or (
            last.shape[1] != channels and last.shape[3] == channels
        ):
            self._way = "last"

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map [B, channels, h, w] of normalised `images`."""
        if self._way == "tokens":  # a vision transformer's, without its class token
            (last,) = self.network.forward_intermediates(
                images, indices=1, norm=True, intermediates_only=True
            )
            return last
        last = self.network.forward_features(images)
        return last.permute(0, 3, 1, 2) if self._way == "last" else last


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
