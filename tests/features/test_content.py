"""Pictures that show nothing are recognised, and no photograph is taken for one."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from features.content import EmptyPicture, check_content
from features.images import read_picture

EVERYDAY = Path(__file__).parents[3] / "shared/everyday/images"


def reopened(picture: Image.Image, kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return read_picture(file.getvalue())


def noisy(size: tuple[int, int], scale: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(128, scale, (size[1], size[0], 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def gradient(*colours: tuple[int, int, int]) -> Image.Image:
    return Image.fromarray(np.uint8([colours])).resize((300, 200), Image.Resampling.BILINEAR)


def boxed(*box: int) -> Image.Image:
    """A white picture with a black box on it."""
    picture = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(picture).rectangle(box, outline="black", width=9)
    return picture


SPACERS = {
    "one pixel": reopened(Image.new("RGB", (1, 1)), "GIF"),
    "a hairline": reopened(Image.new("RGB", (600, 2), "red"), "PNG"),
    "transparent": reopened(Image.new("RGBA", (200, 100), (9, 9, 9, 0)), "PNG"),
    "transparent palette": reopened(Image.new("P", (50, 50), 0), "GIF", transparency=0),
}
PLAIN = {
    "white": reopened(Image.new("RGB", (300, 200), "white"), "PNG"),
    "a JPEG": reopened(Image.new("RGB", (300, 200), (10, 90, 200)), "JPEG"),
    "noise of a camera": reopened(noisy((640, 480), 6), "JPEG"),
    "three colours": reopened(gradient((0, 0, 0), (255, 255, 255), (0, 0, 0)), "PNG"),
    "noise": reopened(noisy((640, 480), 60), "PNG"),
    "coarse noise": reopened(noisy((40, 30), 90).resize((640, 480), 0), "PNG"),
    "a slope": reopened(Image.linear_gradient("L").rotate(90), "PNG"),
    "grey noise": reopened(noisy((640, 480), 50).convert("L"), "JPEG", quality=15),
    "a frame": reopened(boxed(0, 0, 399, 299), "JPEG"),
    "a line": reopened(boxed(0, 150, 399, 158), "PNG"),
    "16 bits": reopened(Image.fromarray(np.full((90, 90), 40000, np.uint16)), "PNG"),
}


@pytest.mark.parametrize("name", [*SPACERS, *PLAIN])
def test_a_picture_that_shows_nothing_is_recognised(name):
    with pytest.raises(EmptyPicture) as caught:
        check_content({**SPACERS, **PLAIN}[name])
    assert caught.value.spacer == (name in SPACERS)


def test_small_things_on_a_plain_ground_are_content():
    for size, box in (((400, 300), (200, 150, 212, 162)), ((16, 16), (4, 4, 9, 9))):
        picture = Image.new("RGB", size, "skyblue")
        ImageDraw.Draw(picture).ellipse(box, fill="black")
        check_content(reopened(picture, "PNG"))
    for blocks in (8, 16):  # a chessboard is no noise
        squares = np.uint8(np.indices((blocks, blocks)).sum(0) % 2 * 255)
        check_content(reopened(Image.fromarray(squares).resize((400, 400), 0), "PNG"))
    frames = [Image.new("RGBA", (40, 40), (0, 0, 0, 0)), Image.new("RGBA", (40, 40), "red")]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(EmptyPicture) as caught:
        check_content(read_picture(animation.getvalue()))
    assert not caught.value.spacer, "a later frame may be visible"


def test_texture_and_print_are_content():
    lawn = noisy((256, 256), 60).filter(ImageFilter.GaussianBlur(1))
    check_content(reopened(lawn, "JPEG"))
    sheet = Image.new("RGB", (640, 480), "white")
    font = ImageFont.load_default()
    numbers = iter(np.random.default_rng(0).integers(0, 99999, 200))
    for left in range(0, 640, 64):
        for top in range(0, 480, 24):
            ImageDraw.Draw(sheet).rectangle((left, top, left + 64, top + 24), outline="silver")
            ImageDraw.Draw(sheet).text((left + 4, top + 5), str(next(numbers)), "black", font)
    check_content(reopened(sheet, "PNG"))


def test_no_photograph_is_taken_for_empty():
    pictures = sorted(EVERYDAY.glob("*.jpg"))[::11][:300]
    if len(pictures) < 290:
        pytest.skip(
            "needs the photographs in ../shared/everyday, which are not part of the project"
        )
    for picture in pictures:
        check_content(read_picture(picture))
