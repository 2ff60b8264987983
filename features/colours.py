"""Colour profiles (ICC.1): from the colours of a wide-gamut or printed picture to sRGB."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

# A profile that changes no colour by more than this is one of the many variants of sRGB.
_SAME = 3
_MAX_BYTES = 4 * 2**20  # profiles of presses take up to 3 MB
_LEVELS = (0, 36, 73, 109, 146, 182, 219, 255)


def in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Return a picture with its colours converted from its ICC profile to sRGB.

    The picture itself is returned if the profile describes sRGB, is damaged, or belongs to another
    kind of picture, such as a profile for RGB in a gray one.

    Args:
        picture: L, RGB, RGBA (its transparency is kept) or CMYK.
        profile: the bytes of the profile.
    """
    usable = isinstance(profile, bytes) and len(profile) <= _MAX_BYTES
    if not usable or picture.mode not in ("L", "RGB", "RGBA", "CMYK"):
        return picture
    transform = _transform(profile, picture.mode)
    if transform is None:
        return picture
    converted = ImageCms.applyTransform(picture, transform)
    return picture if converted is None else converted


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB, or None if none is needed or possible."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGBA" if mode == "RGBA" else "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if mode != "CMYK" and _is_srgb(transform, mode) else transform
    except Exception:  # a damaged profile, one of another kind, or a Pillow without LittleCMS
        return None


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform leaves a grid of colours as they are."""
    if mode == "L":
        colours = np.array([_LEVELS], np.uint8)
    else:
        grid = np.stack(np.meshgrid(*[_LEVELS] * 3), -1).reshape(1, -1, 3)
        opaque = np.full((*grid.shape[:2], 1), 255)
        colours = np.concatenate([grid, opaque], -1)[..., : len(mode)].astype(np.uint8)
    before = Image.fromarray(colours)
    after = ImageCms.applyTransform(before, transform)
    if after is None:
        return True
    change = np.asarray(after, np.int16) - np.asarray(before.convert(after.mode), np.int16)
    return bool(np.abs(change).max() <= _SAME)
