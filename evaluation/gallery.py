"""Choosing the pictures of a report, and embedding them in its page as data URIs."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from features.commands import PREPARE
from features.errors import UserError
from features.images import PictureError, read_picture


def best_middle_worst(ranked: Sequence[int], count: int) -> list[list[int]]:
    """Return `count` of the `ranked` images: a third from the top, the middle and the end each.

    No image is in two of the lists. If there are fewer than `count`, all images are returned.
    """
    shown = range(min(count, len(ranked)))
    first, second, third = (len(part) for part in np.array_split(shown, 3))
    middle = max(first, (len(ranked) - second) // 2)
    end = len(ranked) - third
    return [list(ranked[:first]), list(ranked[middle : middle + second]), list(ranked[end:])]


def picture(path: Path, size: int) -> str:
    """Return the picture at `path` as the data URI of a JPEG, at most `size` pixels wide and high.

    Raises:
        UserError: it does not exist or cannot be read.
    """
    try:
        upright = read_picture(path)
    except PictureError as error:
        raise UserError(
            f"cannot read the picture {path}: {error}; if the data set was moved, run {PREPARE} "
            "with the new --root"
        ) from error
    upright.thumbnail((size, size), Image.Resampling.LANCZOS)
    return _data_uri(upright, "JPEG", quality=85, optimize=True)


def no_picture(size: int) -> str:
    """Return a grey square, for a picture that is not there, as a data URI."""
    return _data_uri(Image.new("L", (size, size), 200), "PNG", optimize=True)


def shade(weights: NDArray[np.float32]) -> str:
    """Return an overlay that leaves a picture bright where the decoder looked, as a data URI.

    `weights` [grid height, grid width] become a black PNG whose transparency grows with the weight,
    relative to the largest. Equal weights leave the entire picture bright.
    """
    share = weights / max(float(np.max(weights)), 1e-12)
    alpha = Image.fromarray(np.round(190 * (1 - np.clip(share, 0, 1))).astype(np.uint8))
    alpha = alpha.resize((48, 48), Image.Resampling.BICUBIC)
    return _data_uri(Image.merge("LA", (Image.new("L", alpha.size), alpha)), "PNG", optimize=True)


def _data_uri(image: Image.Image, kind: str, **options: int) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
