"""From the pictures of pages to their alternative texts, copies of the pages and a table."""

import sys
import time
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from decoder.captioning.html import Alternative, Bare
from decoder.captioning.page_copies import Copies, Page, short_hash
from decoder.captioning.review import CORRECTED, Place, Review, Row
from decoder.captioning.sources import file_of
from decoder.captioning.writer import HEDGE, CaptionWriter
from features.content import EmptyPicture, check_content
from features.errors import counted, first_few
from features.images import PictureError, read_picture

_SECONDS_BETWEEN_TABLES = 30
_ELSEWHERE = "on the web, or outside the site"
_DATA = "data:"
_LONGEST_NAME = 200  # characters of an address in the table


class _Shown(NamedTuple):
    """What a picture of a page shows: a file, or a note why it gets no description."""

    file: Path | None
    note: str = ""
    spacer: bool = False
    named: Path | str | None = None
    """The file, even if it cannot be read, or the address on the web, by which it is known."""


class PageWriter:
    """Looks at the pictures of pages, captions them and writes the copies and the table."""

    def __init__(
        self,
        writer: CaptionWriter,
        pages: Sequence[Page],
        copies: Copies,
        table: Review | None,
        embedded: Path,
        force: bool,
    ) -> None:
        self._writer = writer
        self._pages = pages
        self._copies = copies
        self._table = table
        self._embedded = embedded
        self._force = force
        self._looked: dict[Path, PictureError | None] = {}
        self._keys: dict[Path, str] = {}
        self._written = 0.0

    def run(self) -> None:
        """Write the copies and the table; what is finished is kept if it is interrupted."""
        for page in self._pages:
            self._prepare(page)
        waiting: dict[Path, list[Page]] = {}
        for page in self._pages:
            for picture in page.waiting:
                waiting.setdefault(picture, []).append(page)
        order = dict.fromkeys(
            page.pictures[number]
            for page in self._pages
            for number in sorted(page.pictures)
            if page.pictures[number] in page.waiting
        )
        try:
            for page in self._pages:
                if not page.waiting:
                    self._write(page)
            for picture, (best, *_) in self._writer.captions(list(order)):
                text = Alternative(best.hedged, bool(best.unsure))
                for page in waiting.pop(picture):
                    self._finish(page, picture, text)
            for picture, rest in waiting.items():  # they could not be read the second time
                for page in rest:
                    self._finish(page, picture, None)
        finally:
            self._copies.save()
            lost = self._write_table()
        if len(self._pages) > 1:
            texts = sum(len(page.texts) for page in self._pages)
            print(f"caption: {texts} alternative texts in {len(self._pages)} pages")
        if lost:
            places = (f"{row.page}, line {row.line}: {row.picture}" for row in lost)
            print(
                "caption: not on their page any more, but kept in the table: "
                f"{counted(len(lost), 'correction')}: {first_few(places)}"
            )

    def _prepare(self, page: Page) -> None:
        """Give the pictures of a page their texts or notes, or let it wait for captions."""
        shown = [self._shown(page, bare) for bare in page.html.bare]
        page.pictures |= {n: one.file for n, one in enumerate(shown) if one.file is not None}
        rows: list[Row | None] = [None] * len(shown)
        if self._table is not None:
            pairs = list(zip(shown, page.html.bare, strict=True))
            page.names = [self._named(one, bare) for one, bare in pairs]
            rows = self._table.corrections(
                self._table.name(page.file),
                [
                    Place(bare.line, name, one.named is not None)
                    for name, (one, bare) in zip(page.names, pairs, strict=True)
                ],
            )
        for number, (one, row) in enumerate(zip(shown, rows, strict=True)):
            if row is not None:
                lang = row.lang if row.lang.replace("-", "").isalnum() else ""
                page.texts[number] = Alternative(row.text, False, lang, reviewed=True)
                page.notes[number] = CORRECTED
            elif one.file is None:
                page.notes[number] = one.note
                if one.spacer:
                    page.texts[number] = Alternative("")
            elif (known := self._known(page, number, one.file)) is not None:
                page.texts[number] = _in_english(page.html.bare[number], known)
            else:
                page.waiting.add(one.file)

    def _known(self, page: Page, number: int, picture: Path) -> Alternative | None:
        """Return the text that an earlier run generated for a picture, None if there is none."""
        if self._table is None:
            return None
        page.keys[number] = key = self._key(picture)
        row = self._table.generated(page.names[number], key)
        if row is None or not row.text or self._force:
            return None
        # The column unsure is for people: spreadsheet programs save it as TRUE, WAHR or VRAI.
        return Alternative(row.text, row.text.startswith(HEDGE))

    def _shown(self, page: Page, bare: Bare) -> _Shown:
        """Return what a picture shows: the first source that can be read and is not empty."""
        broken: list[Path] = []
        empty: list[tuple[Path, EmptyPicture]] = []
        embedded: list[PictureError] = []
        elsewhere: list[str] = []
        for source in bare.sources:
            inside = source[: len(_DATA)].lower() == _DATA
            file = (
                self._unpacked(source)
                if inside
                else file_of(source, page.html.codec, page.file.parent, page.site)
            )
            error = PictureError("no base64 data") if file is None else self._look(file)
            if error is None:
                return _Shown(file, named=file)
            if isinstance(error, EmptyPicture) and file is not None:
                empty.append((file, error))
            elif inside:
                embedded.append(error)
            elif file is None:
                elsewhere.append(source)
            else:
                broken.append(file)
        web = next((source for source in elsewhere if "//" in source), None)
        if broken:
            note = f"cannot be read: {self._unreadable(broken[0])}"
            # What a script may replace is no name: one placeholder stands for many pictures.
            return _Shown(None, note, named=web or (None if bare.later else broken[0]))
        if bare.tiny and not bare.later:
            return _Shown(None, "a spacer or a tracking pixel", spacer=True)
        if elsewhere:
            return _Shown(None, _ELSEWHERE, named=web)
        if not empty:
            note = f"embedded in the page, {embedded[0]}" if embedded else "no address"
            return _Shown(None, f"a placeholder: {note}" if bare.later else note)
        _, reason = empty[0]
        if reason.spacer and not bare.later:
            return _Shown(None, f"a spacer: {reason}", spacer=True)
        return _Shown(None, f"a placeholder: {reason}" if bare.later else str(reason))

    def _unreadable(self, file: Path) -> PictureError:
        """Report a picture that cannot be read, once, and return why."""
        reason = self._looked[file]
        assert reason is not None
        if (file, reason) not in self._writer.unreadable:
            self._writer.unreadable.append((file, reason))
        return reason

    def _unpacked(self, source: str) -> Path | None:
        """Return a temporary file with the picture that a data: URL holds."""
        head, _, data = source.partition(",")
        raw = unquote_to_bytes(data.encode("utf-8", "replace"))
        try:
            content = b64decode(raw + b"==") if head.lower().endswith(";base64") else raw
        except ValueError:
            return None
        file = self._embedded / f"embedded-{short_hash(content)}"
        if not file.exists():
            file.write_bytes(content)
        return file

    def _look(self, file: Path) -> PictureError | None:
        """Return why a picture cannot be described, None if it can; each is read once."""
        if file not in self._looked:
            self._looked[file] = None
            try:
                check_content(read_picture(file))
            except PictureError as error:
                self._looked[file] = error
        return self._looked[file]

    def _key(self, picture: Path) -> str:
        if picture not in self._keys:
            content = picture.read_bytes()
            self._keys[picture] = short_hash(self._writer.identity().encode() + content)
        return self._keys[picture]

    def _named(self, shown: _Shown, bare: Bare) -> str:
        """Return how the table names a picture."""
        if isinstance(shown.named, Path):
            if shown.named.parent == self._embedded:
                return shown.named.name
            assert self._table is not None
            return self._table.name(shown.named)
        address = shown.named or next(iter(bare.sources), "")
        if len(address) <= _LONGEST_NAME:
            return address
        digest = short_hash(address.encode("utf-8", "surrogatepass"))
        return f"{address[: _LONGEST_NAME - len(digest) - 1]}…{digest}"

    def _finish(self, page: Page, picture: Path, text: Alternative | None) -> None:
        """Give a picture its text, and write its page if that was the last one."""
        for number, one in page.pictures.items():
            if one != picture or number in page.texts:
                continue
            if text is not None and text.text:  # an empty text would mark it as decoration
                page.texts[number] = _in_english(page.html.bare[number], text)
            else:
                page.notes[number] = "the captioner found no words"
        page.waiting.discard(picture)
        if not page.waiting:
            self._write(page)
            if time.monotonic() - self._written > _SECONDS_BETWEEN_TABLES:
                self._copies.save()
                self._write_table()

    def _write(self, page: Page) -> None:
        self._copies.write(page)
        _report(page)

    def _write_table(self) -> list[Row]:
        """Write the table of the pictures whose texts are known so far."""
        if self._table is None:
            return []
        self._written = time.monotonic()
        rows = [self._row(page, number) for page in self._pages for number in _numbers(page)]
        return self._table.write(rows, {self._table.name(page.file) for page in self._pages})

    def _row(self, page: Page, number: int) -> Row:
        assert self._table is not None
        bare = page.html.bare[number]
        text = page.texts.get(number, Alternative(""))
        return Row(
            page=self._table.name(page.file),
            line=str(bare.line),
            picture=page.names[number],
            text=text.text,
            unsure=str(text.unsure).lower(),
            lang=text.lang,
            note=page.notes.get(number, ""),
            written=text.text,
            key=page.keys.get(number, ""),
        )


def _numbers(page: Page) -> range:
    return range(len(page.html.bare))


def _in_english(bare: Bare, text: Alternative) -> Alternative:
    """Return a generated text, marked as English where the page is in another language."""
    return text._replace(lang="en" if bare.foreign else "")


def _report(page: Page) -> None:
    """Print what a page got, and name each picture that was left as it is."""
    html = page.html
    notes = {number: note for number, note in page.notes.items() if note != CORRECTED}
    spacers = sum(number in page.texts for number in notes)
    elsewhere = sum(note == _ELSEWHERE for note in notes.values())
    parts = [
        f"{len(page.texts) - spacers} alternative texts in {page.out}",
        f"{html.others} images needed none, {elsewhere} are on the web or outside {page.site} and "
        "have none yet",
    ]
    if spacers:
        parts.append(f'{spacers} are spacers and got alt=""')
    if html.templates:
        parts.append(f"{html.templates} belong to templates and were left alone")
    print(f"caption: {'; '.join(parts)}")
    for number, note in sorted(notes.items()):
        if number not in page.texts and note != _ELSEWHERE:
            bare = html.bare[number]
            shown = bare.sources[-1][:80] if bare.sources else "a picture without src"
            print(f"{page.file}, line {bare.line}: {shown}: left without a text: {note}")
    if html.unseen:
        print(
            f"{page.file}: a text search finds pictures in lines {first_few(html.unseen)} that "
            "browsers do not show, because an element or a comment before them is never closed",
            file=sys.stderr,
        )
