"""Whether a picture shows anything, so that nobody describes a spacer or a white square."""

import numpy as np
from PIL import Image, ImageChops

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
# A lawn or a brick wall has unlike cells too, but there neighbouring pixels are this similar: 0.72
# in a lawn; in noise 0, and 0.42 if saved as the coarsest JPEG.
PIXEL_NOISE = 0.5
# Print, tables and chessboards have unlike neighbours too, but few or equal differences from the
# mean: of noise, the median difference is this share of the standard deviation (Gaussian 0.67,
# uniform 0.87). The second limit holds for cells alone, because pixels may be black and white.
NOISE_SPREAD = (0.5, 0.93)
# Colours of a frame differ by less than this share of the picture's range, even in a coarse JPEG.
FRAME = 1 / 8


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
        EmptyPicture: it is smaller than `SMALLEST` pixels, fully transparent, of one colour, also
            within a frame or beside stripes, a gradient, or noise.
    """
    if min(picture.size) < SMALLEST:
        raise EmptyPicture(f"only {picture.width} x {picture.height} pixels", spacer=True)
    if picture.info.get("transparent"):
        raise EmptyPicture("every pixel is transparent", spacer=True)
    if _contrast(_mosaic(picture, 64)) < PLAIN:
        raise EmptyPicture("a plain colour or a gradient", spacer=False)
    if _is_framed_colour(picture):
        raise EmptyPicture("plain colours side by side", spacer=False)
    if _is_noise(picture):
        raise EmptyPicture("only noise", spacer=False)


def _mosaic(picture: Image.Image, cells: int) -> np.ndarray:
    """Return the mean colours of a picture's parts, float32 [cells, cells, 3]."""
    return np.asarray(picture.resize((cells, cells), Image.Resampling.BOX), dtype=np.float32)


def _contrast(mosaic: np.ndarray) -> float:
    """Return the largest difference of a cell from the mean of the 3 x 3 cells around it."""
    height, width, _ = mosaic.shape
    shifts = [mosaic[y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    return float(np.abs(mosaic[1:-1, 1:-1] - np.mean(shifts, 0)).max())


def _is_framed_colour(picture: Image.Image) -> bool:
    """Whether a plain colour remains once frames and stripes around it are cut off."""
    inside = picture.resize((256, 256), Image.Resampling.NEAREST)
    limit = FRAME * float(np.ptp(np.asarray(inside.convert("L"))))
    while True:
        corner = Image.new(inside.mode, inside.size, inside.getpixel((0, 0)))
        bands = ImageChops.difference(inside, corner).point(lambda value: 255 * (value > limit))
        box = bands.getbbox()
        if box is None:
            return inside.size != (256, 256) and _contrast(_mosaic(inside, 64)) < PLAIN
        if box == (0, 0, *inside.size):
            return False
        inside = inside.crop(box)


def _is_noise(picture: Image.Image) -> bool:
    """Whether neighbouring parts and pixels have nothing in common, and none stands out."""
    cells = _mosaic(picture, 32)
    cells -= cells.mean((0, 1))
    if _correlation(cells) >= NOISE or not NOISE_SPREAD[0] < _spread(cells) < NOISE_SPREAD[1]:
        return False
    pixels = np.asarray(picture.convert("L"), dtype=np.float32)
    pixels -= pixels.mean()
    if _spread(pixels) <= NOISE_SPREAD[0]:
        return False
    # Noise in blocks: equal rows and columns count once.
    pixels = pixels[np.append(True, (pixels[1:] != pixels[:-1]).any(1))]
    pixels = pixels[:, np.append(True, (pixels[:, 1:] != pixels[:, :-1]).any(0))]
    return min(pixels.shape) > 1 and abs(_correlation(pixels)) < PIXEL_NOISE


def _correlation(rest: np.ndarray) -> float:
    """Return the correlation of neighbours; `rest` [rows, columns, ...] has a mean of 0."""
    variance = max(float((rest**2).mean()), 1e-9)
    products = (rest[1:] * rest[:-1]).mean() + (rest[:, 1:] * rest[:, :-1]).mean()
    return float(products) / 2 / variance


def _spread(rest: np.ndarray) -> float:
    """Return the median difference from the mean as a share of the standard deviation."""
    return float(np.median(np.abs(rest))) / max(float(rest.std()), 1e-5)
