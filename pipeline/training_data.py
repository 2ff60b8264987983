"""What a run learns from: the data sets and the size of their training splits."""

from collections.abc import Sequence
from typing import Any

from pipeline.caption_database import SplitImages
from pipeline.captions import CaptionTable, Image, Source, described


def training_data(table: CaptionTable) -> dict[str, Any]:
    """Return the names, terms and sizes of the training data, as config.json and cards have them.

    Returns:
        The "dataset", its number of "images" and "captions", and "sources", the same for each data
        set, if there are several or one with a name or terms of its own.
    """
    train = table.split("train")
    data = {"dataset": table.dataset, **_counts(train)}
    if table.sources != (Source(table.dataset, table.dataset),):
        data["sources"] = [
            {**described(source), **_counts(_of_source(train, source))} for source in table.sources
        ]
    return data


def _of_source(images: Sequence[Image], source: Source) -> Sequence[Image]:
    if isinstance(images, SplitImages):  # they have one source
        return images
    return [image for image in images if image.source == source.name]


def _counts(images: Sequence[Image]) -> dict[str, int]:
    if isinstance(images, SplitImages):
        return {"images": len(images), "captions": images.captions}
    return {"images": len(images), "captions": sum(len(image.captions) for image in images)}
