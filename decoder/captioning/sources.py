"""What a picture of a page shows, however the page loads it, and the files that addresses mean."""

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from features.kinds import PICTURE_SUFFIXES

_BLANKS = " \t\r\n\f"
# Attributes from which scripts load a picture later, such as data-src, data-original and
# data-lazy-src. Those in _OTHER_PICTURE hold another picture than the one that people see first.
_LAZY = re.compile(
    r"(?:data-|nitro-|lazy|pagespeed_|ez).*(?:src|original|lazy(?:-?load)?|image|img|url|file|full|large|hi-?res|echo|normal)"
    r"|lazy-?src|data-(?:srcset|lazy(?:-?load)?)"
)
_OTHER_PICTURE = re.compile(
    r"hover|over|error|fallback|placeholder|preview|thumb|blur|lqip|loading|alt"
)
_NOTHING = re.compile(r"#|(?:about|javascript):|$", re.IGNORECASE)  # addresses of no picture
_NAMES_PICTURE = re.compile(
    rf"[\w%)](?:{'|'.join(map(re.escape, sorted(PICTURE_SUFFIXES)))})(?!\w)", re.IGNORECASE
)
_CANDIDATE = re.compile(
    r"[\s,]*(\S*[^\s,])(?:,+(?=\s|$)|\s+([\d.]+)[wxh][^,]*(?:,|$)|(?=\s|$)[^,]*(?:,|$))"
)


def sources_of(node: Any, attributes: Mapping[str, str]) -> list[str]:
    """Return the addresses of what a picture shows, the likeliest first and its src last.

    Args:
        node: the element.
        attributes: its attributes.
    """
    sources = list(_later(attributes))
    sources += largest_first(attributes.get("srcset", ""))
    parent = node.parent
    if parent is not None and parent.name == "picture":
        for child in parent.children or ():
            if child.name == "source":
                values = {name: value or "" for name, value in child.attrs.items()}
                sources += [*_later(values), *largest_first(values.get("srcset", ""))]
    sources += [attributes.get(name, "") for name in ("href", "xlink:href", "ngsrc", "src")]
    return [one for source in sources if not _NOTHING.match(one := source.strip(_BLANKS))]


def _later(attributes: Mapping[str, str]) -> Iterator[str]:
    """Yield the addresses that scripts load later."""
    lazy = [
        name for name in attributes if _LAZY.fullmatch(name) and not _OTHER_PICTURE.search(name[5:])
    ]
    for name in sorted(lazy, key=lambda name: not name.endswith("srcset")):
        value = attributes[name].strip(_BLANKS)
        if name.endswith("srcset"):
            yield from largest_first(value)
        elif "src" in name or _is_picture(value):
            yield from value.split("|")  # bLazy separates the picture for dense displays by a bar


def names_pictures(attributes: Mapping[str, str]) -> bool:
    """Whether attributes for scripts name pictures, in whatever form the script reads them."""
    return any(
        name.startswith("data-") and _NAMES_PICTURE.search(value)
        for name, value in attributes.items()
    )


def _is_picture(address: str) -> bool:
    return os.path.splitext(re.split("[?#]", address)[0])[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122


def largest_first(srcset: str) -> list[str]:
    """Return the addresses of a srcset, the largest picture first."""
    found = [
        (float(size) if re.fullmatch(r"\d+\.?\d*|\.\d+", size or "") else 1.0, address)
        for address, size in _CANDIDATE.findall(srcset)
    ]
    return [address for _, address in sorted(found, key=lambda pair: -pair[0])]


def noscript_copy(node: Any) -> list[str] | None:
    """Return the addresses of the picture that a <noscript> right after or before holds, if any."""
    siblings = [one for one in node.parent.children or () if one.name not in ("#text", "#comment")]
    number = next(number for number, one in enumerate(siblings) if one is node)
    near = [*siblings[number + 1 : number + 2], *siblings[:number][-1:]]
    for one in near:
        if one.name == "noscript":
            pictures = [child for child in one.children or () if child.name == "img"]
            if len(pictures) == 1:
                attributes = {name: value or "" for name, value in pictures[0].attrs.items()}
                return sources_of(pictures[0], attributes)
    return None


def joined(base: str, source: str) -> str | None:
    """Resolve an address against a <base>; None if one of them is not valid."""
    try:
        parts = [urlsplit(one) for one in (base, source)]
    except ValueError:
        return None
    if not base or parts[1].scheme:
        return source
    if any(one.scheme or one.netloc or one.path[:1] == "/" for one in parts):
        return urljoin(base, source)
    # urljoin would drop a ".." at the start of a relative base.
    return base[: base.rfind("/") + 1] + source


def file_of(source: str, codec: str, folder: Path, site: Path) -> Path | None:
    """Return the file that an address means, None if it is on the web or outside the site.

    Names that differ only in their encoding, or in the Unicode form of an accent, are the same; the
    first file that exists is taken. If there is none, one in another case of letters is.

    Args:
        source: the address, joined to the page's <base>.
        codec: the Python codec of the page.
        folder: the folder of the page.
        site: the folder that "/" stands for.
    """
    try:
        parts = urlsplit(source)
    except ValueError:
        return None
    if not parts.path or parts.scheme or parts.netloc or "\0" in parts.path:
        return None
    first = None
    for name in _names(parts.path.replace("\\", "/"), codec):
        if "\0" in name:
            return None
        path = site / name.lstrip("/") if name.startswith("/") else folder / name
        try:
            if not path.resolve().is_relative_to(site.resolve()):
                continue
            if path.exists():
                return path
        except (OSError, RuntimeError, ValueError):  # too long, or a link leads to itself
            continue
        first = first or path
    other = _in_other_case(first) if first else None
    # Its folders may be links that lead elsewhere.
    return other if other and other.resolve().is_relative_to(site.resolve()) else first


def _in_other_case(path: Path) -> Path | None:
    """Return the only file whose path differs in the case of letters, None if there is none.

    Pages from systems that take a.JPG and a.jpg for the same name use either.
    """
    wanted = path.name.casefold()
    folder = path.parent if path.parent.is_dir() else _in_other_case(path.parent)
    if folder is None or path == path.parent:
        return None
    with suppress(OSError):
        fitting = [name for name in os.listdir(folder) if name.casefold() == wanted]  # noqa: PTH208
        if len(fitting) == 1:
            return folder / fitting[0]
    return None


def _names(path: str, codec: str) -> Iterator[str]:
    """Yield the names that a percent-encoded path can mean, the likeliest first."""
    raw = unquote_to_bytes(path.encode("utf-8", "surrogateescape" if _escaped(path) else "replace"))
    names = [raw.decode("utf-8", "surrogateescape")]
    for other in (codec, "cp1252"):
        if not other.startswith("utf"):
            names.append(raw.decode(other, "replace"))
    with suppress(UnicodeEncodeError):  # names that were unpacked in the encoding of the page
        names.append(os.fsdecode(unquote_to_bytes(path.encode(codec, "surrogateescape"))))
    for name in names:
        yield name
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, name)


def _escaped(path: str) -> bool:
    """Whether all surrogates of a path stand for bytes."""
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
