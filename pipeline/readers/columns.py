"""The columns of a table: which name pictures, hold captions or splits, and which are not used."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import UserError, first_few, unknown_name
from pipeline.readers.cells import captions_in, is_missing
from pipeline.readers.tables import Row, Table, column_key

# In order of preference.
_IMAGE_NAMES = (
    *("file_name", "image", "file", "path", "filename", "image_name", "image_file", "image_path"),
    *("image_file_name", "img", "img_name", "img_file", "img_path", "file_path", "filepath"),
    *("picture", "photo", "image_id", "key"),
)
_CAPTION_NAMES = ("caption", "text", "sentence", "raw", "comment", "description")
_SPLIT_NAMES = ("split", "subset", "partition")
# Numbers of captions and words of captions that are in another column, which are never captions.
_NEVER_CAPTIONS = re.compile(
    r"(comment|caption|sentence|text)s?_(number|no|num|id|ids|index|count|length|len|lang|language"
    r"|type|source|score|by|author|date|time)|tokens?"
    r"|sentids?|(license|licence|author|copyright|source|credit|error_message)(_.*)?"
)
# Names of captions in another language or of another kind, such as caption_de and long_caption.
_FURTHER_CAPTIONS = re.compile(r"(caption|sentence|description)s?_.+|.+_(caption|description)s?")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
# Columns that only files of decoder.caption have: of --out, --shards and --json; of the captions of
# a split; of --review.
_GENERATED = (
    {"caption", "unsure", "confidence"},
    {"caption", "mean_log_probability", "signals"},
    {"page", "picture", "text", "written"},
)
_NAMES = "image=NAME,caption=NAME[,split=NAME]"


@dataclass(frozen=True)
class Columns:
    """The names of columns by what they hold; of `image`, each row uses the first that it fills."""

    image: tuple[str, ...]
    captions: tuple[str, ...]
    split: str | None
    unused: tuple[str, ...]


def parse_columns(text: str) -> list[tuple[str, str]]:
    """Return the (role, name) pairs of the option --columns.

    Raises:
        UserError: `text` is not of the form image=NAME,caption=NAME[,split=NAME]; caption may be
            repeated.
    """
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    roles = [role.strip() for role, _ in pairs]
    if (
        not all(name.strip() for _, name in pairs)
        or set(roles) - {"image", "caption", "split"}
        or roles.count("image") != 1
        or not roles.count("caption")
        or roles.count("split") > 1
    ):
        raise UserError(f"--columns: expected {_NAMES}, found {text!r}; caption may be repeated")
    return [(role, name.strip()) for role, (_, name) in zip(roles, pairs, strict=True)]


def choose_columns(table: Table, chosen: str | None) -> Columns:
    """Return the columns that `chosen` (--columns) names, or those with well-known names.

    Raises:
        UserError: a chosen column is not in the table, another column could hold captions, or
            decoder.caption wrote the table and no columns are chosen.
    """
    names = list(dict.fromkeys(name for row in table.rows for name in row.cells))
    if chosen is not None:
        return _chosen(table.path, names, parse_columns(chosen))
    keys = {name: column_key(name) for name in names}
    image = sorted(
        (name for name in names if keys[name] in _IMAGE_NAMES),
        key=lambda name: _IMAGE_NAMES.index(keys[name]),
    )
    stems = {name: _stem(keys[name]) for name in names}
    present = [stem for stem in _CAPTION_NAMES if stem in stems.values()]
    captions = [name for name in names if present and stems[name] == present[0]]
    if any(columns <= set(keys.values()) for columns in _GENERATED):
        raise UserError(
            f"{table.path} was written by decoder.caption; captions of a captioner must not be "
            "learnt from. If people have checked all of them, add --columns "
            f"image={image[0] if image else 'NAME'},caption={captions[0]}; otherwise move the file "
            "elsewhere, or name another table with --captions"
        )
    splits = [name for key in _SPLIT_NAMES for name in names if keys[name] == key]
    others = [n for n in names if n not in (*captions, *image, *splits[:1])]
    for name in others if captions else ():
        if keys[name] and _NEVER_CAPTIONS.fullmatch(keys[name]):
            continue
        words = 1 if _FURTHER_CAPTIONS.fullmatch(keys[name]) else 3
        if example := _sentence_in(table.rows, name, words):
            raise UserError(
                f"{table.path}, {example[0]}: expected captions in {' or '.join(captions)} only, "
                f"but the column {name!r} could hold captions too: {example[1]!r:.60}; name the "
                f"columns to use with --columns {_NAMES}"
            )
    return Columns(tuple(image), tuple(captions), next(iter(splits), None), tuple(others))


def image_of(row: Row, columns: Columns, path: Path) -> str:
    """Return the name of a row's picture.

    Raises:
        UserError: the row has none, or an address on the web.
    """
    where = f"{path}, {row.where}"
    name = _first(row, columns.image)
    if name is _ABSENT:
        raise _lacks(where, columns.image, _IMAGE_NAMES[:4], row)
    if isinstance(name, dict):  # Hugging Face's column of images
        name = name.get("path") or name.get("file_name")
    cells = [row.cells.get(caption) for caption in columns.captions]
    if _is_image(name) and any(isinstance(c, str) and _is_caption(c) for c in cells):
        raise UserError(f"{where}: expected a row, found a second header with other columns")
    if type(name) is int:
        name = str(name)
    if not isinstance(name, str) or is_missing(name):
        raise UserError(f"{where}: expected the file name of a picture, found {name!r}")
    if re.match(r"\s*(?:(?:https?|ftp|s3|gs):)?//|\s*data:", name):
        raise UserError(
            f"{where}: expected the file name of a picture, found the address "
            f"{name.strip()!r:.80}; download the pictures first, for example with img2dataset, and "
            "name their files"
        )
    return name


def captions_of(row: Row, columns: Columns, path: Path) -> list[str]:
    """Return the captions of a row; an empty one for each cell without a value.

    Raises:
        UserError: the row has no cell for captions, or one that is not understood.
    """
    cells = [row.cells[name] for name in columns.captions if name in row.cells]
    if not cells:
        raise _lacks(f"{path}, {row.where}", columns.captions, ("caption", "captions"), row)
    try:
        return [text for cell in cells for text in captions_in(cell)]
    except UserError as error:
        raise UserError(f"{path}, {row.where}: {error}") from error


_ABSENT = object()


def _first(row: Row, names: Sequence[str]) -> Any:
    """Return the first value that is not missing, else the first that is there, else _ABSENT."""
    values = [row.cells[name] for name in names if row.cells.get(name) is not None]
    return next((v for v in values if not is_missing(v)), values[0] if values else _ABSENT)


def _lacks(where: str, names: Sequence[str], usual: Sequence[str], row: Row) -> UserError:
    """Return the error for a row without the columns `names`, or for a table without `usual`."""
    filled = ", ".join(name for name, value in row.cells.items() if value is not None)
    expected = f"{where}: expected {' or '.join(names or usual)}, found only {filled}"
    return UserError(expected if names else f"{expected}; for other names use --columns {_NAMES}")


def _chosen(path: Path, names: list[str], pairs: list[tuple[str, str]]) -> Columns:
    def find(wanted: str) -> str:
        for name in names:
            if name == wanted:
                return name
        for name in names:
            if column_key(name) == column_key(wanted):
                return name
        raise UserError(f"{path}: {unknown_name('column', wanted, names)}")

    found = [(role, find(name)) for role, name in pairs]
    used = [name for _, name in found]
    return Columns(
        tuple(name for role, name in found if role == "image"),
        tuple(name for role, name in found if role == "caption"),
        next((name for role, name in found if role == "split"), None),
        tuple(name for name in names if name not in used),
    )


def _is_image(name: object) -> bool:
    return isinstance(name, str) and column_key(name) in _IMAGE_NAMES


def _is_caption(name: str) -> bool:
    return _stem(column_key(name)) in _CAPTION_NAMES


def _stem(key: str) -> str:
    """Return the name without a number and a plural s: captions, caption_2 and caption3."""
    return re.sub(r"(?<=[a-z])s?_?\d*$", "", key)


def _sentence_in(rows: Sequence[Row], name: str, words: int) -> tuple[str, str] | None:
    """Return where, and which, if at least half of a column's values have so many words or more."""
    filled = [(r.where, r.cells[name]) for r in rows if not is_missing(r.cells.get(name))][:1000]
    sentences = [(where, text) for where, value in filled if (text := _sentence(value, words))]
    if sentences and 2 * len(sentences) >= len(filled):
        return sentences[0]
    return None


def _sentence(value: Any, words: int) -> str | None:
    try:
        texts = captions_in(value)
    except UserError:
        return None
    for text in texts:
        if is_missing(text) or "://" in text:
            continue
        found = len(re.findall(r"[^\W\d_]+(?:'\w+)?(?=[\s.,;!?]|$)", text))
        # Chinese, Japanese and others put no blanks between words of about two characters.
        if max(found, len(_UNSPACED.findall(text)) // 2) >= words:
            return text
    return None


def described(table: Table, columns: Columns, captions: int) -> str:
    """Return the account of a table: rows, captions and columns, for the user."""
    line = (
        f"{table.name}: {len(table.rows)} rows, {captions} captions in "
        f"{first_few(columns.captions) or 'no column'}"
    )
    if columns.unused:
        unused = ", ".join(name or "(without a name)" for name in columns.unused)
        line += f"; columns not used: {unused}"
    return line
