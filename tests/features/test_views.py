import numpy as np
import pytest
from PIL import Image

from features.views import VIEWS, cut

SIZE = (30, 60)
NEAREST = Image.Resampling.NEAREST


@pytest.fixture
def picture() -> Image.Image:
    """A picture of 160 x 80 whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:80, :160].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=2))


def corners(view: np.ndarray) -> list[list[int]]:
    """Column and row of the picture at the top left and bottom right corners of a view."""
    return [view[0, 0, :2].tolist(), view[-1, -1, :2].tolist()]


def test_there_are_at_least_ten_views_the_whole_picture_first() -> None:
    assert VIEWS[:3] == ("whole", "mirror", "centre")
    assert len(set(VIEWS)) == len(VIEWS) >= 10


@pytest.mark.parametrize(
    ("name", "left", "top", "width", "height"),
    [
        ("whole", 0, 0, 160, 80),
        ("centre", 20, 10, 120, 60),
        ("top left", 0, 0, 120, 60),
        ("top right", 40, 0, 120, 60),
        ("bottom left", 0, 20, 120, 60),
        ("bottom right", 40, 20, 120, 60),
    ],
)
def test_crops_keep_three_quarters_of_each_side(
    picture: Image.Image, name: str, left: int, top: int, width: int, height: int
) -> None:
    (view,) = cut(picture, [name], SIZE, NEAREST)
    assert (view.dtype, view.shape) == (np.uint8, (*SIZE, 3))
    near = 2  # pixels, because a corner of a view averages a few
    found = np.array(corners(view))
    expected = np.array([[left, top], [left + width - 1, top + height - 1]])
    assert np.abs(found - expected).max() <= near


def test_every_view_has_its_mirror_image_and_the_requested_order_is_kept(
    picture: Image.Image,
) -> None:
    view = dict(zip(VIEWS, cut(picture, VIEWS, SIZE, Image.Resampling.BICUBIC), strict=True))
    np.testing.assert_array_equal(view["mirror"], view["whole"][:, ::-1])
    for name in ("centre", "top left", "top right", "bottom left", "bottom right"):
        np.testing.assert_array_equal(view[f"{name} mirrored"], view[name][:, ::-1])
    assert len({pixels.tobytes() for pixels in view.values()}) == len(VIEWS)
    chosen = cut(picture, ["mirror", "bottom left"], SIZE, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(chosen, [view["mirror"], view["bottom left"]])


def test_the_whole_picture_is_resized_as_pillow_does(picture: Image.Image) -> None:
    (view,) = cut(picture, ["whole"], SIZE, Image.Resampling.BICUBIC)
    expected = picture.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(view, np.asarray(expected))
