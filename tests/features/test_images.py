import os
import struct
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features import images
from features.images import ENOUGH, PictureError, read_picture

RED, BLUE = (200, 30, 30), (30, 30, 200)


def two_colours(width: int = 64, height: int = 48) -> Image.Image:
    """A picture whose left half is red and whose right half is blue."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def assert_two_colours(picture: Image.Image, tolerance: int = 12) -> None:
    assert picture.mode == "RGB"
    width, height = picture.size
    for x, colour in ((width // 4, RED), (3 * width // 4, BLUE)):
        found = picture.getpixel((x, height // 2))
        assert np.abs(np.subtract(found, colour)).max() <= tolerance, (found, colour)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_reads_common_formats(kind: str) -> None:
    assert_two_colours(read_picture(saved(two_colours(), kind)))


def test_reads_paths_bytes_and_open_files(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(saved(two_colours(), "PNG"))
    assert_two_colours(read_picture(path))
    assert_two_colours(read_picture(str(path)))
    with path.open("rb") as file:
        assert_two_colours(read_picture(file))


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return jpeg[:start] + jpeg[start + 2 + length :]


def test_cmyk_jpeg_of_adobe_is_not_inverted() -> None:
    jpeg = saved(two_colours().convert("CMYK"), "JPEG")
    assert b"Adobe" in jpeg
    assert_two_colours(read_picture(jpeg))


def test_cmyk_jpeg_without_adobe_marker_is_read_as_plain_inks() -> None:
    # Pillow writes inverted inks; a file of plain inks is the negative without the marker.
    inks = two_colours().convert("CMYK").point(lambda ink: 255 - ink)
    assert_two_colours(read_picture(without_adobe_marker(saved(inks, "JPEG"))))


def test_cmyk_tiff() -> None:
    assert_two_colours(read_picture(saved(two_colours().convert("CMYK"), "TIFF")))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_becomes_three_equal_channels(mode: str) -> None:
    picture = Image.new("L", (8, 8), 255)
    picture.paste(0, (4, 0, 8, 8))
    pixels = np.asarray(read_picture(saved(picture.convert(mode), "PNG")))
    np.testing.assert_array_equal(pixels[0, :, 0], [255] * 4 + [0] * 4)
    assert (pixels == pixels[:, :, :1]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_keeps_its_upper_bits(kind: str) -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    pixels = np.asarray(read_picture(saved(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(pixels[:, :, 0], values >> 8)


def test_dark_16_bit_gray_stays_dark() -> None:
    values = np.full((4, 4), 300, dtype=np.uint16)
    assert np.asarray(read_picture(saved(Image.fromarray(values), "PNG"))).max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[-10, 0, 10]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0, 1]], np.float32), [0, 0, 255]),
        (np.array([[0, 1 << 20, 1 << 21]], np.int32), [0, 128, 255]),
        (np.array([[0, 512, 65535]], np.int32), [0, 2, 255]),
    ],
)
def test_gray_of_reals_and_long_integers_is_scaled(values: np.ndarray, expected: list) -> None:
    pixels = np.asarray(read_picture(saved(Image.fromarray(values), "TIFF")))
    np.testing.assert_array_equal(pixels[0, :, 0], expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (4, 0, 8, 8))
    png = saved(picture.quantize() if mode == "P" else picture.convert(mode), "PNG")
    pixels = np.asarray(read_picture(png))
    np.testing.assert_array_equal(pixels[0, :, 0], [0] * 4 + [255] * 4)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: rotate by 90 degrees clockwise
    turned = two_colours().rotate(90, expand=True)
    picture = read_picture(saved(turned, "JPEG", exif=exif))
    assert picture.size == (64, 48)
    assert_two_colours(picture)


def test_a_picture_with_damaged_exif_data_is_read() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"
    assert_two_colours(read_picture(saved(two_colours(), "JPEG", exif=exif)))


def test_an_animation_gives_its_first_frame() -> None:
    other = Image.new("RGB", (64, 48), (0, 255, 0))
    for kind in ("GIF", "WEBP", "PNG"):
        animation = saved(two_colours(), kind, save_all=True, append_images=[other])
        assert_two_colours(read_picture(animation), tolerance=20)


def test_a_huge_jpeg_is_decoded_at_a_reduced_scale() -> None:
    picture = read_picture(saved(two_colours(6000, 4000), "JPEG"))
    assert picture.size == (1500, 1000)
    assert min(picture.size) >= ENOUGH
    assert_two_colours(picture)


def png_header(width: int, height: int) -> bytes:
    """A gray 1-bit PNG of any size, without its pixels."""
    chunks = b""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    for name, data in ((b"IHDR", header), (b"IDAT", b"")):
        crc = zlib.crc32(name + data)
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)
    return b"\x89PNG\r\n\x1a\n" + chunks


JPEG = saved(two_colours(), "JPEG")
PNG = saved(two_colours().effect_spread(20), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is no picture", "not a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "damaged or truncated HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (JPEG[: len(JPEG) // 2], "(?i)truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:60] + b"\xff" * 40 + PNG[100:], "broken"),
        (png_header(20_000, 20_000), "more than 178,956,970 pixels"),
        (png_header(10_001, 10_000), "more than 100,000,000 pixels"),
        # Pillow warns about this size, and warnings are errors in tests.
        (png_header(10_000, 10_000), "truncated"),
    ],
)
def test_an_unreadable_picture_gives_a_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(PictureError, match=reason) as caught:
            read_picture(source)
        assert str(tmp_path) not in str(caught.value)


def test_a_path_without_a_file_gives_a_reason(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no such file"):
        read_picture(tmp_path / "missing.jpg")
    with pytest.raises(PictureError, match="not a file but a directory"):
        read_picture(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="not a file"):
        read_picture(tmp_path / "pipe.jpg")


def test_any_damage_gives_a_picture_or_a_reason() -> None:
    random = np.random.default_rng(0)
    sources = [saved(two_colours(), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF")]
    failed = 0
    for _ in range(200):
        data = bytearray(sources[random.integers(len(sources))])
        for place in random.integers(0, len(data), size=3):
            data[place] = random.integers(256)
        try:
            assert read_picture(bytes(data)).mode == "RGB"
        except PictureError:
            failed += 1
    assert 0 < failed < 200


def test_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    """A file of a megabyte could keep a core busy for hours."""
    once = saved(Image.new("L", (4000, 4000), 128), "JPEG", progressive=True)
    place = once.rindex(b"\xff\xda")
    scan = once[place:-2]
    assert read_picture(once[:-2] + 10 * scan + once[-2:]).size == (1000, 1000)
    with pytest.raises(PictureError, match=r"a JPEG of 1,0\d\d scans, .* too long"):
        read_picture(once[:-2] + 1000 * scan + once[-2:])


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So any number of threads needs the memory of only one large picture."""
    monkeypatch.setattr(images, "_LARGE_PIXELS", 0)
    inside, most = [], []

    def slowly(picture: Image.Image) -> Image.Image:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return picture.convert("RGB")

    monkeypatch.setattr(images, "_rgb", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_picture, [PNG] * 8))
    assert max(most) == 1


def test_a_float_picture_is_not_copied_as_a_whole() -> None:
    """So the largest picture allowed fits into 2 GB."""
    values = np.linspace(0, 5, 4_000_000, dtype=np.float32).reshape(2000, 2000)
    tracemalloc.start()
    try:
        assert images._to_8_bits(values).max() == 255
        assert tracemalloc.get_traced_memory()[1] < 2 * values.size
    finally:
        tracemalloc.stop()


def test_threads_read_without_leaking_warnings() -> None:
    def read(i: int) -> str:
        with pytest.raises(PictureError) as caught:
            read_picture(png_header(9_000, 9_000 + i))
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        assert all("truncated" in reason for reason in pool.map(read, range(16)))
