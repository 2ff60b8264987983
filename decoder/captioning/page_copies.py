"""Copies of pages: which of them are ours and may be replaced."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from decoder.captioning.html import MARK, Alternative, HtmlPage
from features.errors import UserError, first_few
from features.files import write_atomically

_LIST = ".alt-copies.json"


@dataclass
class Page:
    """A page that is being copied."""

    file: Path
    out: Path
    site: Path
    content: bytes
    html: HtmlPage
    texts: dict[int, Alternative] = field(default_factory=dict)
    pictures: dict[int, Path] = field(default_factory=dict)
    """The file of each picture, by its index in `html.bare`."""
    names: list[str] = field(default_factory=list)
    """How the table names each picture."""
    notes: dict[int, str] = field(default_factory=dict)
    """Why a picture has no text."""
    keys: dict[int, str] = field(default_factory=dict)
    waiting: set[Path] = field(default_factory=set)
    """The pictures that must be captioned before the page can be written."""


class Copies:
    """Which copies are ours; those in a folder of copies are listed there by their hash.

    Args:
        folder: the folder of copies, None for copies beside their pages.
    """

    def __init__(self, folder: Path | None) -> None:
        self._list = None if folder is None else folder / _LIST
        self._hashes: dict[str, str] = {}
        if self._list is not None:
            with suppress(OSError, ValueError):
                read = json.loads(self._list.read_text(encoding="utf-8"))
                self._hashes = {str(name): str(value) for name, value in read.items()}

    def check(self, pages: Sequence[Page]) -> None:
        """Raise UserError if a copy exists and is not ours."""
        foreign = [page.out for page in pages if page.out.exists() and not self._is_ours(page)]
        if foreign:
            raise UserError(
                f"{first_few(foreign)} exists and is not a copy made by this command, or was "
                "changed since; choose another --out, or replace it with --force"
            )

    def _is_ours(self, page: Page) -> bool:
        """Whether a copy has alternative texts of ours, or equals the page, which needed none."""
        try:
            content = page.out.read_bytes()
        except OSError:
            return False
        if content == page.content:
            return True
        if (known := self._hashes.get(self._name(page.out))) is not None:
            return known == short_hash(content)
        return any(MARK.encode(code) in content for code in ("ascii", "utf-16-le", "utf-16-be"))

    def _name(self, out: Path) -> str:
        return "" if self._list is None else out.relative_to(self._list.parent).as_posix()

    def write(self, page: Page) -> None:
        """Write the copy of a page."""
        content = page.html.with_texts(page.texts)
        write_atomically(page.out, content)
        self._hashes[self._name(page.out)] = short_hash(content)

    def save(self) -> None:
        """Write the list of copies."""
        if self._list is not None and self._hashes:
            text = json.dumps(self._hashes, indent=0, sort_keys=True)
            write_atomically(self._list, f"{text}\n")


def short_hash(content: bytes) -> str:
    """Return the first 64 bits of the SHA-256 hash of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()[:16]
