"""Frozen CNNs by name, alone or joined: published weights, transform and last feature map."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from features import efficientnet_lite
from features.backends import ONE_BY_ONE, Joint, Network, Run, choose
from features.commands import EXTRACT
from features.errors import UserError, unknown_name
from features.pretrained import Pretrained
from features.views import cut
from features.weights import locate

FILES = "files:"
"""What the name of the backbone starts with where features came from files."""
_TIMM = "timm:"


@dataclass(frozen=True)
class Backbone:
    """A CNN that turns pictures into region features.

    Attributes:
        description: everything the features depend on, as JSON-able values; a store with the same
            description holds the same kind of features.
        device: the device of the network.
        backend: the name of the backend that runs it; see `features.backends`.
        run: computes the features of resized pictures, uint8 [B, H, W, 3]; it returns the same as
            `features`.
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
        """Whether one core computes each picture, so that threads should pass one picture each."""
        return self.backend in ONE_BY_ONE

    def views(self, picture: Image.Image, names: Sequence[str]) -> np.ndarray:
        """Return views of an RGB picture, resized to the network's input: uint8 [views, H, W, 3].

        Args:
            picture: the decoded picture.
            names: names of views, from `features.views.VIEWS`.
        """
        method = Image.Resampling[self.description["transform"]["interpolation"].upper()]
        return cut(picture, names, self.size, method)

    def transform(self, picture: Image.Image) -> Tensor:
        """Resize an RGB picture without cropping to the network's input: uint8 [3, H, W].

        The aspect ratio is not kept. The published centre crop would cut off the edges, which
        captions describe too.
        """
        (pixels,) = self.views(picture, ["whole"])
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of transformed pictures, uint8 [B, 3, H, W].

        Returns:
            The last feature map averaged over a grid, float32 [B, regions, channels], whose
            regions are in row-major order, and the mean of the map, float32 [B, channels].
        """
        return self.run(images.permute(0, 2, 3, 1).contiguous())


def names() -> list[str]:
    """Return the names that `load_backbone` accepts beside those of timm ("timm:NAME")."""
    from features import torchvision_cnns

    return sorted([*efficientnet_lite.VARIANTS, *torchvision_cnns.names()])


def load_backbone(
    name: str,
    grid: int,
    device: torch.device,
    backend: str = "auto",
    batch_size: int = 32,
    weights: Sequence[Path] = (),
) -> Backbone:
    """Load a network with its published weights; they are downloaded if they are missing.

    Args:
        name: see `load_network`.
        grid: height and width of the grid to which the last feature map is averaged.
        device: the device to run on.
        backend: what runs the network; see `features.backends.choose`. For a few dozen pictures
            or fewer, use "eager", which starts fastest.
        batch_size: number of pictures in a batch.
        weights: see `load_network`.

    Raises:
        UserError: see `load_network`; or the backend does not work here.
    """
    network, description = load_network(name, grid, device, weights)
    height, width = description["transform"]["size"]
    chosen, run = choose(backend, network, (height, width), device, batch_size)
    return Backbone(description, device, chosen, run)


def load_described(
    wanted: Mapping[str, Any], device: torch.device, backend: str = "auto", batch_size: int = 32
) -> Backbone:
    """Load the network that computed features, from their description.

    Raises:
        UserError: see `load_backbone`; or the features came from files, so it is unknown.
    """
    network, description = describe_again(wanted, device)
    height, width = description["transform"]["size"]
    chosen, run = choose(backend, network, (height, width), device, batch_size)
    return Backbone(description, device, chosen, run)


def describe_again(
    wanted: Mapping[str, Any], device: torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    """Load the network of features as `load_network` does, from their description.

    Raises:
        UserError: see `load_network`; or the features came from files, so it is unknown.
    """
    name = wanted["backbone"]
    if from_files(wanted):
        raise UserError(
            f"the features {name.removeprefix(FILES)} were read from files with {EXTRACT} --from, "
            "so the CNN that computed them is unknown and new pictures have no features; caption a "
            "split of the work directory with --split, or train on features of --backbone"
        )
    weights = [locate(recorded) for recorded in wanted.get("weights_file", ())]
    return load_network(name, wanted["grid"][0], device, weights)


def load_network(
    name: str, grid: int, device: torch.device, weights: Sequence[Path] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network as `load_backbone` does, and return it with the description of its features.

    Names joined by + make one network: every CNN gets the picture at the largest of their input
    sizes, and their channels are concatenated.

    Args:
        name: one of `names()`, "timm:" and a name of timm, or several joined by +.
        grid: height and width of the grid to which the last feature map is averaged.
        device: the device to run on.
        weights: files of weights, one for each network that is not an EfficientNet-Lite, in their
            order; or none for the published weights.

    Raises:
        UserError: a name is unknown or occurs twice; the weights cannot be downloaded, are damaged
            or do not fit; or a last feature map is smaller than the grid.
    """
    each = name.split("+")
    for one in each:
        if one.lower().startswith(_TIMM) and not one.startswith(_TIMM):
            raise UserError(
                f"--backbone {one}: expected {_TIMM} in small letters, as in "
                f"{_TIMM}{one[len(_TIMM) :]}"
            )
    others = [one for one in each if one not in efficientnet_lite.VARIANTS]
    # torchvision is slow to import: only if it is needed.
    torchvisions = [one for one in others if not one.startswith(_TIMM)]
    if torchvisions:
        for one in torchvisions:
            if one not in names():
                raise unknown_name("backbone", one, names())
    if len(set(each)) < len(each):
        raise UserError(f"--backbone {name}: expected different networks, found the same one twice")
    if weights and not others:
        raise UserError(
            f"--weights has no effect: the weights of {name} come with its package; name the "
            "network of the file with --backbone, such as timm:resnet50"
        )
    if weights and len(weights) != len(others):
        raise UserError(
            f"--weights: expected one file for each of {', '.join(others)}, found {len(weights)}; "
            "the weights of an EfficientNet-Lite come with its package"
        )
    files: dict[str, Path] = dict(zip(others, weights, strict=False))
    pretrained = [_pretrained(one, files.get(one)) for one in each]
    transform = _joint_transform([one.transform for one in pretrained])
    networks = [
        _network(one, part, transform["size"], grid, device)
        for one, part in zip(each, pretrained, strict=True)
    ]
    description = {
        "backbone": name,
        "weights": "+".join(part.weights for part in pretrained),
        "weights_sha256": "+".join(
            hashlib.sha256(part.file.read_bytes()).hexdigest() for part in pretrained
        ),
        "transform": transform,
        "grid": [grid, grid],
        "channels": sum(channels for _, channels in networks),
        "dtype": "float16",
    }
    if files:  # where they lie does not affect the features, see `features.store.fingerprint`
        description["weights_file"] = [str(file.resolve()) for file in files.values()]
    network = networks[0][0] if len(networks) == 1 else Joint(part for part, _ in networks)
    return network.to(device).eval(), description


def from_files(description: Mapping[str, Any]) -> bool:
    """Whether features came from files rather than from a network here."""
    return str(description["backbone"]).startswith(FILES)


def _pretrained(name: str, file: Path | None) -> Pretrained:
    """Return the network of one name, with its published weights or those of a file."""
    if name in efficientnet_lite.VARIANTS:
        return efficientnet_lite.pretrained(name)
    if name.startswith(_TIMM):
        from features import timm_cnns

        return timm_cnns.pretrained(name, file)
    from features import torchvision_cnns

    return torchvision_cnns.pretrained(name, file)


def _network(
    name: str, pretrained: Pretrained, size: list[int], grid: int, device: torch.device
) -> tuple[Network, int]:
    """Return a network for pixels of this size, and its number of channels."""
    cnn = pretrained.until_last_map.to(device).to(memory_format=torch.channels_last)
    own = pretrained.transform["size"]
    try:
        with torch.inference_mode():
            channels, height, width = cnn(torch.zeros(1, 3, *size, device=device)).shape[1:]
    except (AssertionError, RuntimeError) as error:
        if size == own:
            raise
        raise UserError(
            f"{name} reads pictures of {own[0]} x {own[1]} only, but a network joined to it with + "
            f"needs {size[0]} x {size[1]}; leave one of them out"
        ) from error
    if grid > min(height, width):
        raise UserError(
            f"the last feature map of {name} is {height} x {width}, smaller than --grid {grid}"
        )
    return Network(cnn, pretrained.transform, (height, width), (grid, grid)), channels


def _joint_transform(transforms: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the transform of joined networks, with the largest of their input sizes."""
    if len(transforms) == 1:
        return transforms[0]
    largest = max(transforms, key=lambda transform: transform["size"])
    own = {key: [transform[key] for transform in transforms] for key in ("scale", "mean", "std")}
    return {**largest, **own}
