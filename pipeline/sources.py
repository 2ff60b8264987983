"""Several data sets as one: their tables joined, so that no ids and no file names collide."""

import hashlib
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from features.commands import PREPARE
from features.errors import UserError, first_few
from pipeline.captions import CaptionTable, Image
from pipeline.datasets import caption_files, kept_ids, load_table
from pipeline.options import PrepareOptions
from pipeline.parsing import parse

# Options of pipeline.prepare that belong to the --dataset before them; all others apply to all.
_OF_A_DATA_SET = {"--root", "--captions", "--columns", "--name", "--terms", "--release"}
_OF_A_DATA_SET |= {"--images", "--size", "--mirror", "--val", "--test"}
_GIVEN_ONCE = ("--root", "--captions")  # a second one would look like further data
_FLAG = "--download"  # the only one of them without a value
_SHARED = ("work", "min_count", "max_length", "skip_missing", "seed", "force")
_MOST_ID = 2**63


def repeated_as_also(argv: Sequence[str]) -> list[str]:
    """Return a command line in which each further --dataset and its options are one --also.

    The first data set may have its options before its --dataset. The value of --also is joined to
    it by an equals sign, because it begins with dashes as options do.

    Raises:
        UserError: --root or --captions is given twice for a data set.
    """
    arguments: list[str] = []  # of the first data set, and those that apply to all
    further: list[list[str]] = []
    seen = False
    tokens = iter(argv)
    for token in tokens:
        name = token.split("=", 1)[0].replace("_", "-")
        block = further[-1] if further else arguments
        if token == "--also" and (value := next(tokens, None)) is not None:
            token = f"--also={value}"
        if name == "--dataset":
            if seen:
                further.append(block := [])
            seen = True
        elif name not in (*_OF_A_DATA_SET, _FLAG):
            block = arguments
        if name in _GIVEN_ONCE and any(f"{one}=".startswith(f"{name}=") for one in block):
            raise UserError(
                f"{name} is given twice for one data set; a further one begins with its --dataset"
            )
        block.append(token)
        if "=" not in token and (name == "--dataset" or name in _OF_A_DATA_SET):
            block += [value for value in (next(tokens, None),) if value is not None]
    return [*arguments, *(f"--also={shlex.join(block)}" for block in further)]


def data_sets(options: PrepareOptions) -> list[PrepareOptions]:
    """Return the options of each data set; they share those that apply to all.

    Raises:
        UserError: --also is no list of options of one data set, or two data sets have one name.
    """
    shared = {name: getattr(options, name) for name in _SHARED}
    every = [replace(options, also=())]
    for text in options.also:
        try:
            given = shlex.split(text)
        except ValueError as error:  # a quote that is not closed
            raise UserError(f"--also {text!r}: {error}") from error
        other = parse(PrepareOptions, PREPARE, ["--work", str(options.work), *given])
        for name in _SHARED:
            option = f"--{name.replace('_', '-')}"
            if any(token.partition("=")[0].replace("_", "-") == option for token in given):
                raise UserError(
                    f"--also {text!r}: {option} applies to all data sets; give it outside of --also"
                )
        if other.also:
            raise UserError(f"--also {text!r}: give --also once more instead of one inside another")
        every.append(replace(other, **shared))
    names = Counter(one.name or one.dataset for one in every)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise UserError(
            f"{names[repeated[0]]} data sets are called {repeated[0]!r}; give each a name of its "
            "own with --name after its --dataset"
        )
    if len(every) > 1 and any(one.dataset == "shards" for one in every):
        raise UserError(
            "--dataset shards cannot be combined with other data sets; extract those as shards too "
            "(pipeline.extract --shards), into the same --out"
        )
    if sum(one.dataset == "shapes" for one in every) > 1:
        raise UserError("--dataset shapes draws into the work directory, so give it only once")
    return every


def load_tables(
    options: PrepareOptions, known: Mapping[str, int] | None = None
) -> tuple[CaptionTable, list[str]]:
    """Read all data sets; return one table of them, and remarks for the user.

    Args:
        options: of `pipeline.prepare`.
        known: the image ids that the work directory has given before, by file name. These pictures
            keep them, unless the data set has ids of its own, and new ones get larger ids.

    Raises:
        UserError: as `load_table` and `data_sets`, or the ids of the images are too large.
    """
    every = data_sets(options)
    if len(every) == 1:
        return load_table(every[0], known)
    tables, remarks = [], []
    for one in every:
        table, own = load_table(one)
        tables.append(table)
        remarks += [f"{table.sources[0].name}: {remark}" for remark in own]
    joined = join(tables)
    ids = {image.file_name: image.id for image in joined.images}
    # A folder that is given twice has each name twice, so names cannot stand for ids.
    if known and len(ids) == len(joined.images):
        ids = kept_ids(ids, known, joined.root)
        joined = replace(
            joined, images=tuple(replace(i, id=ids[i.file_name]) for i in joined.images)
        )
    # The order is in the digests of runs, so it must not depend on what is known.
    by_id = sorted(joined.images, key=lambda image: image.id)
    joined = replace(joined, images=tuple(by_id))
    return joined, [*remarks, *_duplicates(joined)]


def all_caption_files(options: PrepareOptions) -> list[Path]:
    """Return the files and folders that determine what `load_tables` returns."""
    return list(dict.fromkeys(file for one in data_sets(options) for file in caption_files(one)))


def join(tables: Sequence[CaptionTable]) -> CaptionTable:
    """Return one table of the images of all tables, each with its own split.

    File names become relative to the folder that holds all data sets. The first table keeps its
    ids, as does each other one if none is taken; otherwise its ids follow the largest one so far.

    Raises:
        UserError: the ids of the images are too large.
    """
    roots = [table.root.resolve() for table in tables]
    common = Path(os.path.commonpath(roots))
    images: list[Image] = []
    taken: set[int] = set()
    for table, root in zip(tables, roots, strict=True):
        ids = [image.id for image in table.images]
        shift = 0 if taken.isdisjoint(ids) else max(taken) + 1 - min(ids)
        if max(ids) + shift >= _MOST_ID:
            raise UserError(
                f"{table.sources[0].name}: its image ids occur in another data set, and those of "
                f"both are too large to be numbered on, up to {max(taken)}; give it smaller ids"
            )
        folder = root.relative_to(common)
        images += [
            replace(image, id=image.id + shift, file_name=str(folder / image.file_name))
            for image in table.images
        ]
        taken.update(image.id for image in images[-len(ids) :])
    sources = tuple(source for table in tables for source in table.sources)
    return CaptionTable("+".join(source.name for source in sources), common, tuple(images), sources)


def _duplicates(table: CaptionTable) -> list[str]:
    """Return remarks on pictures that two data sets share: the same file, or the same content."""
    remarks: list[str] = []
    inside: list[str] = []
    across: list[str] = []
    for group in _same_content(table):
        first, *others = group
        named = f"{first.file_name} ({first.source} {first.split})"
        for other in others:
            text = f"{named} = {other.file_name} ({other.source} {other.split})"
            (inside if other.split == first.split else across).append(text)
    if across:
        remarks.append(
            f"WARNING: {len(across)} pictures are in two data sets under different splits, which "
            f"inflates scores: {first_few(across)}; remove them from one of the splits"
        )
    if inside:
        remarks.append(
            f"{len(inside)} pictures are in two data sets, in the same split, and count twice: "
            f"{first_few(inside)}"
        )
    return remarks


def _same_content(table: CaptionTable) -> Iterable[list[Image]]:
    """Yield the images whose files have the same bytes, where more than one source has them."""
    by_size: dict[int, list[Image]] = defaultdict(list)
    for image in table.images:
        by_size[table.path(image).stat().st_size].append(image)
    for size, images in by_size.items():
        if not size or len({image.source for image in images}) == 1:
            continue
        by_content: dict[bytes, list[Image]] = defaultdict(list)
        for image in images:
            with table.path(image).open("rb") as file:
                by_content[hashlib.file_digest(file, "sha256").digest()].append(image)
        for same in by_content.values():
            if len({image.source for image in same}) > 1:
                yield same
