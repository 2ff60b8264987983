"""A caption beside its picture: PICTURE.txt, or PICTURE.xmp as photo software reads it."""

import xml.etree.ElementTree as ET
from pathlib import Path

from features.files import write_atomically

_TOOLKIT = "caption-pipeline"
_X, _DC = "adobe:ns:meta/", "http://purl.org/dc/elements/1.1/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_MOST_BYTES = 2**20  # of an XMP file of ours, a thousand times over


def sidecar_of(picture: Path, kind: str) -> Path:
    """Return where the sidecar lies: photo.jpg.txt or photo.jpg.xmp.

    The whole name is kept, as digiKam and darktable do, for photo.jpg and photo.png are two.
    """
    return picture.with_name(f"{picture.name}.{kind}")


def is_ours(sidecar: Path, kind: str) -> bool:
    """Whether we wrote an XMP sidecar; of a text nobody can tell, so it is taken for another's."""
    if kind != "xmp":
        return False
    try:
        if not sidecar.is_file() or sidecar.stat().st_size > _MOST_BYTES:
            return False
        root = ET.fromstring(sidecar.read_bytes())
    except (OSError, ET.ParseError, ValueError, LookupError):
        return False
    return root.tag == f"{{{_X}}}xmpmeta" and root.get(f"{{{_X}}}xmptk") == _TOOLKIT


def may_write(picture: Path, kind: str) -> bool:
    """Whether there is no sidecar yet, or one of ours that is older than its picture."""
    sidecar = sidecar_of(picture, kind)
    if not sidecar.exists() and not sidecar.is_symlink():
        return True
    return is_older(picture, kind) and is_ours(sidecar, kind)


def is_older(picture: Path, kind: str) -> bool:
    """Whether a sidecar was written before its picture was last changed."""
    try:
        return sidecar_of(picture, kind).stat().st_mtime_ns < picture.stat().st_mtime_ns
    except OSError:
        return False


def write(picture: Path, kind: str, text: str) -> None:
    """Write `text` as the sidecar of `picture`, whole or not at all, in place of one there.

    Raises:
        UserError: it cannot be written.
    """
    content = xmp(text) if kind == "xmp" else f"{text}\n".encode()
    write_atomically(sidecar_of(picture, kind), content)


def xmp(text: str) -> bytes:
    """Return an XMP file whose description, in the default language, is `text`."""
    for prefix, name in (("x", _X), ("rdf", _RDF), ("dc", _DC)):
        ET.register_namespace(prefix, name)
    root = ET.Element(f"{{{_X}}}xmpmeta", {f"{{{_X}}}xmptk": _TOOLKIT})
    rdf = ET.SubElement(root, f"{{{_RDF}}}RDF")
    about = ET.SubElement(rdf, f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})
    choices = ET.SubElement(ET.SubElement(about, f"{{{_DC}}}description"), f"{{{_RDF}}}Alt")
    ET.SubElement(choices, f"{{{_RDF}}}li", {_LANG: "x-default"}).text = text
    ET.indent(root)
    return ET.tostring(root, encoding="UTF-8", xml_declaration=True) + b"\n"
