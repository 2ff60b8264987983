"""A caption beside its picture: PICTURE.txt, or PICTURE.xmp for photo software."""

import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from decoder.captioning.writer import CaptionWriter
from features.errors import first_few
from features.files import write_atomically

_TOOLKIT = "caption-pipeline"
_X, _DC = "adobe:ns:meta/", "http://purl.org/dc/elements/1.1/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_MAX_BYTES = 2**20  # a thousand times the size of an XMP file of ours


def write_sidecars(writer: CaptionWriter, paths: Sequence[Path], kind: str, force: bool) -> None:
    """Write the sidecars that are missing or outdated.

    Args:
        writer: captions the pictures.
        paths: the pictures.
        kind: txt or xmp.
        force: replace sidecars that exist, including those of other programs.

    Raises:
        UserError: a sidecar cannot be written, or see `CaptionWriter.captions`.
    """
    missing: list[Path] = []
    kept: list[Path] = []
    for path in paths:
        (missing if force or may_write(path, kind) else kept).append(path)
    empty: list[str] = []
    for path, (best, *_) in writer.captions(missing, len(kept)):
        if best.sentence:
            write(path, kind, best.hedged)
        else:
            empty.append(str(path))
    print(
        f"caption: {writer.written - len(empty)} sidecars written, {len(kept)} already there"
        + (f"; no sidecar for {len(empty)} empty captions: {first_few(empty)}" if empty else "")
    )
    if old := [str(path) for path in kept if is_older(path, kind)]:
        print(
            f"caption: {len(old)} of these are older than their pictures and may not be ours: "
            f"{first_few(old)}; --force replaces all sidecars",
            file=sys.stderr,
        )


def sidecar_of(picture: Path, kind: str) -> Path:
    """Return the path of the sidecar: photo.jpg.txt or photo.jpg.xmp.

    The picture's suffix is kept, as digiKam and darktable do, because photo.jpg and photo.png may
    both exist.
    """
    return picture.with_name(f"{picture.name}.{kind}")


def is_ours(sidecar: Path, kind: str) -> bool:
    """Whether we wrote a sidecar. A text file shows no author, so it is never taken for ours."""
    if kind != "xmp":
        return False
    try:
        if not sidecar.is_file() or sidecar.stat().st_size > _MAX_BYTES:
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
    """Write `text` as the sidecar of `picture` atomically, replacing an existing one.

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
