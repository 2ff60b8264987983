"""Alternative texts for the pictures of an HTML page, the rest of it as it was, byte for byte."""

import codecs
from collections.abc import Mapping
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from decoder.captioning.files import PICTURE_SUFFIXES, name_unreadable
from decoder.captioning.options import CaptionOptions
from decoder.captioning.writer import PictureWriter, Runs
from features.errors import UserError
from features.files import write_atomically

MARK = "data-alt-generated"
# Elements whose content is text, whatever tags it seems to hold.
_TEXT_ONLY = ("iframe", "noembed", "noframes", "textarea", "title", "xmp")
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_TAG = "<img"


class Bare(NamedTuple):
    """An <img> that needs an alternative text."""

    place: int
    """Where in the text its attributes begin."""
    source: str | None
    """Its src, joined to the page's <base>; None if it has none."""


class Page:
    """A page and its <img> without alternative text.

    One with alt="" is decorative, and one with role="presentation", aria-hidden or aria-label says
    likewise that it needs none: they are left alone.

    Attributes:
        bare: those that need one, in the order of the page.
        others: how many <img> need none.
    """

    def __init__(self, content: bytes) -> None:
        # Latin-1 maps bytes to characters one by one, and what is inserted is ASCII: so whatever
        # the encoding, if only it holds ASCII, every other byte comes out as it went in.
        self._encoding = _UTF16.get(content[:2], "latin-1")
        self._bytes = self._encoding == "latin-1"
        self._text = content.decode(
            self._encoding, "surrogatepass" if not self._bytes else "strict"
        )
        images = _Images(self._text)
        self.bare, self.others = images.bare, images.others

    def path_of(self, source: str | None, folder: Path, site: Path) -> Path | None:
        """Return the file that a src means, None if it is on the net or outside the site.

        Args:
            source: as in `Bare`.
            folder: that the page lies in.
            site: the folder that "/" stands for, and that no file is looked for outside of.
        """
        try:
            parts = urlsplit(source or "")
        except ValueError:
            return None
        if not parts.path or parts.scheme or parts.netloc:
            return None
        try:  # back to the bytes of the page, or, of what was written &#x4e2d;, to UTF-8
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
        except (OSError, RuntimeError):  # a name that is too long, links in a circle
            return None
        return path if inside else None

    def with_texts(self, texts: Mapping[int, tuple[str, bool]]) -> bytes:
        """Return the page with alternative texts.

        Args:
            texts: for the number of an entry of `bare`, the text and whether it is unsure.
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
    """Finds the <img> of a page and where they stand."""

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
        """Note an <img> or the first <base>; skip what is only text."""
        if tag in _TEXT_ONLY:
            self.set_cdata_mode(tag)
        elif tag == "base" and self._base is None:
            self._base = dict(attrs).get("href")
        elif tag == "img":
            self._image({name: value or "" for name, value in reversed(attrs)})

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take <img/> for <img>; in HTML the stroke of any other tag means nothing either."""
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
    """Return a src as seen from a <base>, None if one of them is no address."""
    try:
        absolute = [
            bool(p.scheme or p.netloc or p.path[:1] == "/") for p in map(urlsplit, (base, source))
        ]
        if any(absolute):
            return urljoin(base, source)
    except ValueError:
        return None
    # Not by urljoin, which drops the ".." that a relative base begins with.
    return base[: base.rfind("/") + 1] + source


def caption_page(options: CaptionOptions, runs: Runs, file: Path) -> int:
    """Write a copy of an HTML page with alternative texts and return the exit status."""
    out = options.out or file.with_name(f"{file.stem}.alt{file.suffix}")
    if file.suffix.lower() in PICTURE_SUFFIXES:
        raise UserError(
            f"--alt takes an HTML page, found {file}; a picture is captioned by its name alone, "
            "without --alt"
        )
    try:
        content = file.read_bytes()
        page = Page(content)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} starts as UTF-16, but is not: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if out.exists() and (out.samefile(file) or not (options.force or _is_copy(out, content))):
        raise UserError(
            f"{out} is there already and is not a copy that this command made; choose another "
            "--out" + ("" if out.samefile(file) else ", or replace it with --force")
        )
    folder = file.parent
    places: dict[Path, list[int]] = {}
    elsewhere = 0
    for number, image in enumerate(page.bare):
        path = page.path_of(image.source, folder, options.site or folder)
        if path is None:
            elsewhere += 1
        else:
            places.setdefault(path, []).append(number)
    texts: dict[int, tuple[str, bool]] = {}
    writer = PictureWriter(runs, options)
    for path, (best, *_) in writer.each(list(places)):
        if best.sentence:  # an empty text would say that the picture is decoration
            texts |= dict.fromkeys(places[path], (best.standing_alone, best.unsure))
    write_atomically(out, page.with_texts(texts))
    print(
        f"caption: {len(texts)} alternative texts in {out}; {page.others} images needed none, "
        f"{elsewhere} are on the net or outside {options.site or folder} and have none yet"
    )
    return name_unreadable(writer)


def _is_copy(file: Path, of_page: bytes) -> bool:
    """Whether a page holds alternative texts of ours, or is the same to the byte: we wrote it."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    if content == of_page:  # which needed none
        return True
    return any(MARK.encode(code) in content for code in ("ascii", "utf-16-le", "utf-16-be"))
