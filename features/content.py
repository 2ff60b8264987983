"""Whether a picture shows anything, so that nobody describes a spacer or a white square."""

import numpy as np
from PIL import Image

from features.images import PictureError

# A shorter side below this shows nothing that could be described.
SMALLEST = 8
# A picture shows something if a cell of a GRID x GRID mosaic of it differs by this much (of 255)
# from a smooth slope of colour. Of 3,225 photographs of COCO and PASCAL the plainest, a distant jet
# in a blue sky, reaches 61; plain colours saved as JPEG reach 3.
PLAIN = 16.0
GRID = 64


class EmptyPicture(PictureError):
    """A picture that can be read but shows nothing; the message says why.

    Args:
        reason: the message.
        spacer: whether it is invisible or too small to be seen, so that it is only layout.
    """

    def __init__(self, reason: str, spacer: bool) -> None:
        super().__init__(reason)
        self.spacer = spacer


def check_content(picture: Image.Image) -> None:
    """Check that a picture returned by `read_picture` shows something.

    Raises:
        EmptyPicture: it is smaller than `SMALLEST` pixels, fully transparent, of one colour, or a
            smooth slope from one colour to another.
    """
    if min(picture.size) < SMALLEST:
        raise EmptyPicture(
            f"it shows nothing: only {picture.width} x {picture.height} pixels", spacer=True
        )
    if picture.info.get("transparent"):
        raise EmptyPicture("it shows nothing: every pixel is transparent", spacer=True)
    if _relief(picture) < PLAIN:
        raise EmptyPicture("it shows nothing: a plain colour or a smooth slope", spacer=False)


def _relief(picture: Image.Image) -> float:
    """Return the range of the mosaic of a picture around the plane that fits it best, in levels."""
    small = picture.resize((GRID, GRID), Image.Resampling.BOX)
    cells = np.asarray(small, dtype=np.float32)  # [GRID, GRID, 3]
    along = np.linspace(-1, 1, GRID, dtype=np.float32)
    rest = cells - cells.mean((0, 1))
    for slope in (along[:, None, None], along[None, :, None]):
        rest = rest - slope * (rest * slope).mean((0, 1)) / (along**2).mean()
    return float(np.ptp(rest, axis=(0, 1)).max())
