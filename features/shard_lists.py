"""Parquet lists of pictures: a path or URL, captions, and perhaps a key in each row."""

import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from features.errors import UserError
from features.extras import need
from features.kinds import LONGEST, kind_of
from features.remote_files import is_url, is_web
from features.shard_captions import caption_texts, quoted
from features.shard_samples import MAX_TEXTS_BYTES, Content, Sample
from features.shards import ShardError

# The columns that hold each thing, in order of preference; case does not matter.
COLUMNS = {
    "image": ("path", "url", "file_name", "filename", "file", "image_path", "image", "image_url"),
    "caption": ("caption", "captions", "text", "texts"),
    "key": ("key",),
}
_MAX_BYTES = 2**32  # of the columns read, decompressed
_MAX_ROWS = 5_000_000
_ROWS_AT_ONCE = 64  # a hostile file can repeat a long text in every row


def parse_columns(text: str) -> dict[str, str]:
    """Return the columns that the option --columns names, by what they hold.

    Raises:
        UserError: `text` is not of the form image=NAME[,caption=NAME][,key=NAME].
    """
    pairs = [part.partition("=") for part in text.split(",")]
    columns = {role.strip(): name.strip() for role, _, name in pairs}
    if len(columns) < len(pairs) or not columns.keys() <= COLUMNS.keys() or "" in columns.values():
        raise UserError(f"--columns: expected image=NAME[,caption=NAME][,key=NAME], found {text!r}")
    return columns


def listed(path: Path, source: str, columns: Mapping[str, str]) -> Iterator[Sample]:
    """Yield a sample for each row of a parquet file.

    A relative path starts from the folder of the list. Without a column of keys, the path is the
    key, and rows with the same path are one picture with several captions.

    Args:
        path: the local file.
        source: the path or URL from which it comes.
        columns: the column names by what they hold, "image", "caption" and "key"; those left out
            are found by the names in `COLUMNS`.

    Raises:
        ShardError: the file is damaged or too large, has not these columns, or a row is wrong.
        UserError: pyarrow is not installed.
    """
    need("pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            chosen = _chosen(file.schema_arrow, columns)
            _check_size(file.metadata, set(chosen.values()))
            types = {field.name: field.type for field in file.schema_arrow}
        texts = [name for name in chosen.values() if pyarrow.types.is_string(types[name])]
        # Repeated texts stay in one place in memory.
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            batches = file.iter_batches(_ROWS_AT_ONCE, columns=list(set(chosen.values())))
            rows = (row for batch in batches for row in batch.to_pylist())
            samples = _bounded(_sample(*item, chosen, source) for item in enumerate(rows))
            yield from samples if "key" in chosen else _joined(samples)
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno:  # those of damaged content have none
            raise ShardError(f"it cannot be read now: {os.strerror(error.errno)}") from error
        with path.open("rb") as opened:
            start = opened.read(LONGEST)
        kind = None if start.startswith(b"PAR1") else kind_of(start)
        if kind is not None:
            raise ShardError(f"not a parquet file but {kind.name}") from error
        raise ShardError(f"not a parquet file, or a damaged one ({error})") from error


def _chosen(schema: Any, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the columns to read, by what they hold; see `listed`."""
    chosen = {}
    for role, known in COLUMNS.items():
        if role in columns:
            if columns[role] not in schema.names:
                raise ShardError(
                    f"it has no column {columns[role]!r}; its columns: {', '.join(schema.names)}"
                )
            chosen[role] = columns[role]
            continue
        names = {name.lower(): name for name in schema.names}
        found = next((names[name] for name in known if name in names), None)
        if found is not None:
            chosen[role] = found
    lower = [name.lower() for name in schema.names]
    for name in chosen.values():
        exact = name in columns.values()
        if (schema.names.count(name) if exact else lower.count(name.lower())) > 1:
            raise ShardError(
                f"it has several columns {name!r}; its columns: {', '.join(schema.names)}"
            )
    if "image" not in chosen:
        raise ShardError(
            f"expected a column {', '.join(COLUMNS['image'])}, or --columns image=NAME, found "
            f"{', '.join(schema.names)}"
        )
    return chosen


def _check_size(metadata: Any, names: set[str]) -> None:
    """Raise ShardError if these columns of a file have too many rows or bytes."""
    if metadata.num_rows > _MAX_ROWS:
        raise ShardError(f"more than {_MAX_ROWS:,} rows; divide it into several shards")
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    parts = (group.column(i) for group in groups for i in range(group.num_columns))
    read = (part for part in parts if part.path_in_schema.partition(".")[0] in names)
    if sum(part.total_uncompressed_size for part in read) > _MAX_BYTES:
        raise ShardError(
            f"its columns {', '.join(sorted(names))} have more than {_MAX_BYTES:,} bytes"
        )


def _sample(number: int, row: Mapping[str, Any], chosen: Mapping[str, str], source: str) -> Sample:
    """Return the sample of a row, whose columns `_chosen` has found; `source` is the list."""
    where = f"row {number + 1}"
    name = row[chosen["image"]]
    if not isinstance(name, str) or not name:
        raise ShardError(f"{where}: expected the path of a picture, found {quoted(name)}")
    captions = caption_texts(row[chosen["caption"]], where) if "caption" in chosen else []
    key = row[chosen["key"]] if "key" in chosen else name
    if not isinstance(key, (str, int)) or key == "":
        raise ShardError(f"{where}: expected a key, found {quoted(key)}")
    return Sample(str(key), name, captions, Content(_location(name, source, where)))


def _location(name: str, source: str, where: str) -> str:
    """Return the path or URL of a picture that a list names."""
    if is_url(name):
        if "::" in name or (name.lower().startswith(("file:", "local:")) and is_url(source)):
            raise ShardError(f"{where}: {name[:200]!r} is no address of a picture")
        return name.removeprefix("file://")
    if not is_url(source):
        return os.path.join(os.path.dirname(source), name)  # noqa: PTH118, PTH120
    if name.startswith(("/", "\\")):
        raise ShardError(f"{where}: a list at {source.partition('://')[0]}:// names a local file")
    if is_web(source):
        return f"{source.partition('?')[0].rpartition('/')[0]}/{name}"
    protocol, _, place = source.rpartition("/")[0].partition("://")
    return f"{protocol}://{posixpath.normpath(f'{place}/{name}')}"  # .. has no meaning there


def _bounded(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Pass samples on; raise ShardError if they have too many captions to hold in memory."""
    left = MAX_TEXTS_BYTES
    for sample in samples:
        left -= sum(map(len, sample.captions))
        if left < 0:
            raise ShardError(f"more than {MAX_TEXTS_BYTES:,} bytes of captions")
        yield sample


def _joined(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Join the captions of samples with the same key, which is their path."""
    first: dict[str, Sample] = {}
    captions: dict[str, dict[str, None]] = {}
    for sample in samples:
        first.setdefault(sample.key, sample)
        captions.setdefault(sample.key, {}).update(dict.fromkeys(sample.captions))
    for key, sample in first.items():
        yield sample._replace(captions=list(captions[key]))
