"""Finding and reading the files of a data set."""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from features.commands import EXTRACT
from features.errors import UserError, first_few


def find(root: Path, names: Iterable[str]) -> Path | None:
    """Return the first of `names`, files or folders, that is in `root` or one folder below."""
    for name in names:
        for path in (root / name, *sorted(root.glob(f"*/{name}"))):
            if path.exists():
                return path
    return None


def captions_file(root: Path, chosen: Path | None, patterns: Iterable[str]) -> Path:
    """Return the `chosen` file, or the only file in `root` that matches one of `patterns`.

    Raises:
        UserError: no file was chosen, and none or more than one matches.
    """
    if chosen is not None:
        return chosen if chosen.exists() else root / chosen
    matching = sorted(path for pattern in patterns for path in root.glob(pattern))
    if len(matching) != 1:
        listed = first_few(path.name for path in matching) or "none"
        raise UserError(
            f"{root}: expected one {' or '.join(patterns)}, found {listed}; name it with --captions"
        )
    return matching[0]


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32.

    Byte order marks are dropped, also where files were joined. UTF-16 is recognised without a mark
    too. A file whose only line ends are carriage returns gets newlines.

    Raises:
        UserError: the file is missing, is unreadable, has another encoding, or is not text; the
            message names what it is.
    """
    try:
        content = path.read_bytes()
        if kind := kind_of(content):
            raise UserError(f"{path}: expected text, found {kind}")
        text = content.decode(_encoding(content)).replace("\ufeff", "")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: expected UTF-8, found the byte "
            f"0x{error.object[error.start]:02x}; save it from Excel as 'CSV UTF-8', or convert it "
            "from its own encoding, for example with iconv -f cp1252 -t utf-8 if Excel for Western "
            "languages wrote it"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return text if "\n" in text else text.replace("\r", "\n")


def _encoding(content: bytes) -> str:
    """Return the Unicode encoding that the start of a file shows."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Nearly every second byte of a header in UTF-16 is zero.
    even, odd = content[:200:2], content[1:200:2]
    if odd.count(0) > 0.8 * len(odd):
        return "utf-16-le"
    if even.count(0) > 0.8 * len(even):
        return "utf-16-be"
    return "utf-8-sig"


# The first bytes of files that people take for text or pictures, and what to do with them.
_KINDS = (
    (b"\x1f\x8b", "a gzip archive: unpack it with gunzip"),
    (b"BZh", "a bzip2 archive: unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "an xz archive: unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!", "a rar archive: unpack it"),
    (b"PAR1", "a Parquet file: export it as CSV or JSON Lines, for example with pandas"),
    (b"ARROW1", "an Arrow file: export it as CSV or JSON Lines, for example with pandas"),
    (b"FEA1", "a Feather file: export it as CSV or JSON Lines, for example with pandas"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet of old Excel (.xls): save it as CSV in UTF-8"),
    (b"SQLite format 3\0", "an SQLite database: export it as CSV"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80\x04", "a Python pickle, which is never loaded"),
    (b"{\\rtf", "an RTF document: save it as plain text"),
    (b"%PDF", "a PDF document"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself: run git lfs pull"),
    (b"/annex/objects/", "a pointer of git-annex, not the file itself: run git annex get"),
    (b"\x1a\x45\xdf\xa3", "a video"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ORC", "an ORC file: export it as CSV or JSON Lines, for example with pandas"),
)
# With these a text may begin too, such as "ORCHIDS IN A VASE".
_WORDS = {b"BZh", b"Rar!", b"PAR1", b"ARROW1", b"FEA1", b"ORC"}


def kind_of(content: bytes) -> str | None:
    """Return what a file is by its first bytes and what to do with it, None if it may be text."""
    for start, kind in _KINDS:
        if content.startswith(start) and not (start in _WORDS and _is_text(content[:1000])):
            return kind
    if content.startswith(b"PK\3\4"):
        if b"xl/" in content or b"Content_Types" in content[:200]:
            return "an archive or a spreadsheet; save it as CSV in UTF-8"
        if b"content.xml" in content or b"opendocument" in content[:200]:
            return "a spreadsheet of LibreOffice (.ods): save it as CSV in UTF-8"
        return "an archive or a spreadsheet; save it as CSV in UTF-8, or unpack it"
    if content[257:262] == b"ustar":
        return f"a tar archive: unpack it, or read shards of pictures with {EXTRACT} --shards"
    if content[4:8] == b"ftyp" and content[8:12] not in _PICTURES_IN_BOXES:
        return "a video"
    # An error page of a server may begin with a comment or an XML declaration.
    head = content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head")) or (
        head.startswith((b"<?xml", b"<!--")) and b"<html" in head
    ):
        return "an HTML page, such as the error page of a server: download the file again"
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!")) and b"<svg" in head):
        return "an SVG drawing: convert it to PNG"
    if head.startswith(b"<?xml"):
        return "an XML document"
    return None


def _is_text(start: bytes) -> bool:
    """Whether the start of a file is UTF-8 without NUL; its last character may be cut."""
    try:
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False


# Brands of ISO media files (ISO/IEC 14496-12) that hold still pictures: HEIC and AVIF.
_PICTURES_IN_BOXES = (
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"),
    *(b"avif", b"avis"),
)


EMPTY = "an empty file"


def kind_of_file(path: Path) -> str | None:
    """Return what is wrong with a file by its first bytes: empty, unreadable or `kind_of` them."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        return error.strerror or str(error)
    return kind_of(start) if start else EMPTY


def unreadable_picture(path: Path) -> str | None:
    """Return why a file cannot be a picture by its first bytes, None if it may be one."""
    kind = kind_of_file(path)
    return None if kind in (None, "a JPEG picture", "a PNG picture") else kind.partition(";")[0]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: as `read_text`, or the file is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON: {error}") from error
