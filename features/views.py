"""Views of a picture for augmentation: the whole picture, crops, and their mirror images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Left and top of each crop, as shares of the width and height outside the crop.
_CROPS = {
    "centre": (0.5, 0.5),
    "top left": (0.0, 0.0),
    "top right": (1.0, 0.0),
    "bottom left": (0.0, 1.0),
    "bottom right": (1.0, 1.0),
}
_KEPT = 0.75  # share of each side inside a crop
_MIRRORS = {f"{name} mirrored": name for name in _CROPS}
VIEWS = ("whole", "mirror", *_CROPS, *_MIRRORS)
_MIRRORED = {"mirror": "whole", **_MIRRORS}


def cut(
    picture: Image.Image,
    views: Sequence[str],
    size: tuple[int, int],
    method: Image.Resampling,
) -> np.ndarray:
    """Return the named views of an RGB picture, all resized to the same size.

    Args:
        picture: the decoded picture, in RGB.
        views: names from `VIEWS`.
        size: height and width of the views.
        method: how to resize.

    Returns:
        uint8 [views, height, width, 3].
    """
    unmirrored = {_MIRRORED.get(name, name) for name in views}
    pixels = {
        name: np.asarray(picture.resize(size[::-1], method, _box(picture, name)))
        for name in unmirrored
    }
    return np.stack(
        [pixels[_MIRRORED[name]][:, ::-1] if name in _MIRRORED else pixels[name] for name in views]
    )


def _box(picture: Image.Image, name: str) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a view that is not mirrored, in pixels."""
    if name == "whole":
        return (0, 0, *picture.size)
    width, height = (_KEPT * side for side in picture.size)
    left, top = (
        share * (side - kept)
        for share, side, kept in zip(_CROPS[name], picture.size, (width, height), strict=True)
    )
    return (left, top, left + width, top + height)
