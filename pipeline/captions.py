"""The caption table: every image of a work directory with its split and reference captions.

`WORK/captions.json` is in the COCO caption format with three additions: each image has a "split",
each annotation has its "tokens" (so that later stages need no tokenizer), and "info" names the
data set and the image root. If several data sets were prepared as one, "info" describes these
"sources", and each image has the name of its "source".
"""

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from features.commands import PREPARE
from features.errors import UserError, first_few
from features.files import read_json, write_atomically
from pipeline.text import CONTROL

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Caption:
    """One reference caption as a person wrote it, and its tokens (see `pipeline.text`)."""

    text: str
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One of the data sets that a table consists of."""

    name: str
    """Unique in its table; by default that of the data set."""
    dataset: str
    """How it was read: flickr8k, coco, folder and so on."""
    terms: str | None = None
    """Terms of use or licence, if the user stated them."""


@dataclass(frozen=True)
class Image:
    """One picture of the data set; `file_name` is relative to the root of its table.

    `source` is the name of the data set that the picture came from.
    """

    id: int
    file_name: str
    split: str
    captions: tuple[Caption, ...]
    # Not part of the repr, whose digest identifies the images of runs older than this field.
    source: str = field(default="", repr=False)


@dataclass(frozen=True)
class CaptionTable:
    """All images of a data set, in the order of the feature store's rows.

    `sources` are the data sets that it consists of; empty stands for the data set itself.
    """

    dataset: str
    root: Path
    images: Sequence[Image]
    sources: tuple[Source, ...] = ()

    def split(self, name: str) -> Sequence[Image]:
        """Return the images of a split.

        Raises:
            UserError: the data set has no image in that split.
        """
        images = [image for image in self.images if image.split == name]
        if not images:
            raise no_such_split(self.dataset, name, Counter(i.split for i in self.images))
        return images

    def has_split(self, name: str) -> bool:
        """Whether the data set has an image in a split."""
        return any(image.split == name for image in self.images)

    def with_ids(self, image_ids: Collection[int]) -> list[Image]:
        """Return the images that have one of these ids."""
        return [image for image in self.images if image.id in image_ids]

    def file_names(self) -> Iterable[tuple[int, str]]:
        """Yield the id and the file name of every image."""
        return ((image.id, image.file_name) for image in self.images)

    def path(self, image: Image) -> Path:
        """Return the path of the picture of `image`."""
        return self.root / image.file_name


def no_such_split(dataset: str, name: str, counts: Mapping[str, int]) -> UserError:
    """Return the error of a data set that has no image in the split `name`."""
    listed = ", ".join(f"{split} ({count})" for split, count in counts.items() if count)
    return UserError(f"the data set {dataset} has no split {name!r}; it has {listed}")


def check_file_name(name: object) -> str:
    """Return `name` if it is a relative path that stays inside the image root.

    Raises:
        UserError: it is not a string, is an absolute path, contains "..", a newline or another
            control character, or contains a lone surrogate, which cannot be encoded as UTF-8.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"expected the file name of an image, found {name!r}")
    if leaves_root(name) or CONTROL.search(name) or any("\ud800" <= c <= "\udfff" for c in name):
        raise UserError(f"the file name {name!r} leaves the image root or is not a plain path")
    return name


def leaves_root(name: str) -> bool:
    """Whether a file name is an absolute path or contains ".."."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def is_id(value: object) -> TypeGuard[int]:
    """Whether `value` is an image id: a non-negative integer that fits in 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def save(table: CaptionTable, path: Path) -> None:
    """Write `table` to `path` as COCO captions, atomically."""
    root = table.root.resolve()
    # A root inside the work directory is stored relative to it, so that the directory can be moved.
    if root.is_relative_to(path.parent.resolve()):
        root = root.relative_to(path.parent.resolve())
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in table.images:
        entry = {"id": image.id, "file_name": image.file_name, "split": image.split}
        if image.source not in ("", table.dataset):
            entry["source"] = image.source
        images.append(entry)
        for caption in image.captions:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "caption": caption.text,
                    "tokens": list(caption.tokens),
                }
            )
    info: dict[str, Any] = {"dataset": table.dataset, "image_root": str(root)}
    if table.sources not in ((), (Source(table.dataset, table.dataset),)):
        info["sources"] = [described(source) for source in table.sources]
    content = {"info": info, "images": images, "annotations": annotations}
    # Not indented: that would put every token on a line of its own.
    write_atomically(path, json.dumps(content, ensure_ascii=False))


def described(source: Source) -> dict[str, str]:
    """Return a source as captions.json describes it, without terms that nobody stated."""
    return {name: value for name, value in vars(source).items() if value is not None}


def load(path: Path) -> CaptionTable:
    """Read and check the caption table of a work directory.

    Raises:
        UserError: the file is missing, is not JSON, lacks a key, has a value of the wrong type,
            repeats an image id, or names an unknown split, an unknown image, or a file outside
            the image root.
    """
    if path.suffix == ".db":
        raise UserError(
            f"expected captions.json, found {path}, which has the captions of pictures in shards; "
            "their features are in the folder that it names, and pipeline.extract --shards adds to "
            "them"
        )
    return parse(read_json(path, PREPARE), path)


def parse(content: Any, path: Path) -> CaptionTable:
    """Check `content`, read from the JSON file `path`, and return its caption table; see `load`."""
    try:
        info = content["info"]
        dataset = _string(info["dataset"])
        captions = _captions_by_image(content["annotations"])
        images = tuple(
            Image(
                _id(entry["id"]),
                check_file_name(entry["file_name"]),
                _string(entry["split"]),
                tuple(captions.pop(entry["id"], ())),
                _string(entry.get("source", dataset)),
            )
            for entry in content["images"]
        )
        root = path.parent / _string(info["image_root"])
        table = CaptionTable(dataset, root, images, _sources(info, dataset, images))
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}; create it again with {PREPARE}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not a caption table ({error}); create it again with {PREPARE}"
        ) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if captions:
        raise UserError(
            f"{path}: {len(captions)} image ids have captions but no image: {first_few(captions)}"
        )
    check_ids(images, path)
    unknown = {image.split for image in images} - set(SPLITS)
    if unknown:
        raise UserError(f"{path}: unknown splits {sorted(unknown)}; expected {', '.join(SPLITS)}")
    return table


def _sources(info: dict[str, Any], dataset: str, images: Iterable[Image]) -> tuple[Source, ...]:
    """Return the sources that "info" describes, and those that only images name."""
    described = [
        Source(
            _string(entry["name"]),
            _string(entry["dataset"]),
            None if entry.get("terms") is None else _string(entry["terms"]),
        )
        for entry in info.get("sources", [])
    ]
    names = [source.name for source in described]
    if len(set(names)) < len(names):
        raise ValueError(f"two sources have the same name: {', '.join(names)}")
    others = dict.fromkeys(image.source for image in images if image.source not in names)
    return (*described, *(Source(name, name) for name in others))


def check_ids(images: Iterable[Image], where: Path) -> None:
    """Raise UserError if two images share an id."""
    counts = Counter(image.id for image in images)
    repeated = [image_id for image_id, count in counts.items() if count > 1]
    if repeated:
        raise UserError(f"{where}: {len(repeated)} image ids occur twice: {first_few(repeated)}")


def _captions_by_image(annotations: list[dict[str, Any]]) -> dict[int, list[Caption]]:
    captions: dict[int, list[Caption]] = {}
    for entry in annotations:
        if type(entry["tokens"]) is not list:
            raise TypeError(f"expected a list of tokens, found {entry['tokens']!r:.80}")
        # Captions repeat the same few thousand words; interning keeps one copy of each in memory.
        tokens = tuple(map(sys.intern, entry["tokens"]))
        caption = Caption(_string(entry["caption"]), tokens)
        captions.setdefault(_id(entry["image_id"]), []).append(caption)
    return captions


def _id(value: object) -> int:
    if not is_id(value):
        raise TypeError(f"expected an image id (a non-negative integer), found {value!r:.80}")
    return value


def _string(value: object) -> str:
    if type(value) is not str or "\0" in value:
        raise TypeError(f"expected a string, found {value!r:.80}")
    return value
