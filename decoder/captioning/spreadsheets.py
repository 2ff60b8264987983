"""Tables as spreadsheet programs save them: with semicolons, tabs, in UTF-16, numbers rounded."""

import csv
import io


class TableError(Exception):
    """A table is damaged; the message says where and how."""


def read_table(content: bytes) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names of the columns and the rows that are not empty.

    Raises:
        TableError: a row has more or fewer cells than there are columns.
    """
    text = _decoded(content)
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows: list[dict[str, str]] = []
    try:
        names = [name.strip().lower() for name in next(lines, [])]
        for cells in filter(any, lines):
            if len(cells) != len(names):
                raise TableError(
                    f"line {lines.line_num}: expected {len(names)} cells, found {len(cells)}; put "
                    f"a text that contains {separator!r} in quotation marks"
                )
            rows.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise TableError(f"line {lines.line_num}: {error}") from error
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


def _decoded(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:  # saved by a spreadsheet program in the encoding of Windows
        return content.decode("cp1252", "replace")
