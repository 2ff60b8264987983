import os
import struct
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from features import images
from features.images import ENOUGH, PictureError, read_picture
from features.kinds import PICTURE_SUFFIXES

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


def retagged(values: np.ndarray, tag: int, old: int, new: int) -> bytes:
    """Save a TIFF with another value of a tag of 16 bits."""
    entries = [struct.pack("<HHIH", tag, 3, 1, value) for value in (old, new)]
    return saved(Image.fromarray(values), "TIFF").replace(*entries)


def test_tiffs_whose_numbers_mean_something_else_are_read_rightly_or_refused() -> None:
    grays = np.array([[0, 0x8000, 0xFFFF]], np.uint16)
    white_is_zero = retagged(grays, 262, 1, 0)
    unsigned = retagged(np.array([[0, 1 << 30, -1]], np.int32), 339, 2, 1)
    for tiff, expected in ((white_is_zero, [255, 127, 0]), (unsigned, [0, 64, 255])):
        assert np.asarray(read_picture(tiff))[0, :, 0].tolist() == expected
    planes = retagged(np.zeros((4, 4, 3), np.uint8), 284, 1, 2).replace(b"\b\0" * 3, b"\x10\0" * 3)
    with pytest.raises(PictureError, match="16 bits with separate colour planes"):
        read_picture(planes)


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


def profile(*colorants: tuple[float, float, float], gamma: float = 2.2) -> bytes:
    """A minimal ICC profile of an RGB display: the XYZ (D50) of its primaries, and its gamma."""
    white = (0.9642, 1.0, 0.8249)
    tags = {
        name: b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in xyz)
        for name, xyz in zip((b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ"), (white, *colorants), strict=True)
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    return icc(b"mntrRGB XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def press(lab_of_inks: dict[tuple[int, ...], tuple[int, int, int]]) -> bytes:
    """A minimal ICC profile of a press: the Lab (8 bits) of full inks, otherwise white."""
    inks = product((0, 1), repeat=4)
    table = b"".join(bytes(lab_of_inks.get(ink, (255, 128, 128))) for ink in inks)
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1\0\0\0\0\4\3\2\0" + identity + 4 * bytes(range(256)) + table + 3 * bytes(range(256))
    return icc(b"prtrCMYKLab ", {b"A2B0": lut})


def icc(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, data = struct.pack(">I", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(data), len(tag))
        data += tag + b"\0" * (-len(tag) % 4)
    head = struct.pack(">I4sI", start + len(data), b"lcms", 0x02100000) + kind + bytes(12)
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return head + table + data


DISPLAY_P3 = profile((0.515, 0.241, -0.001), (0.292, 0.692, 0.042), (0.157, 0.067, 0.784))
ADOBE_RGB = profile((0.610, 0.311, 0.019), (0.205, 0.626, 0.061), (0.149, 0.063, 0.745))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("wide", [DISPLAY_P3, ADOBE_RGB])
def test_colours_of_a_wide_gamut_become_srgb(kind: str, wide: bytes) -> None:
    """The same numbers mean purer colours there, so the gray parts fall and the rest rises."""
    options = {"lossless": True} if kind == "WEBP" else {}
    green = Image.new("RGB", (64, 48), (100, 200, 100))
    found = read_picture(saved(green, kind, icc_profile=wide, **options)).getpixel((9, 9))
    assert found[0] < 85
    assert found[1] > 195
    gray = read_picture(saved(Image.new("RGB", (64, 48), (150,) * 3), kind, icc_profile=wide))
    assert np.abs(np.subtract(gray.getpixel((9, 9)), 150)).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_adobe_rgb_that_only_exif_names_becomes_srgb(kind: str) -> None:
    def read(index: str, **profile: bytes) -> tuple[int, ...]:
        # The first directory points to that of EXIF, which points to that of interoperability.
        exif = b"Exif\0\0II*\0\x08\0\0\0"
        exif += struct.pack("<HHHIII", 1, 0x8769, 4, 1, 26, 0)
        exif += struct.pack("<HHHIII", 1, 0xA005, 4, 1, 44, 0)
        exif += struct.pack("<HHHI4sI", 1, 1, 2, 4, index.encode(), 0)
        options = {"lossless": True} if kind == "WEBP" else {}
        green = Image.new("RGB", (64, 48), (100, 200, 100))
        data = saved(green, kind, exif=exif, **options, **profile)
        return read_picture(data).getpixel((9, 9))

    assert np.abs(np.subtract(read("R03"), read("R98", icc_profile=ADOBE_RGB))).max() <= 2
    assert read("R03")[0] < 85
    assert read("R98")[0] > 97
    assert read("R03", icc_profile=SRGB)[0] > 97  # a profile says it better


def test_transparency_and_palettes_keep_their_profile() -> None:
    picture = Image.new("RGBA", (8, 8), (100, 200, 100, 255))
    picture.paste((0, 0, 0, 0), (4, 0, 8, 8))
    for mode in ("RGBA", "P"):
        image = picture if mode == "RGBA" else picture.quantize()
        found = read_picture(saved(image, "PNG", icc_profile=DISPLAY_P3))
        assert found.getpixel((1, 1))[0] < 85
        assert found.getpixel((6, 1)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("what", ["srgb", "noise", "cut", "of gray", "of inks"])
def test_a_profile_that_says_nothing_new_changes_no_pixel(kind: str, what: str) -> None:
    profiles = {"srgb": SRGB, "noise": bytes(range(200)), "cut": DISPLAY_P3[:200]}
    profiles |= {"of gray": icc(b"mntrGRAYXYZ ", {}), "of inks": press({})}
    picture = two_colours().effect_spread(20)
    plain, with_profile = (
        np.asarray(read_picture(saved(picture, kind, icc_profile=icc_profile)))
        for icc_profile in (None, profiles[what])
    )
    np.testing.assert_array_equal(plain, with_profile)


def test_inks_are_printed_by_their_profile() -> None:
    """This press prints a green where the plain formula gives cyan."""
    green = press({(1, 0, 0, 0): (150, 60, 190)})
    for kind in ("JPEG", "TIFF"):
        cyan = Image.new("CMYK", (64, 48), (255, 0, 0, 0))
        plain = read_picture(saved(cyan, kind)).getpixel((9, 9))
        assert plain[2] > 200, kind
        printed = read_picture(saved(cyan, kind, icc_profile=green)).getpixel((9, 9))
        assert printed[1] > printed[2] + 60, kind


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


LARGE = zlib.compress(bytes(3 * 2**20))
SIDE_CHUNKS = {
    "text, wrong CRC": chunk(b"tEXt", b"Title\0x", 7),
    "large zTXt": chunk(b"zTXt", b"Raw\0\0" + LARGE),
    "large iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
    "profile, wrong CRC": chunk(b"iCCP", b"icc\0\0" + zlib.compress(SRGB), 7),
    "large profile": chunk(b"iCCP", b"icc\0\0" + LARGE),
    "profile not compressed": chunk(b"iCCP", b"icc\0\0" + SRGB),
    "profile without data": chunk(b"iCCP", b""),
    "EXIF, wrong CRC": chunk(b"eXIf", b"MM\0*\0\0\0\x08", 7),
    "size of pixels cut off": chunk(b"pHYs", b"\0"),
    "gamma cut off": chunk(b"gAMA", b"") + chunk(b"cHRM", b"1"),
    "animation cut off": chunk(b"acTL", b"\0"),
    "unknown": chunk(b"prVt", b"\xff" * 9, 7),
}


@pytest.mark.parametrize("name", SIDE_CHUNKS)
def test_side_information_of_a_png_does_not_veto_its_pixels(name: str) -> None:
    png = saved(two_colours(), "PNG")
    for place in (33, png.index(b"IEND") - 4):  # after the header, and after the pixels
        assert_two_colours(read_picture(png[:place] + SIDE_CHUNKS[name] + png[place:]))


def test_a_png_with_damaged_text_keeps_its_orientation_and_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    green = Image.new("RGB", (64, 48), (100, 200, 100))
    png = saved(green, "PNG", exif=exif, icc_profile=DISPLAY_P3)
    picture = read_picture(png[:33] + SIDE_CHUNKS["text, wrong CRC"] + png[33:])
    assert picture.size == (48, 64)
    assert picture.getpixel((9, 9))[0] < 85


def segment(marker: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2 if length is None else length) + data


SIDE_SEGMENTS = {
    "EXIF without content": segment(0xE1, b"Exif\0\0"),
    "EXIF of noise": segment(0xE1, b"Exif\0\0MM\0*" + b"\xff" * 60),
    "XMP of noise": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='?'"),
    "profile, part 9 of 2": segment(0xE2, b"ICC_PROFILE\0\x09\x02abc"),
    "profile cut off": segment(0xE2, b"ICC_PROFILE\0"),
    "several pictures, noise": segment(0xE2, b"MPF\0" + b"\xff" * 20),
    "several pictures, cut off": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\3\0"),
    "Photoshop, cut off": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\xff\xff"),
    "comment, too short": segment(0xFE, b"hello", 3),
    "EXIF, too long": segment(0xE1, b"Exif\0\0MM", 999),
    "segment beyond the end": segment(0xE5, b"maker", 65535),
}


@pytest.mark.parametrize("name", SIDE_SEGMENTS)
def test_side_information_of_a_jpeg_does_not_veto_its_pixels(name: str) -> None:
    assert_two_colours(read_picture(JPEG[:2] + SIDE_SEGMENTS[name] + JPEG[2:]))


@pytest.mark.parametrize(
    "value",
    [
        struct.pack("<HIHH", 3, 1, 0, 0),
        struct.pack("<HIHH", 3, 1, 9, 0),
        struct.pack("<HI4s", 2, 2, b"6\0"),
        struct.pack("<HIf", 11, 1, 6.5),
        struct.pack("<HIHH", 3, 2, 6, 1),
        struct.pack("<HII", 4, 2**31, 2**31),
        struct.pack("<HII", 99, 1, 6),
    ],
)
def test_an_orientation_that_means_nothing_vetoes_no_pixels(value: bytes) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<H", 0x0112) + value + bytes(4)
    assert read_picture(saved(two_colours(), "JPEG", exif=exif)).mode == "RGB"


HEIC = Path(__file__).with_name("two_colours.heic")


def test_heic_is_read_where_its_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_two_colours(read_picture(HEIC))
    assert_two_colours(read_picture(HEIC.read_bytes()))
    monkeypatch.setattr(images, "has_heic_reader", lambda: False)
    with pytest.raises(
        PictureError, match=r"HEIC, .* install pi-heif with .* -m pip install .*, or convert"
    ) as caught:
        read_picture(HEIC)
    assert caught.value.passing


def test_a_damaged_heic_file_gives_a_picture_or_a_reason() -> None:
    random, content = np.random.default_rng(0), HEIC.read_bytes()
    for _ in range(60):
        data = bytearray(content)
        for place in random.integers(12, len(data), size=3):
            data[place] = random.integers(256)
        with suppress(PictureError):
            assert read_picture(bytes(data)).mode == "RGB"


def test_every_suffix_of_a_format_that_is_read_is_known() -> None:
    """One list: what is read by name is read in folders too."""
    known = {s for s, kind in Image.registered_extensions().items() if kind in images.FORMATS}
    assert known <= PICTURE_SUFFIXES


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "Git LFS pointer; .*lfs pull",
        ),
        (b"\n<!DOCTYPE html>\n<html><body>404", "not a picture but an HTML page"),
        (b"\xef\xbb\xbf<HTML lang=en>", "not a picture but an HTML page"),
        ("\ufeff<html>".encode("utf-16-le"), "not a picture but an HTML page"),
        (b"<!-- nginx --><html>", "not a picture but an HTML page"),
        (b"<html><svg></svg>", "not a picture but an HTML page"),
        (
            b'<?xml version="1.0"?>\n<!-- by Inkscape -->\n<svg width="9">',
            "an SVG drawing; convert",
        ),
        (b"<svg xmlns='x'><title>A dog</title>", "an SVG drawing"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML file; perhaps a server's"),
        (b'{"error": "not found"}', "a JSON file; perhaps a server's error"),
        (b"Not found", "not a picture but a text file"),
        ("Nicht gefunden: schön".encode(), "not a picture but a text file"),
        (b"PK\3\4\x14\0", "a zip archive"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "not a picture but a video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "not a picture but a video"),
        (b"\x1a\x45\xdf\xa3\x9f", "not a picture but a video"),
        (b"RIFF\0\0\0\0AVI LIST", "not a picture but a video"),
        (b"G" + bytes(187) + b"G" + bytes(187) + b"G", "not a picture but a video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "a camera's RAW file"),
        (b"FUJIFILMCCD-RAW 0201", "a camera's RAW file"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"\xff\x0a\xfa", "a JPEG XL file"),
        (bytes(2000), "a file of zeros only"),
        (JPEG[:20], "a damaged or truncated JPEG"),
        (PNG[:12], "a damaged or truncated PNG"),
        (b"\0\5\x16\7\0\2", "metadata that macOS wrote"),
    ],
)
def test_the_reason_names_what_the_file_is(start: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(start)
    for source in (path, start):
        with pytest.raises(PictureError, match=reason):
            read_picture(source)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://example.org/a.jpg", "https://example.org/a.jpg"),
        ("HTTP://example.org/a.jpg", "HTTP://example.org/a.jpg"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("file:///home/ann/a.jpg", "file:///home/ann/a.jpg"),
        ("data:image/png;base64,iVBORw0", "data:image/png;base64,iVBORw0"),
    ],
)
def test_a_web_address_is_named_as_such(given: str, shown: str) -> None:
    for source in (given, Path(given)):  # a path has one slash fewer
        with pytest.raises(PictureError, match=r"a web address .* download the picture") as caught:
            read_picture(source)
        assert f"({shown})" in str(caught.value)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").symlink_to(tmp_path / "annex" / "object")
    with pytest.raises(PictureError, match="a link to a file that is missing"):
        read_picture(tmp_path / "photo.jpg")
