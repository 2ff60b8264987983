"""Tables as spreadsheet programs save them: with semicolons, tabs, in UTF-16, numbers rounded."""

import codecs
import csv
import io
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from features.errors import UserError

# What Windows-1252 makes of other encodings: bytes without a character, signs within or before
# words, and words of accented letters.
_NOT_WESTERN = re.compile(
    r"\ufffd|[¤¦¨¬¯±´¶¸¹³](?=[^\W\d_])|(?:(?![a-zA-Z])[^\W\d_]){3}"
    r"|(?<=[^\W\d_])[¡-ª¬-¶¸-º¼-¿×÷‚„†‡ˆ‰˜][^\0-\x7f]*(?=[^\W\d_])"
)


def read_table(
    path: Path, content: bytes, known: Collection[str]
) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names of the columns and the rows that are not empty.

    Empty columns without a name, which such programs add, are left out.

    Args:
        path: of the table, for messages.
        content: of the file.
        known: names of columns that are found in other letter cases too.

    Raises:
        UserError: a row has more or fewer cells than there are columns, or the encoding is neither
            UTF-8, UTF-16 nor Windows-1252.
    """
    text = _decoded(path, content)
    if match := re.match(r'"?sep=[,;\t]"?\s*\n', text, re.IGNORECASE):  # a first line for Excel
        text = text[match.end() :]
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows: list[dict[str, str]] = []
    try:
        names = [name.strip() for name in next(lines, [])]
        names = [name.lower() if name.lower() in known else name for name in names]
        for cells in filter(any, lines):
            if len(cells) != len(names):
                raise UserError(
                    f"{path}, line {lines.line_num}: expected {len(names)} cells, found "
                    f"{len(cells)}; put a text that contains {separator!r} in quotation marks"
                )
            rows.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: {error}") from error
    if "" in names and not any(row[""] for row in rows):
        names = [name for name in names if name]
    return names, rows


def exact(text: str, value: int | None) -> str:
    """Return a whole number that may have been rounded as in 1.79587E+18 or 1,79587E+18.

    Args:
        text: the number as the program saved it.
        value: what it may have been before; it is returned if it can have been rounded to `text`.
    """
    number = text.replace(",", ".").upper()
    digits, _, exponent = number.partition("E")
    try:
        rounded = int(float(number))
        precision = 10 ** (int(exponent) - len(digits.partition(".")[2]))
    except (OverflowError, ValueError):
        return text
    is_same = value is not None and abs(value - rounded) <= precision
    return str(value if is_same else rounded)


def _decoded(path: Path, content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    if content.startswith(codecs.BOM_UTF8):  # our tables keep the bytes of other names
        return content.decode("utf-8-sig", "surrogateescape")
    with suppress(UnicodeDecodeError):
        return content.decode()
    # A spreadsheet program saved it in the encoding of its Windows.
    text = content.decode("cp1252", "replace")
    if odd := _NOT_WESTERN.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        raise UserError(
            f"{path}, line {line}: expected UTF-8, found the encoding of another program; save it "
            "again as 'CSV UTF-8'"
        )
    print(f"caption: {path} is not UTF-8 and was read as Windows-1252 (Western Europe)")
    return text
