"""The frozen CNN, or several, by name: published weights, their transform, the last feature map."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from features import efficientnet_lite
from features.backends import ONE_BY_ONE, Joint, Network, Run, choose
from features.errors import UserError, unknown_name
from features.pretrained import Published
from features.views import cut


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
    from features import torchvision_cnns

    return sorted([*efficientnet_lite.VARIANTS, *torchvision_cnns.names()])


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
    # Only then are all names asked for: torchvision, which knows them, takes long to import.
    if not efficientnet_lite.VARIANTS.keys() >= set(each):
        for one in each:
            if one not in names():
                raise unknown_name("backbone", one, names())
    if len(set(each)) < len(each):
        raise UserError(f"--backbone {name}: a network beside itself sees nothing more")
    published = [_published(one) for one in each]
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


def _published(name: str) -> Published:
    """Return a network by one of `names()`."""
    if name in efficientnet_lite.VARIANTS:
        return efficientnet_lite.published(name)
    from features import torchvision_cnns

    return torchvision_cnns.published(name)


def _network(
    name: str, published: Published, size: list[int], grid: int, device: torch.device
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
