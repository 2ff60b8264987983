"""The built-in data set `shapes`: drawn scenes with five captions each.

Two to four coloured things stand, fly or swim in relation to each other. `world` lists what exists,
`layout` composes a scene, `pictures` paints it (with `pen` and `things`), and `captions` describes
it. A scene depends only on its seed and index.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random

from features.errors import UserError
from features.files import write_atomically
from features.progress import track
from pipeline.shapes.captions import captions
from pipeline.shapes.layout import Layout, compose
from pipeline.shapes.pictures import paint


@dataclass(frozen=True)
class Scene:
    """One drawn picture and its five captions."""

    file_name: str
    split: str
    captions: tuple[str, ...]


def draw(folder: Path, count: int, seed: int, size: int = 224) -> list[Scene]:
    """Draw `count` pictures of `size` x `size` pixels into `folder` as JPEG files.

    Picture i of a seed does not depend on `count`; an existing file is drawn again. Of every ten
    pictures, eight are in the training split, the ninth in val and the tenth in test.

    Raises:
        UserError: `count` or `size` is below 1, or a file cannot be written.
    """
    if count < 1 or size < 1:
        raise UserError(f"expected at least 1 picture of 1 pixel, found {count} of {size} pixels")
    scenes = []
    for i in track(range(count), "draw", "image"):
        layout = describe(seed, i)
        scene = Scene(f"{i:06d}.jpg", split_of(i), captions(layout, Random(f"{seed}/{i}/captions")))
        file = BytesIO()
        picture = paint(layout, Random(f"{seed}/{i}/picture"), size)
        picture.save(file, "JPEG", quality=92, subsampling=0)
        write_atomically(folder / scene.file_name, file.getvalue())
        scenes.append(scene)
    return scenes


def describe(seed: int, index: int) -> Layout:
    """Return the layout of picture `index` of `seed`."""
    return compose(Random(f"{seed}/{index}/layout"))


def split_of(index: int) -> str:
    """Return the split of picture `index`; any ten consecutive pictures have all three splits."""
    return {8: "val", 9: "test"}.get(index % 10, "train")
