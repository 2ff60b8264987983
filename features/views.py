"""Views of a picture, for training to draw from: all of it, crops, and their mirrors."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Where each crop begins, as the share of the width and height that is left over.
_CROPS = {
    "centre": (0.5, 0.5),
    "top left": (0.0, 0.0),
    "top right": (1.0, 0.0),
    "bottom left": (0.0, 1.0),
    "bottom right": (1.0, 1.0),
}
_KEPT = 0.75  # of each side
_MIRRORS = {f"{name} mirrored": name for name in _CROPS}
VIEWS = ("whole", "mirror", *_CROPS, *_MIRRORS)
_MIRRORED = {"mirror": "whole", **_MIRRORS}


def cut(
    picture: Image.Image,
    views: Sequence[str],
    size: tuple[int, int],
    method: Image.Resampling,
) -> np.ndarray:
    """Return the named views of an RGB picture, each resized to the same size.

    Args:
        picture: RGB, decoded.
        views: names among `VIEWS`.
        size: height and width of the views, whatever the picture's.
        method: how to resize.

    Returns:
        uint8 [views, height, width, 3]
    """
    upright = {_MIRRORED.get(name, name) for name in views}
    pixels = {
        name: np.asarray(picture.resize(size[::-1], method, _box(picture, name)))
        for name in upright
    }
    return np.stack(
        [pixels[_MIRRORED[name]][:, ::-1] if name in _MIRRORED else pixels[name] for name in views]
    )


def _box(picture: Image.Image, name: str) -> tuple[float, float, float, float]:
    if name == "whole":
        return (0, 0, *picture.size)
    width, height = (_KEPT * side for side in picture.size)
    left, top = (
        share * (side - kept)
        for share, side, kept in zip(_CROPS[name], picture.size, (width, height), strict=True)
    )
    return (left, top, left + width, top + height)
