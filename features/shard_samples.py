"""The pictures and captions of a shard, whatever it holds.

A shard may be damaged or hostile. Reading it takes bounded time and memory, and ends with its
samples or with a `ShardError`.
"""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from features.errors import first_few
from features.generated_texts import is_registry, registered
from features.images import PictureError, read_picture
from features.kinds import PICTURE_SUFFIXES
from features.remote_files import (
    TransferError,
    download,
    fetched,
    is_url,
    may_pass,
    reason,
    shown,
)
from features.shard_captions import OTHER_TEXT, TEXTS, captions_in, decoded, extension_of
from features.shard_folders import names_in
from features.shard_tar import TarError, inflate, is_gzip, members
from features.shards import CONTROL, Shard, ShardError

MAX_PICTURES = 500_000  # in a shard
MAX_PICTURE_BYTES = 2**27
_MAX_SHARD_BYTES = 2**36
_MAX_TEXT_BYTES = 2**22  # of a caption file
MAX_TEXTS_BYTES = 2**28  # of all captions of a shard, which are held in memory
_MAX_KEY_BYTES = 2000
_PICTURE_SECONDS = 120.0  # to fetch one from the web


class Content(NamedTuple):
    """Where the bytes of a file lie."""

    source: str
    """Local path or URL."""
    start: int = 0
    bytes: int | None = None
    """Their number; None means all of the source."""


class Sample(NamedTuple):
    """A picture of a shard with its captions."""

    key: str
    file_name: str
    captions: list[str]
    content: Content

    @property
    def id(self) -> int:
        """The image id made of the key; see `id_of_key`."""
        return id_of_key(self.key)

    def __str__(self) -> str:
        return shown(self.file_name)


def id_of_key(key: str) -> int:
    """Return the id of a picture: the upper 63 bits of the key's BLAKE2b hash of 8 bytes.

    It is not negative, fits into int64, and is the same on every machine and in every version.
    """
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def samples_of(
    shard: Shard,
    folder: Path,
    columns: Mapping[str, str] | None = None,
    prefix: bool = False,
    passed_over: Counter[str] | None = None,
) -> list[Sample]:
    """Return the pictures of a shard with their captions, in its order; no picture is read.

    Args:
        shard: the shard.
        folder: a local folder for a copy of the shard, if it is remote or compressed; the samples
            can be read as long as it is there.
        columns: of a parquet list, the columns by what they hold; see `features.shard_lists`.
        prefix: put the shard's name and a slash before each key, where keys repeat between shards.
        passed_over: counts the files and folders of each kind that are left out.

    Raises:
        ShardError: the shard cannot be read, is damaged, hostile or too large, has no picture, or
            two pictures have the same key or id.
        OSError: `folder` cannot be written.
    """
    passed_over = Counter() if passed_over is None else passed_over
    if shard.suffix == ".parquet":
        from features.shard_lists import listed

        found = listed(_local_copy(shard, folder), shard.source, columns or {})
    elif shard.suffix:
        found = _in_tar(_local_copy(shard, folder), folder, passed_over)
    else:
        found = _in_folder(shard, passed_over)
    samples: list[Sample] = []
    seen: dict[int, str] = {}
    for sample in found:
        if len(samples) == MAX_PICTURES:
            raise ShardError(f"more than {MAX_PICTURES:,} pictures; divide it into several shards")
        sample = sample._replace(key=_text(sample.key), file_name=_text(sample.file_name))
        _check_key(sample.key)
        if prefix:
            sample = sample._replace(key=f"{shard.name}/{sample.key}")
        if (other := seen.get(sample.id)) is not None:
            same = "the key" if other == sample.key else f"an id equal to that of {other!r}:"
            raise ShardError(f"two pictures have {same} {sample.key!r}")
        seen[sample.id] = sample.key
        samples.append(sample)
    if not samples:
        raise ShardError("it has no pictures")
    return samples


def read_sample(sample: Sample) -> Image.Image:
    """Decode the picture of a sample; see `features.images.read_picture`.

    Raises:
        PictureError: it cannot be read, or has more than `MAX_PICTURE_BYTES` bytes.
    """
    source, _, count = sample.content
    if count is not None and count > MAX_PICTURE_BYTES:
        raise PictureError(f"larger than {MAX_PICTURE_BYTES:,} bytes")
    if not is_url(source) and count is None:
        return read_picture(Path(source))
    try:
        return read_picture(_content(sample.content, MAX_PICTURE_BYTES))
    except TransferError as error:
        raise PictureError(str(error), error.passing) from error
    except OSError as error:
        raise PictureError(reason(error), may_pass(error)) from error


def _content(content: Content, most: int) -> bytes:
    """Return the bytes of a file; TransferError or OSError if it cannot be read."""
    source, start, count = content
    if not is_url(source):
        with Path(source).open("rb") as file:
            file.seek(start)
            data = file.read(most + 1 if count is None else count)
        if len(data) > most:
            raise TransferError(f"larger than {most:,} bytes")
        return data
    end = time.monotonic() + _PICTURE_SECONDS
    try:
        return b"".join(fetched(source, most, _PICTURE_SECONDS))
    except TransferError as error:
        left = end - time.monotonic()
        if not error.passing or left < 1:
            raise
    return b"".join(fetched(source, most, left))


def _local_copy(shard: Shard, folder: Path) -> Path:
    """Return the path of a shard's file, downloaded to `folder` if it is remote."""
    if is_url(shard.source):
        copy = folder / f"downloaded{shard.suffix}"
        try:
            download(shard.source, copy, _MAX_SHARD_BYTES)
        except TransferError as error:
            raise ShardError(f"it cannot be read: {error}") from error
        return copy
    path = Path(shard.source)
    if not path.exists():
        raise ShardError("no such file")
    if path.is_dir():  # as Spark writes a list
        raise ShardError(f"it is a folder; name the files in it: '{path}/*{shard.suffix}'")
    if not path.is_file():  # reading a pipe would wait for ever
        raise ShardError("it is not a file but a device")
    if path.stat().st_size > _MAX_SHARD_BYTES:
        raise ShardError(f"larger than {_MAX_SHARD_BYTES:,} bytes")
    return path


def _in_tar(path: Path, folder: Path, passed_over: Counter[str]) -> Iterator[Sample]:
    """Yield the samples of a tar archive, which is decompressed to `folder` if need be."""
    try:
        if is_gzip(path):
            inflated = folder / "inflated.tar"
            inflate(path, inflated)
            path = inflated
        files = (
            (*_split_key(member.name), member.name, Content(str(path), member.start, member.bytes))
            for member in members(path)
            if not member.name.startswith("__MACOSX/")  # metadata, which folders pass over too
        )
        yield from _grouped(files, passed_over)
    except TarError as error:
        raise ShardError(str(error)) from error


def _split_key(name: str) -> tuple[str, str]:
    """Return the key of a member and its extension, as webdataset does: all up to the first dot.

    A member without either has no key.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}" if stem and dot else "", extension.lower()


def _in_folder(shard: Shard, passed_over: Counter[str]) -> Iterator[Sample]:
    """Yield the pictures in a folder and below it; each has its path without suffix as its key."""
    pictures, texts = names_in(shard.source, passed_over)
    separator = "" if shard.source.endswith("/") else "/"
    files = (
        (os.path.splitext(name)[0], kind, name, Content(f"{shard.source}{separator}{name}"))  # noqa: PTH122
        for name, kind in (
            *((name, "picture") for name in pictures),  # some have no suffix
            *((name, extension_of(name)) for name in texts),
        )
    )
    yield from _grouped(files, passed_over)


def _grouped(
    files: Iterable[tuple[str, str, str, Content]], passed_over: Counter[str]
) -> Iterator[Sample]:
    """Yield a sample for each key of (key, kind or extension, name, content), in their order.

    Captions that decoder.caption wrote, and nobody changed, are left out.
    """
    groups: dict[str, dict[str, tuple[str, Content]]] = {}
    generated: dict[tuple[str, str], set[str]] = {}
    for key, extension, name, content in files:
        folder, _, file = name.rpartition("/")
        if is_registry(file):
            for text, digests in _registered(name, content).items():
                generated.setdefault((folder, text), set()).update(digests)
            continue
        if not key or (file.startswith("__") and file.partition(".")[0].endswith("__")):
            if not file.startswith((".", "__")):  # webdataset passes over these too
                passed_over["file without a suffix"] += 1
            continue
        group = groups.setdefault(key, {})
        kind = "picture" if f".{extension}" in PICTURE_SUFFIXES else extension
        if kind in group:
            raise ShardError(f"the key {key!r} occurs twice: {group[kind][0]!r} and {name!r}")
        group[kind] = name, content
        if len(group) > 100:
            raise ShardError(f"the key {key!r} has more than 100 files")
    left = MAX_TEXTS_BYTES
    for key, group in groups.items():
        if not _has_picture(key, group):
            passed_over["file that is no picture"] += len(group)
            continue
        passed_over += Counter(_left_out(kind) for kind in group.keys() - {"picture", *TEXTS})
        texts: dict[str, str] = {}
        for kind in TEXTS:
            if kind not in group:
                continue
            name, content = group[kind]
            data = _bytes(name, content)
            left -= len(data)
            if left < 0:
                raise ShardError(f"more than {MAX_TEXTS_BYTES:,} bytes of captions")
            folder, _, file = name.rpartition("/")
            if hashlib.sha256(data).hexdigest() in generated.get((folder, file), ()):
                passed_over["text file that decoder.caption wrote"] += 1
                continue
            texts[kind] = decoded(name, data)
        captions = captions_in(texts, group["json"][0] if "json" in group else "")
        yield Sample(key, group["picture"][0], captions, group["picture"][1])


def _has_picture(key: str, group: dict[str, tuple[str, Content]]) -> bool:
    """Whether a key has a picture; the files of `group` are named by "picture" or extension.

    Where no extension is that of a picture, but one ends so (`photo.left.jpg`), it is the picture,
    and the texts named like it are its captions.

    Raises:
        ShardError: it has several such pictures, or captions only.
    """
    if "picture" in group:
        return True
    dotted = [kind for kind in group if f".{extension_of(kind)}" in PICTURE_SUFFIXES]
    names = first_few((name for name, _ in group.values()), 3)
    if len(dotted) > 1:
        raise ShardError(
            f"the key {key!r} has several pictures, for keys end at the first dot as in "
            f"webdataset: {names}; rename them, or give a folder of them as the shard"
        )
    if dotted:
        stem = dotted[0].removesuffix(extension_of(dotted[0]))
        group["picture"] = group.pop(dotted[0])
        for kind in TEXTS:
            if (text := group.pop(f"{stem}{kind}", None)) is None:
                continue
            if kind in group:  # named like the key alone: left out, and counted
                group[f"{stem}{kind}"] = group[kind]
            group[kind] = text
        return True
    if any((extension_of(kind) or kind) in TEXTS for kind in group):
        raise ShardError(f"the key {key!r} has no picture, only {names}")
    return False


def _left_out(kind: str) -> str:
    """Return what a file with a picture's key is that is neither the picture nor its captions."""
    last = extension_of(kind) or kind
    if f".{last}" in PICTURE_SUFFIXES:
        return "further picture of a key"
    return OTHER_TEXT if last in TEXTS else "file that is no picture"


def _registered(name: str, content: Content) -> dict[str, set[str]]:
    """Return the hashes of generated text files by name, from a file that records them."""
    try:
        return registered(_bytes(name, content))
    except ValueError as error:
        raise ShardError(
            f"{name!r} records which text files are generated, and is damaged ({error})"
        ) from error


def _bytes(name: str, content: Content) -> bytes:
    """Return the content of a caption file; ShardError if it is too large or cannot be read."""
    if content.bytes is not None and content.bytes > _MAX_TEXT_BYTES:
        raise ShardError(f"{name!r} has more than {_MAX_TEXT_BYTES:,} bytes")
    try:
        return _content(content, _MAX_TEXT_BYTES)
    except (TransferError, OSError) as error:
        raise ShardError(f"{name!r} cannot be read: {error}") from error


def _text(name: str) -> str:
    """Return a name as text; bytes that are not UTF-8, as in old archives, as in URLs: %E9."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", name)


def _check_key(key: str) -> None:
    """Raise ShardError unless a key is short."""
    if len(key.encode()) > _MAX_KEY_BYTES or CONTROL.search(key):
        raise ShardError(f"the key {key[:100]!r} is too long, or has control characters")
