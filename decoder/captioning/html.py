"""Alternative texts for the pictures of an HTML page; every other byte of it stays the same."""

import codecs
from collections.abc import Mapping
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from decoder.captioning.files import PICTURE_SUFFIXES
from decoder.captioning.writer import CaptionWriter
from features.errors import UserError
from features.files import write_atomically

MARK = "data-alt-generated"
# The content of these elements is text, even where it looks like tags.
_TEXT_ONLY = ("iframe", "noembed", "noframes", "textarea", "title", "xmp")
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_TAG = "<img"


class Bare(NamedTuple):
    """An <img> that needs an alternative text."""

    place: int
    """The offset in the text at which its attributes begin."""
    source: str | None
    """Its src, joined to the page's <base>; None if it has no src."""


class HtmlPage:
    """An HTML page and its <img> elements without alternative text.

    Elements with alt="", role="presentation", aria-hidden or aria-label need none and are left
    alone.

    Args:
        content: the bytes of the page.

    Attributes:
        bare: the elements that need an alternative text, in the order of the page.
        others: number of <img> elements that need none.

    Raises:
        UnicodeDecodeError: the page starts as UTF-16 but is not.
    """

    def __init__(self, content: bytes) -> None:
        # Latin-1 maps each byte to one character, and only ASCII is inserted. So every other byte
        # stays the same in any encoding that extends ASCII.
        self._encoding = _UTF16.get(content[:2], "latin-1")
        self._bytes = self._encoding == "latin-1"
        self._text = content.decode(
            self._encoding, "surrogatepass" if not self._bytes else "strict"
        )
        images = _Images(self._text)
        self.bare, self.others = images.bare, images.others

    def path_of(self, source: str | None, folder: Path, site: Path) -> Path | None:
        """Return the file that a src refers to, None if it is on the web or outside the site.

        Args:
            source: as in `Bare`.
            folder: the folder of the page.
            site: the folder that "/" stands for.
        """
        try:
            parts = urlsplit(source or "")
        except ValueError:
            return None
        if not parts.path or parts.scheme or parts.netloc:
            return None
        try:  # the bytes of the page, or UTF-8 for a character written as &#x4e2d;
            raw = unquote_to_bytes(parts.path.encode("latin-1" if self._bytes else "utf-8"))
        except UnicodeEncodeError:
            raw = unquote_to_bytes(parts.path.encode("utf-8", "replace"))
        if b"\0" in raw:
            return None
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = raw.decode("cp1252", "replace")
        path = site / name.lstrip("/") if name.startswith("/") else folder / name
        try:
            inside = path.resolve().is_relative_to(site.resolve())
        except (OSError, RuntimeError):  # the name is too long, or a link leads to itself
            return None
        return path if inside else None

    def with_texts(self, texts: Mapping[int, tuple[str, bool]]) -> bytes:
        """Return the page with alternative texts.

        Args:
            texts: the text, and whether it is unsure, by the index of an element in `bare`.
        """
        parts, last = [], 0
        for number in sorted(texts):
            text, unsure = texts[number]
            place = self.bare[number].place
            value = escape(text).encode("ascii", "xmlcharrefreplace").decode()
            mark = "unsure" if unsure else "true"
            parts += [self._text[last:place], f' alt="{value}" {MARK}="{mark}"']
            last = place
        parts.append(self._text[last:])
        return "".join(parts).encode(self._encoding, "strict" if self._bytes else "surrogatepass")


class _Images(HTMLParser):
    """Finds the <img> elements of a page and their offsets."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.bare: list[Bare] = []
        self.others = 0
        self._base: str | None = None
        self._text = text
        starts = [0]
        while (end := text.find("\n", starts[-1])) >= 0:
            starts.append(end + 1)
        self._line_starts = starts
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an <img> or the first <base>; skip elements that hold only text."""
        if tag in _TEXT_ONLY:
            self.set_cdata_mode(tag)
        elif tag == "base" and self._base is None:
            self._base = dict(attrs).get("href")
        elif tag == "img":
            self._image({name: value or "" for name, value in reversed(attrs)})

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Treat <img/> as <img>: HTML ignores the slash, as it does in any other tag."""
        self.handle_starttag(tag, attrs)

    def _image(self, attributes: dict[str, str]) -> None:
        line, column = self.getpos()
        place = self._line_starts[line - 1] + column
        named = any(attributes.get(name, "").strip() for name in ("aria-label", "aria-labelledby"))
        hidden = attributes.get("aria-hidden", "").strip().lower() == "true"
        decorative = attributes.get("role", "").strip().lower() in ("presentation", "none")
        if "alt" in attributes or named or hidden or decorative:
            self.others += 1
        elif self._text[place : place + len(_TAG)].lower() == _TAG:
            source = attributes.get("src", "").strip() or None
            if source and self._base:
                source = _joined(self._base.strip(), source)
            self.bare.append(Bare(place + len(_TAG), source))


def _joined(base: str, source: str) -> str | None:
    """Resolve a src against a <base>; None if one of them is not a valid address."""
    try:
        absolute = [
            bool(p.scheme or p.netloc or p.path[:1] == "/") for p in map(urlsplit, (base, source))
        ]
        if any(absolute):
            return urljoin(base, source)
    except ValueError:
        return None
    # urljoin would drop a ".." at the start of a relative base.
    return base[: base.rfind("/") + 1] + source


def write_page(
    writer: CaptionWriter, file: Path, out: Path | None, site: Path | None, force: bool
) -> None:
    """Write a copy of an HTML page with alternative texts.

    Args:
        writer: captions the pictures.
        file: the page.
        out: the copy; by default PAGE.alt.html beside the page.
        site: the root folder of the web site; by default the folder of the page.
        force: replace `out` even if it is not a copy of ours.

    Raises:
        UserError: the page cannot be read, `out` must not be replaced or cannot be written, or see
            `CaptionWriter.captions`.
    """
    out = out or file.with_name(f"{file.stem}.alt{file.suffix}")
    site = site or file.parent
    if file.suffix.lower() in PICTURE_SUFFIXES:
        raise UserError(
            f"--alt expects an HTML page, but {file} is a picture; to caption it, leave out --alt"
        )
    try:
        content = file.read_bytes()
        page = HtmlPage(content)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} starts as UTF-16, but is not: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    _check_copy(out, file, content, force)
    places: dict[Path, list[int]] = {}
    elsewhere = 0
    for number, image in enumerate(page.bare):
        path = page.path_of(image.source, file.parent, site)
        if path is None:
            elsewhere += 1
        else:
            places.setdefault(path, []).append(number)
    texts: dict[int, tuple[str, bool]] = {}
    for path, (best, *_) in writer.captions(list(places)):
        if best.sentence:  # an empty text would mark the picture as decoration
            texts |= dict.fromkeys(places[path], (best.hedged, best.unsure))
    write_atomically(out, page.with_texts(texts))
    print(
        f"caption: {len(texts)} alternative texts in {out}; {page.others} images needed none, "
        f"{elsewhere} are on the web or outside {site} and have none yet"
    )


def _check_copy(out: Path, file: Path, content: bytes, force: bool) -> None:
    """Raise UserError if `out` is the page itself, or exists and is not a copy of ours."""
    if not out.exists():
        return
    if out.samefile(file):
        raise UserError(f"{out} is the page itself; choose another --out for the copy")
    if not (force or _is_copy(out, content)):
        raise UserError(
            f"{out} exists and is not a copy made by this command; choose another --out, or "
            "replace it with --force"
        )


def _is_copy(file: Path, page: bytes) -> bool:
    """Return whether this command wrote `file`: it holds `MARK`, or equals `page`."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    if content == page:
        return True
    return any(MARK.encode(code) in content for code in ("ascii", "utf-16-le", "utf-16-be"))
