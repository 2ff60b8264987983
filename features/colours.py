"""Colour profiles (ICC.1): from the colours of a wide-gamut or printed picture to sRGB."""

import struct
from functools import cache, lru_cache
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageCms

# A profile that changes no colour by more than this is one of the many variants of sRGB.
_SAME = 3
_MAX_BYTES = 4 * 2**20  # profiles of presses take up to 3 MB
_LEVELS = (0, 36, 73, 109, 146, 182, 219, 255)

# The colours of Adobe RGB (1998) in XYZ (D50): white, red, green and blue; and its gamma.
_ADOBE_COLOURS = (
    (b"wtpt", (0.9642, 1.0, 0.8249)),
    (b"rXYZ", (0.60974, 0.31111, 0.01947)),
    (b"gXYZ", (0.20528, 0.62567, 0.06087)),
    (b"bXYZ", (0.14919, 0.06322, 0.74457)),
)
_ADOBE_GAMMA = 563 / 256


def profile_of(image: Image.Image) -> bytes | None:
    """Return the ICC profile of a picture: its own, or Adobe RGB where a camera's EXIF names that.

    A camera marks Adobe RGB by the interoperability index R03 (DCF 2.0), often without a profile.
    """
    if profile := image.info.get("icc_profile"):
        return profile
    try:
        index = image.getexif().get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # the EXIF data is damaged
        return None
    named = index.rstrip("\0 ") == "R03" if isinstance(index, str) else False
    return _adobe_rgb() if named and image.mode in ("RGB", "RGBA") else None


@cache
def _adobe_rgb() -> bytes:
    """Return a minimal profile of Adobe RGB (1998), built from its published colours."""
    tags = {
        name: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in xyz))
        for name, xyz in _ADOBE_COLOURS
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(_ADOBE_GAMMA * 256), 0)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(data), len(tag))
        data += tag + b"\0" * (-len(tag) % 4)
    head = struct.pack(">I4sI12s12x", start + len(data), b"lcms", 0x02100000, b"mntrRGB XYZ ")
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return head + table + data


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
