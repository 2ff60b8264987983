"""From a file to an upright 8-bit RGB picture, or to a plain reason why not."""

import io
import re
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageFile, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

Image.init()
# Only formats that Pillow decodes by itself; EPS, for one, would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in _FORMATS if name in Image.OPEN)  # AVIF needs Pillow 11.3
# A picture takes up to 20 bytes a pixel while it is decoded, a JPEG at a reduced scale far less.
MAX_PIXELS = 100_000_000
MAX_JPEG_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # 178,956,970, beyond which Pillow refuses
# Each scan of a progressive JPEG is a pass over all pixels. Cameras and converters write some ten;
# a file of a megabyte can hold thousands, and be decoded for hours.
_MAX_SCANNED_PIXELS = 100 * MAX_PIXELS
_LARGE_PIXELS = 25_000_000
_one_large_at_a_time = threading.Lock()  # however many threads decode
# No network here looks at more than 600 x 600, so a JPEG whose shorter side is at least twice this
# is decoded at a half, a quarter or an eighth of its size, which costs a fraction of the time.
ENOUGH = 640
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")  # ISO/IEC 23008-12
_PILLOW = r"PIL\."  # its modules, as a pattern


class PictureError(Exception):
    """A picture that cannot be read; the message is the reason, short and without the path."""


def read_picture(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """Decode a picture (a path, its bytes or an open binary file) as upright 8-bit RGB.

    The EXIF orientation is applied, of an animation the first frame is taken, transparency is laid
    on white, and 16-bit grays keep their upper 8 bits. A large JPEG comes at a reduced scale, its
    shorter side not below `ENOUGH`. The colour profile is not applied.

    Raises:
        PictureError: the file is missing, empty, truncated, damaged, no picture, or has more than
            `MAX_PIXELS` pixels (a JPEG `MAX_JPEG_PIXELS`) or thousands of scans, which is known
            before anything is decoded.
    """
    _ignore_pillow_warnings()
    try:
        with Image.open(_checked(source), formats=FORMATS) as image:
            pixels = image.width * image.height
            _check_effort(image, pixels)
            image.draft(None, (ENOUGH, ENOUGH))
            # A JPEG that is not progressive takes memory for the pixels that are wanted only.
            held = pixels if "progressive" in image.info else image.width * image.height
            with _one_large_at_a_time if held > _LARGE_PIXELS else nullcontext():
                image.load()
                _turn_upright(image)
                return _rgb(image)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(_unknown(source)) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"more than {MAX_JPEG_PIXELS:,} pixels") from error
    except MemoryError as error:
        raise PictureError("too large for the memory of this machine") from error
    except OSError as error:
        raise PictureError(error.strerror or str(error)) from error
    except Exception as error:  # Pillow's decoders raise anything at all on a damaged file
        raise PictureError(f"damaged ({type(error).__name__}: {error})") from error


def _unknown(source: str | Path | bytes | BinaryIO) -> str:
    """Return why Pillow does not know what a picture is."""
    start = source[:12] if isinstance(source, bytes) else b""
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:] in _HEIC:
        return "HEIC, as phones write it, which is not read here: convert it to JPEG"
    return "not a picture, or of an unknown format"


def _checked(source: str | Path | bytes | BinaryIO) -> Path | BinaryIO:
    if isinstance(source, bytes):
        if not source:
            raise PictureError("the file is empty")
        return io.BytesIO(source)
    if not isinstance(source, (str, Path)):
        return source
    path = Path(source)
    if not path.exists():
        raise PictureError("no such file")
    if not path.is_file():  # opening a pipe would wait for ever
        raise PictureError("not a file but a directory or a device")
    if path.stat().st_size == 0:
        raise PictureError("the file is empty")
    return path


def _check_effort(image: ImageFile.ImageFile, pixels: int) -> None:
    """Refuse what would take gigabytes or hours to decode, by its header."""
    if not isinstance(image, JpegImageFile):
        if pixels > MAX_PIXELS:
            raise PictureError(f"more than {MAX_PIXELS:,} pixels")
        return
    assert image.fp is not None  # it is open; this is for the type checker
    place = image.fp.tell()
    image.fp.seek(0)
    # Inside a scan a byte 0xff is never followed by this one.
    scans = image.fp.read().count(b"\xff\xda")
    image.fp.seek(place)
    if scans * pixels > _MAX_SCANNED_PIXELS:
        raise PictureError(f"a JPEG of {scans:,} scans, which would take too long to decode")


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged EXIF data says nothing; the picture itself is whole
        return


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for one of Adobe's, whose inks are inverted.
        return ImageChops.invert(image).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        return white
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale gray values [height, width] of 16 bits, or of unknown range, to uint8.

    Integers that fit 16 bits keep their upper 8 bits, reals within 0 to 1 are multiplied by 255;
    anything else is stretched from its smallest to its largest value.
    """
    # Row by row, for copies of all of a large picture would take gigabytes.
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
    """Silence Pillow, which warns of odd metadata and of sizes that are judged here anyway.

    The filter is left in place: `warnings.catch_warnings` is not safe in the threads that decode.
    """
    if ("ignore", None, Warning, re.compile(_PILLOW), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW)
