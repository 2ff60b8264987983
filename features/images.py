"""Decoding: from a file to an upright 8-bit RGB picture, or to the reason why it cannot be read."""

import io
import re
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import (
    Image,
    ImageChops,
    ImageFile,
    ImageOps,
    TiffImagePlugin,
    UnidentifiedImageError,
)
from PIL.JpegImagePlugin import JpegImageFile

from features.colours import in_srgb, profile_of
from features.extras import how_to_install
from features.kinds import AVIF_SUFFIXES, HEIC_SUFFIXES, LONGEST, is_heic, kind_of, web_address
from features.side_information import pixels_only

Image.init()
# Only formats that Pillow decodes by itself; EPS, for example, would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in _FORMATS if name in Image.OPEN)  # AVIF needs Pillow 11.3
# Decoding takes up to 20 bytes a pixel, far less for a JPEG at a reduced scale.
MAX_PIXELS = 100_000_000
MAX_JPEG_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # 178,956,970, beyond which Pillow refuses
# Each scan of a progressive JPEG is a pass over all pixels. Cameras and converters write about ten;
# a file of one megabyte can contain thousands and take hours to decode.
_MAX_SCANNED_PIXELS = 100 * MAX_PIXELS
_LARGE_PIXELS = 25_000_000
# Bounds the memory of many decoding threads; processes replace it by a lock among them.
one_large_at_a_time: AbstractContextManager[object] = threading.Lock()
# No network here has an input larger than 600 x 600. So a JPEG whose shorter side is at least twice
# this long is decoded at a half, a quarter or an eighth of its size, which is much faster.
ENOUGH = 640
_PILLOW = r"PIL\."  # a pattern for Pillow's modules


class PictureError(Exception):
    """A picture that cannot be read; the message is the reason, short and without the path.

    Attributes:
        passing: whether the same file may be readable later: it is missing or out of reach now.
    """

    def __init__(self, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


def read_picture(source: str | Path | bytes | BinaryIO | Image.Image) -> Image.Image:
    """Decode a picture (a path, its bytes or an open binary file) as upright 8-bit sRGB.

    An image of Pillow is converted in the same way, and is not changed.

    The EXIF orientation and the colour profile are applied, an animation gives its first frame,
    transparent parts become white, and 16-bit grays keep their upper 8 bits. A large JPEG is
    decoded at a reduced scale; its shorter side is then at least `ENOUGH`. Damaged or oversized
    text, profiles and other side information is ignored. HEIC needs the package pi-heif.

    Raises:
        PictureError: the file is missing, empty, truncated, damaged or not a picture; or it has
            more than `MAX_PIXELS` pixels (a JPEG `MAX_JPEG_PIXELS`) or thousands of scans, which
            is checked before decoding.
    """
    _ignore_pillow_warnings()
    if isinstance(source, Image.Image):
        return _converted(source)
    try:
        opened = _checked(source)
        try:
            return _decoded(opened)
        except (PictureError, Image.DecompressionBombError, MemoryError):
            raise
        except Exception as error:
            bare = pixels_only(opened)
            if bare is None:
                raise
            try:
                return _decoded(io.BytesIO(bare))
            except Exception:  # the pixels are damaged too
                raise error from None
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise _unknown(source) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"more than {MAX_JPEG_PIXELS:,} pixels") from error
    except MemoryError as error:
        raise PictureError("too large for the memory of this machine", passing=True) from error
    except OSError as error:
        # Pillow's own errors about damage have no number.
        raise PictureError(error.strerror or str(error), error.errno is not None) from error
    except Exception as error:  # Pillow's decoders raise anything at all on a damaged file
        raise PictureError(f"damaged ({type(error).__name__}: {error})") from error


def _decoded(source: Path | BinaryIO) -> Image.Image:
    with opened(source) as image:
        _check_planes(image)
        pixels = image.width * image.height
        _check_effort(image, pixels)
        image.draft(None, (ENOUGH, ENOUGH))
        # Only a progressive JPEG needs memory for all pixels when it is decoded at a scale.
        held = pixels if "progressive" in image.info else image.width * image.height
        with one_large_at_a_time if held > _LARGE_PIXELS else nullcontext():
            image.load()
            _turn_upright(image)
            return _rgb(image)


def _converted(image: Image.Image) -> Image.Image:
    """Return an upright 8-bit sRGB copy of an image of Pillow; see `read_picture`."""
    try:
        if isinstance(image, JpegImageFile) and image.tile and image.fp is not None:
            # Its pixels are not decoded yet. As a file it is decoded at the same reduced scale.
            place = image.fp.tell()
            image.fp.seek(0)
            content = image.fp.read()
            image.fp.seek(place)
            return read_picture(content)
        if image.width * image.height > MAX_PIXELS and not isinstance(image, JpegImageFile):
            raise PictureError(f"more than {MAX_PIXELS:,} pixels")
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # only the EXIF data is damaged, or the pixels, which copying reports
            upright = image.copy()
        upright.format = image.format  # which copies lose
        return _rgb(upright)
    except PictureError:
        raise
    except OSError as error:
        raise PictureError(error.strerror or str(error), error.errno is not None) from error
    except Exception as error:  # Pillow raises anything at all on damaged or closed images
        raise PictureError(f"damaged ({type(error).__name__}: {error})") from error


def opened(source: Path | BinaryIO) -> ImageFile.ImageFile:
    """Open a picture as Pillow does, without decoding its pixels.

    Raises:
        Exception: anything at all that Pillow raises on a file that it cannot read.
    """
    _ignore_pillow_warnings()
    try:
        return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        if not is_heic(_start(source)) or not has_heic_reader():
            raise
        _register_heic()
        return Image.open(source, formats=["HEIF"])


@cache
def has_heic_reader() -> bool:
    """Whether the package that decodes HEIC is installed."""
    return find_spec("pi_heif") is not None


@cache
def _register_heic() -> None:
    import pi_heif  # here, because most people have no HEIC

    pi_heif.register_heif_opener(thumbnails=False)


def _heic_advice() -> str:
    return f"install pi-heif with {how_to_install('heic')}, or convert it to JPEG"


def can_read(suffix: str) -> str | None:
    """Return None if pictures with this suffix can be read here, otherwise the missing reader."""
    if suffix in HEIC_SUFFIXES and not has_heic_reader():
        return f"HEIC ({_heic_advice()})"
    if suffix in AVIF_SUFFIXES and "AVIF" not in FORMATS:
        return "AVIF (needs Pillow 11.3 or newer)"
    return None


def _start(source: str | Path | bytes | BinaryIO) -> bytes:
    """Return the first `LONGEST` bytes of a picture."""
    if isinstance(source, bytes):
        return source[:LONGEST]
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            return file.read(LONGEST)
    source.seek(0)
    return source.read(LONGEST)


def _unknown(source: str | Path | bytes | BinaryIO) -> PictureError:
    """Return the error for a picture that Pillow does not recognise: what it is instead."""
    start = _start(source)
    if is_heic(start) and not has_heic_reader():
        return PictureError(f"HEIC, which needs another package: {_heic_advice()}", passing=True)
    kind = kind_of(start)
    if kind is None:
        return PictureError("not a picture, or in an unknown format")
    what = kind.name if kind.is_picture else f"not a picture but {kind.name}"
    return PictureError(f"{what}; {kind.advice}" if kind.advice else what)


def _checked(source: str | Path | bytes | BinaryIO) -> Path | BinaryIO:
    if isinstance(source, bytes):
        if not source:
            raise PictureError("the file is empty")
        return io.BytesIO(source)
    if not isinstance(source, (str, Path)):
        return source
    path = Path(source)
    if not path.exists():
        if address := web_address(str(source)):
            raise PictureError(
                f"a web address ({address}), but expected a file: download the picture first"
            )
        if path.is_symlink():
            raise PictureError("a link to a file that is missing", passing=True)
        raise PictureError("no such file", passing=True)
    if not path.is_file():  # opening a pipe would block for ever
        raise PictureError("not a file but a directory or a device")
    if path.stat().st_size == 0:
        raise PictureError("the file is empty")
    return path


def _check_effort(image: ImageFile.ImageFile, pixels: int) -> None:
    """Refuse a picture that would take gigabytes or hours to decode, without decoding it."""
    if not isinstance(image, JpegImageFile):
        if pixels > MAX_PIXELS:
            raise PictureError(f"more than {MAX_PIXELS:,} pixels")
        return
    assert image.fp is not None  # for the type checker: the file is open
    place = image.fp.tell()
    image.fp.seek(0)
    # The start of a scan. In the data of a scan, 0xff is never followed by 0xda.
    scans = image.fp.read().count(b"\xff\xda")
    image.fp.seek(place)
    if scans * pixels > _MAX_SCANNED_PIXELS:
        raise PictureError(f"a JPEG of {scans:,} scans, which would take too long to decode")


def _check_planes(image: Image.Image) -> None:
    """Refuse uncompressed TIFFs of 16 bits that store each colour apart: Pillow garbles them."""
    tags = getattr(image, "tag_v2", {})
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))
    if planes and len(bits) > 1 and max(bits) > 8 and image.info.get("compression") == "raw":
        raise PictureError("a TIFF of 16 bits with separate colour planes; convert it to PNG")


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # only the EXIF data is damaged, not the picture
        return


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(_grays(image))).convert("RGB")
    picture: Image.Image = image
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        # Pillow treats every CMYK JPEG as one by Adobe, with inverted inks.
        picture = ImageChops.invert(image)
    transparent = image.has_transparency_data
    if transparent:
        picture = picture.convert("RGBA")
    elif picture.mode == "P":
        picture = picture.convert("RGB")
    if profile := profile_of(image):
        picture = in_srgb(picture, profile)
    if not transparent:
        return picture.convert("RGB")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture)
    # For `features.content`; a later frame of an animation may be visible.
    invisible = picture.getchannel("A").getextrema() == (0, 0)
    white.info["transparent"] = invisible and not getattr(image, "is_animated", False)
    return white


def _grays(image: Image.Image) -> np.ndarray:
    """Return the gray values [height, width] of a picture of more than 8 bits; black is lowest."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", None)  # of a TIFF file
    if tags is None:
        return values
    if values.dtype == np.int32 and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)  # Pillow has no unsigned integers of 32 bits
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is lowest
        values = ~values if values.dtype.kind in "iu" else _finite(values).max() - values
    return values


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale gray values [height, width] of 16 bits, or of unknown range, to uint8.

    Integers that fit into 16 bits keep their upper 8 bits. Floats from 0 to 1 are multiplied by
    255. Everything else is scaled linearly, so that its smallest value is 0 and its largest 255.
    """
    # Row by row, because copies of a large picture would take gigabytes.
    low = min(float(_finite(row).min()) for row in values)
    high = max(float(_finite(row).max()) for row in values)
    scaled = np.empty(values.shape, np.uint8)
    for row, into in zip(values, scaled, strict=True):
        row = _finite(row)
        if values.dtype.kind in "iu" and low >= 0 and high < 2**16:
            into[:] = row.astype(np.uint16) >> 8
            continue
        if low < 0 or high > 1:
            row = (row.astype(np.float64) - low) / max(high - low, 1e-12)
        into[:] = np.round(row * 255)
    return scaled


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values, posinf=0, neginf=0)


def _ignore_pillow_warnings() -> None:
    """Silence Pillow's warnings about odd metadata and about sizes, which are checked here anyway.

    The filter stays in place, because `warnings.catch_warnings` is not safe in decoding threads.
    """
    if ("ignore", None, Warning, re.compile(_PILLOW), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW)
