"""XML elements and their places in a file, for edits that change nothing else."""

import codecs
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_OWNER = f"{RDF} Description"
MAX_BYTES = 32 * 2**20
_MAX_ELEMENTS = 50_000  # of those kept; Lightroom's brush strokes are not
_MAX_DEPTH = 100

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FIRST_BYTES = ((b"<\0", "utf-16-le"), (b"\0<", "utf-16-be"))
_DECLARED = re.compile(rb"""\s*<\?xml\s[^>]*?\bencoding\s*=\s*["']([\w.:-]+)""")
_ENCODINGS = {"utf-8", "ascii", "iso8859-1", "cp1252"}
_TAG = re.compile(rb"""<([^\s/>]+)((?:\s+[^\s=]+\s*=\s*(?:"[^"]*"|'[^']*'))*)\s*(/?)>""")


class NotXmpError(Exception):
    """A file cannot be read, or edited safely, as XMP; the message says why."""


@dataclass(slots=True)
class Element:
    """An element and where it is, in bytes of UTF-8."""

    name: str
    attributes: dict[str, str]
    prefixes: Mapping[str, str]
    """The namespace of each prefix that is declared there."""
    start: int
    content_end: int = 0
    """Where the end tag begins; where the element ends if it is a single tag."""
    children: list["Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the text in the element and below it; RDF may keep a text in rdf:value."""
        parts: list[str] = []
        waiting = [self]
        while waiting:
            element = waiting.pop()
            parts += [*element.texts, element.attributes.get(f"{RDF} value", "")]
            waiting += element.children
        return "".join(parts).strip()


def as_utf8(data: bytes) -> tuple[bytes, str, bytes]:
    """Return the byte order mark, the encoding and the text in UTF-8."""
    if len(data) > MAX_BYTES:
        raise NotXmpError(f"expected at most {MAX_BYTES // 2**20} MB, found more")
    bom, encoding = next((pair for pair in _BOMS if data.startswith(pair[0])), (b"", ""))
    if not bom:
        encoding = next((name for begin, name in _FIRST_BYTES if data.startswith(begin)), "")
    if not encoding:
        declared = _DECLARED.match(data)
        name = declared[1].decode() if declared else "utf-8"
        try:
            encoding = codecs.lookup(name).name
        except LookupError:
            encoding = ""
        if encoding not in _ENCODINGS:
            raise NotXmpError(f"expected UTF-8 or UTF-16, found the encoding {name}")
    body = data[len(bom) :]
    try:
        text = body.decode(encoding)
    except UnicodeError as error:
        raise NotXmpError(f"expected {encoding.upper()}: {error}") from error
    return bom, encoding, text.encode()


def parse(data: bytes, properties: Collection[str]) -> Element:
    """Return the root of an XML document in UTF-8.

    Only the properties of the given names have their content; others may be large.
    """
    parser = expat.ParserCreate("utf-8", " ")
    parser.buffer_text = True
    open_elements: list[Element | None] = []  # None within a property that is passed over
    roots: list[Element] = []
    declarations: dict[str, str] = {}
    count = 0

    def declare(prefix: str | None, uri: str | None) -> None:
        declarations[prefix or ""] = uri or ""

    def passed_over() -> bool:
        parent, *above = open_elements[-1:-3:-1] or [None]
        is_property = bool(above) and above[0] is not None and above[0].name == _OWNER
        return parent is None or (is_property and parent.name not in properties)

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        if len(open_elements) == _MAX_DEPTH:
            raise NotXmpError(f"expected elements in at most {_MAX_DEPTH} others")
        if open_elements and passed_over():
            declarations.clear()
            open_elements.append(None)
            return
        count += 1
        if count > _MAX_ELEMENTS:
            raise NotXmpError(f"expected at most {_MAX_ELEMENTS:,} elements")
        parent = open_elements[-1] if open_elements else None
        prefixes: Mapping[str, str] = parent.prefixes if parent else {}
        if declarations:
            prefixes = {**prefixes, **declarations}
            declarations.clear()
        element = Element(name, attributes, prefixes, parser.CurrentByteIndex)
        (parent.children if parent else roots).append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        if element := open_elements.pop():
            element.content_end = parser.CurrentByteIndex

    def text(characters: str) -> None:
        if element := open_elements[-1]:
            element.texts.append(characters)

    def refuse(*_: object) -> None:
        raise NotXmpError("it has a document type, which XMP must not have")

    parser.StartNamespaceDeclHandler = declare
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise NotXmpError(f"it is not XML: {error}") from error
    return roots[0]


def start_tag(data: bytes, element: Element) -> re.Match[bytes]:
    """Return an element's start tag: its name, its attributes and the slash of a single tag.

    Raises:
        NotXmpError: the tag is written in an unusual way.
    """
    found = _TAG.match(data, element.start)
    if found is None:
        raise NotXmpError("its tags have a form that cannot be edited safely")
    return found


def end_of(data: bytes, element: Element) -> int:
    """Return the place behind an element's end tag."""
    if start_tag(data, element)[3]:
        return element.content_end
    return data.index(b">", element.content_end) + 1
