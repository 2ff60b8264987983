"""Whether a picture shows anything, so that nobody describes a spacer or a white square."""

import numpy as np
from PIL import Image

from features.images import PictureError

# A shorter side below this shows nothing that could be described.
SMALLEST = 8
# Both are measured on a mosaic of the picture. Of 10,225 photographs (COCO, PASCAL, Flickr8k), none
# is below twice the first or 1.25 times the second limit.
# A cell must differ by this much (of 255) from the mean of itself and its neighbours. Plain colours
# saved as JPEG reach 1, gradients 4, a distant jet in a blue sky 16.
PLAIN = 8.0
# Neighbouring cells must be at least this similar (correlation). Noise reaches 0.25.
NOISE = 0.35
# Thin lines and chessboards have unlike neighbours too, but few or equal differences from the mean:
# of noise, the median difference is this share of the standard deviation (Gaussian 0.67, uniform
# 0.87).
NOISE_SPREAD = (0.55, 0.93)


NOTHING = "it shows nothing: "
"""How the reason of an `EmptyPicture` starts, so that it is known again in a table."""


class EmptyPicture(PictureError):
    """A picture that can be read but shows nothing; the message says why.

    Args:
        reason: why; the message starts with `NOTHING`.
        spacer: whether it is invisible or too small to be seen, so that it is only layout.
    """

    def __init__(self, reason: str, spacer: bool) -> None:
        super().__init__(NOTHING + reason)
        self.spacer = spacer


def check_content(picture: Image.Image) -> None:
    """Check that a picture returned by `read_picture` shows something.

    Raises:
        EmptyPicture: it is smaller than `SMALLEST` pixels, fully transparent, of one colour, a
            gradient, or noise.
    """
    if min(picture.size) < SMALLEST:
        raise EmptyPicture(f"only {picture.width} x {picture.height} pixels", spacer=True)
    if picture.info.get("transparent"):
        raise EmptyPicture("every pixel is transparent", spacer=True)
    if _contrast(_mosaic(picture, 64)) < PLAIN:
        raise EmptyPicture("a plain colour or a gradient", spacer=False)
    if _is_noise(_mosaic(picture, 32)):
        raise EmptyPicture("only noise", spacer=False)


def _mosaic(picture: Image.Image, cells: int) -> np.ndarray:
    """Return the mean colours of a picture's parts, float32 [cells, cells, 3]."""
    return np.asarray(picture.resize((cells, cells), Image.Resampling.BOX), dtype=np.float32)


def _contrast(mosaic: np.ndarray) -> float:
    """Return the largest difference of a cell from the mean of the 3 x 3 cells around it."""
    height, width, _ = mosaic.shape
    shifts = [mosaic[y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    return float(np.abs(mosaic[1:-1, 1:-1] - np.mean(shifts, 0)).max())


def _is_noise(mosaic: np.ndarray) -> bool:
    """Whether neighbouring cells have nothing in common, and no cell stands out."""
    rest = mosaic - mosaic.mean((0, 1))
    variance = max(float((rest**2).mean()), 1e-9)
    products = (rest[1:] * rest[:-1]).mean() + (rest[:, 1:] * rest[:, :-1]).mean()
    spread = float(np.median(np.abs(rest))) / variance**0.5
    return bool(products / 2 / variance < NOISE) and NOISE_SPREAD[0] < spread < NOISE_SPREAD[1]
