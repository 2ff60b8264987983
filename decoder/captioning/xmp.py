"""Descriptions in XMP files: read, and set without changing any other byte.

XMP is RDF in XML (ISO 16684-1). Expat finds where the elements are, and only those places are
edited. To write the parsed document again would lose quotes, line ends, the order of attributes
and the padding that other programs put there.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from decoder.captioning.xml_elements import (
    RDF,
    Element,
    NotXmpError,
    as_utf8,
    end_of,
    parse,
    start_tag,
)

WRITER = "caption-pipeline"
"""Names us in photoshop:CaptionWriter, and as the toolkit of files that we create."""

PERSON = f"a person, with {WRITER}"
"""Names a person who corrected our description, so that nobody takes it for a generated one."""

_X = "adobe:ns:meta/"
_DC = "http://purl.org/dc/elements/1.1/"
_IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
_PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_LANG = "http://www.w3.org/XML/1998/namespace lang"
_PREFIXES = {RDF: "rdf", _DC: "dc", _IPTC: "Iptc4xmpCore", _PHOTOSHOP: "photoshop"}

# Expat joins a namespace and a name with a space.
_DESCRIPTION = f"{_DC} description"
_IMAGE_DESCRIPTION = f"{_TIFF} ImageDescription"  # which Immich writes and reads as well
_ALT_TEXT = f"{_IPTC} AltTextAccessibility"
_CAPTION_WRITER = f"{_PHOTOSHOP} CaptionWriter"
_EXTENSION = f"{_PHOTOSHOP} SidecarForExtension"
_PROPERTIES = (_DESCRIPTION, _IMAGE_DESCRIPTION, _ALT_TEXT, _CAPTION_WRITER, _EXTENSION)

_NEW = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="{_X}" x:xmptk="{WRITER}">
  <rdf:RDF xmlns:rdf="{RDF}">
    <rdf:Description rdf:about=""
      xmlns:dc="{_DC}"
      xmlns:Iptc4xmpCore="{_IPTC}"
      xmlns:photoshop="{_PHOTOSHOP}"/>
  </rdf:RDF>
</x:xmpmeta>
""".encode()

_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")


class _Property(NamedTuple):
    """A property of the picture: an element, or an attribute of an rdf:Description."""

    name: str
    owner: Element
    element: Element | None

    def values(self) -> list[tuple[str, str]]:
        """Return the languages and texts that are not empty."""
        if self.element is None:
            found = [("x-default", self.owner.attributes[self.name].strip())]
        elif items := [item for each in self.element.children for item in each.children]:
            found = [(_language(item), item.text()) for item in items]
        else:
            found = [("x-default", self.element.text())]
        return [(language, text) for language, text in found if text]


class _Edit(NamedTuple):
    """Bytes to replace."""

    start: int
    end: int
    content: str


class Xmp:
    """An XMP file.

    Args:
        data: its content.

    Raises:
        NotXmpError: it is not XMP, is too large or declares entities.
    """

    def __init__(self, data: bytes) -> None:
        self._bom, self._encoding, self._data = as_utf8(data)
        root = parse(self._data, _PROPERTIES)
        if root.name in (f"{_X} xmpmeta", f"{_X} xapmeta"):
            rdf = [child for child in root.children if child.name == f"{RDF} RDF"]
        else:
            rdf = [root] if root.name == f"{RDF} RDF" else []
        if not rdf:
            raise NotXmpError("expected XMP, found XML without an rdf:RDF element")
        self._rdf = rdf[0]
        self._toolkit = root.attributes.get(f"{_X} xmptk")

    @property
    def described(self) -> bool:
        """Whether there is a description in any language."""
        return bool(self._values(_DESCRIPTION) or self._values(_IMAGE_DESCRIPTION))

    @property
    def generated(self) -> bool:
        """Whether we wrote the description and nobody changed it since.

        We write an alternative text equal to the description. Version 0.2 named itself as the
        toolkit only.
        """
        if self._values(_IMAGE_DESCRIPTION):
            return False
        alt_text = self._default(_ALT_TEXT)
        writer = self._default(_CAPTION_WRITER)
        ours = writer == WRITER or (not writer and self._toolkit == WRITER)
        return ours and alt_text in ("", self._default(_DESCRIPTION))

    @property
    def other_writer(self) -> str:
        """The caption writer that the file names, if that is somebody else."""
        writer = self._default(_CAPTION_WRITER)
        return "" if writer == WRITER else writer

    @property
    def extension(self) -> str:
        """The suffix, without its dot, of the picture that Adobe's programs wrote the file for."""
        return self._default(_EXTENSION).lower()

    def describe(self, text: str, force: bool = False, writer: str = WRITER) -> bytes:
        """Return the file with `text` as the picture's description in the default language.

        The alternative text becomes `text` too, unless it has one of its own, and
        photoshop:CaptionWriter names `writer`.

        Args:
            text: the description.
            force: replace an alternative text that differs from the description.
            writer: WRITER, or PERSON if a person corrected the description.

        Raises:
            NotXmpError: the edited file does not read as expected.
        """
        names = [_DESCRIPTION]
        alt_text = self._values(_ALT_TEXT)
        if force or not alt_text or self._default(_ALT_TEXT) == self._default(_DESCRIPTION):
            names.append(_ALT_TEXT)
        edits: list[_Edit] = []
        new: list[str] = []
        for name in names:
            found = self._find(name)
            for one in found:
                edits += self._set_alternative(one, text)
            if not any(one.element for one in found):
                new.append(name)
        writers = self._find(_CAPTION_WRITER)
        edits += [self._set_simple(one, writer) for one in writers]
        texts = dict.fromkeys(new, text)
        if not writers:
            texts[_CAPTION_WRITER] = writer
        edits += self._insert(texts)

        data = self._data
        for edit in sorted(edits, reverse=True):
            data = data[: edit.start] + edit.content.encode() + data[edit.end :]
        result = self._bom + data.decode().encode(self._encoding, "xmlcharrefreplace")
        edited = Xmp(result)
        expected = dict.fromkeys(names, text.strip()) | {_CAPTION_WRITER: writer}
        if any(edited._default(name) != value for name, value in expected.items()):
            raise NotXmpError("its description has a form that cannot be edited safely")
        return result

    def _owners(self) -> list[Element]:
        return [child for child in self._rdf.children if child.name == f"{RDF} Description"]

    def _find(self, name: str) -> list[_Property]:
        found = []
        for owner in self._owners():
            if name in owner.attributes:
                found.append(_Property(name, owner, None))
            found += [_Property(name, owner, each) for each in owner.children if each.name == name]
        return found

    def _values(self, name: str) -> list[tuple[str, str]]:
        return [value for found in self._find(name) for value in found.values()]

    def _default(self, name: str) -> str:
        """Return the text in the default language, or an empty one."""
        texts = [text for language, text in self._values(name) if language == "x-default"]
        return texts[0] if texts else ""

    def _set_alternative(self, found: _Property, text: str) -> Iterator[_Edit]:
        """Yield the edits that set the text in the default language and keep other languages."""
        element = found.element
        if element is None:  # a shorthand that has no languages; an element replaces it
            start, end, _ = _attribute(self._data, found)
            yield _Edit(start, end, "")
            return
        lists = [child for child in element.children if child.name == f"{RDF} Alt"]
        if not lists:
            markup = self._markup(found.name, text, found.owner, self._indent(element.start))
            yield _Edit(element.start, end_of(self._data, element), markup)
            return
        items = [item for item in lists[0].children if item.name == f"{RDF} li"]
        name = start_tag(self._data, lists[0])[1].decode()
        li = f"{name[: -len('Alt')]}li"
        markup = f'<{li} xml:lang="x-default">{escape(text)}</{li}>'
        defaults = [item for item in items if _language(item) == "x-default"]
        for item in defaults:
            tag = start_tag(self._data, item)
            if item.children or tag[3] or _LANG not in item.attributes:
                yield _Edit(item.start, end_of(self._data, item), markup)
            else:
                yield _Edit(tag.end(), item.content_end, escape(text))
        if not defaults and items:  # the default language comes first
            space = self._break(self._indent(items[0].start))
            yield _Edit(items[0].start, items[0].start, markup + space)
        elif not defaults:
            yield self._fill(lists[0], [markup])

    def _set_simple(self, found: _Property, text: str) -> _Edit:
        if found.element is None:
            _, end, value = _attribute(self._data, found)
            return _Edit(end - len(value), end, quoteattr(text))
        element = found.element
        name = start_tag(self._data, element)[1].decode()
        markup = f"<{name}{start_tag(self._data, element)[2].decode()}>{escape(text)}</{name}>"
        return _Edit(element.start, end_of(self._data, element), markup)

    def _insert(self, texts: dict[str, str]) -> list[_Edit]:
        """Return the edit that adds new properties to the first rdf:Description."""
        if not texts:
            return []
        owners = self._owners()
        if not owners:
            rdf, _ = self._prefix(RDF, self._rdf)
            indent = self._child_indent(self._rdf)
            inner = [self._markup(*one, self._rdf, indent + self._unit()) for one in texts.items()]
            body = "".join(self._break(indent + self._unit()) + each for each in inner)
            declared = "" if self._rdf.prefixes.get(rdf) == RDF else f' xmlns:{rdf}="{RDF}"'
            markup = (
                f'<{rdf}:Description{declared} {rdf}:about="">{body}{self._break(indent)}'
                f"</{rdf}:Description>"
            )
            return [self._fill(self._rdf, [markup])]
        indent = self._child_indent(owners[0])
        return [
            self._fill(owners[0], [self._markup(*one, owners[0], indent) for one in texts.items()])
        ]

    def _fill(self, parent: Element, markups: list[str]) -> _Edit:
        """Return the edit that adds elements behind the children of `parent`."""
        indent = self._child_indent(parent)
        body = "".join(self._break(indent) + markup for markup in markups)
        if parent.children:
            end = end_of(self._data, parent.children[-1])
            return _Edit(end, end, body)
        tag = start_tag(self._data, parent)
        last = self._break(self._indent(parent.start))
        if tag[3]:
            return _Edit(tag.start(3), tag.end(), f">{body}{last}</{tag[1].decode()}>")
        empty = tag.end() == parent.content_end
        return _Edit(tag.end(), tag.end(), body + (last if empty else ""))

    def _markup(self, name: str, text: str, place: Element, indent: str) -> str:
        """Return the element of a new property to be put at `place`."""
        uri, local = name.split(" ")
        prefix, declared = self._prefix(uri, place)
        if name == _CAPTION_WRITER:
            return f"<{prefix}:{local}{declared}>{escape(text)}</{prefix}:{local}>"
        rdf, rdf_declared = self._prefix(RDF, place)
        unit = self._unit()
        return (
            f"<{prefix}:{local}{declared}{rdf_declared}>"
            f"{self._break(indent + unit)}<{rdf}:Alt>"
            f"{self._break(indent + 2 * unit)}"
            f'<{rdf}:li xml:lang="x-default">{escape(text)}</{rdf}:li>'
            f"{self._break(indent + unit)}</{rdf}:Alt>"
            f"{self._break(indent)}</{prefix}:{local}>"
        )

    @staticmethod
    def _prefix(uri: str, place: Element) -> tuple[str, str]:
        """Return a prefix for a namespace, and its declaration if there is none at `place`."""
        for prefix, declared in place.prefixes.items():
            if declared == uri and prefix:
                return prefix, ""
        return _PREFIXES[uri], f' xmlns:{_PREFIXES[uri]}="{uri}"'

    def _break(self, indent: str) -> str:
        """Return a line break and `indent`, in the style of the file."""
        if b"\r\n" in self._data:
            return f"\r\n{indent}"
        return f"\n{indent}" if b"\n" in self._data else ""

    def _indent(self, place: int) -> str:
        """Return the space at the beginning of the line of `place`."""
        line = self._data[self._data.rfind(b"\n", 0, place) + 1 : place]
        return line[: len(line) - len(line.lstrip(b" \t"))].decode()

    def _child_indent(self, parent: Element) -> str:
        if parent.children:
            return self._indent(parent.children[-1].start)
        return self._indent(parent.start) + self._unit()

    def _unit(self) -> str:
        """Return the space by which the file indents a level."""
        owners = self._owners()
        if not owners:
            return " "
        outer, inner = self._indent(self._rdf.start), self._indent(owners[0].start)
        return inner.removeprefix(outer) or " "


def new_file(text: str, writer: str = WRITER) -> bytes:
    """Return a new XMP file with `text` as the description; see `Xmp.describe`."""
    return Xmp(_NEW).describe(text, writer=writer)


def _language(item: Element) -> str:
    """Return the language of a text; without one it is the default language."""
    return item.attributes.get(_LANG, "x-default").lower()


def _attribute(data: bytes, found: _Property) -> tuple[int, int, bytes]:
    """Return where an attribute and the space before it are, and its quoted value."""
    tag = start_tag(data, found.owner)
    for match in _ATTRIBUTE.finditer(data, tag.start(2), tag.end(2)):
        prefix, _, local = match[1].decode().partition(":")
        if f"{found.owner.prefixes.get(prefix)} {local}" == found.name:
            return match.start(), match.end(), match[2]
    raise NotXmpError("its attributes have a form that cannot be edited safely")
