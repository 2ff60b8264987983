"""The captions of the page as files: a table, or a text or XMP file for each picture.

They are what the command line writes (see `listing` and `sidecars`), and it reads them again: a
table counts its pictures as done, and a text that a person corrected is not replaced.
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast, get_args

from decoder.captioning import xmp
from decoder.captioning.listing import Listing, State, state_of
from decoder.captioning.sidecar_files import digest
from decoder.captioning.sidecars import Kind as SidecarKind
from decoder.captioning.sidecars import Text, write_given
from decoder.captioning.writer import hedge
from features.errors import UserError, require
from features.generated_texts import REGISTRY
from pipeline.text import CONTROL

KINDS = ("csv", *get_args(SidecarKind))
"""A table, or a kind of sidecar."""


class Reviewed(NamedTuple):
    """A caption as it left the page."""

    name: str
    """The picture's file name, perhaps with folders before it."""
    text: str
    corrected: bool
    """Whether a person wrote the text."""
    unsure: bool
    confidence: float | None
    state: State
    """Size and time of the picture, as the browser knows them: to the millisecond."""
    picture: str
    """The key of a picture on this machine; empty if it was uploaded."""

    @property
    def sidecar_text(self) -> Text:
        """The text as sidecars hold it: hedged, unless a person wrote it."""
        unsure = self.unsure and not self.corrected
        return Text(hedge(self.text) if unsure else self.text, self.corrected)

    @property
    def row(self) -> dict[str, Any]:
        """The columns of a table; the confidence was that of another text if it is corrected."""
        ours = not self.corrected
        confidence = self.confidence if ours else None
        return {"caption": self.text, "unsure": self.unsure and ours, "confidence": confidence}


def parse(content: Any) -> list[Reviewed]:
    """Return the captions that the page sent.

    Raises:
        UserError: the page would not send that.
    """
    try:
        return [
            Reviewed(
                _name(one["name"]),
                " ".join(str(one["text"]).split()),
                bool(one["corrected"]),
                bool(one["unsure"]),
                None if one["confidence"] is None else float(one["confidence"]),
                State(int(one["bytes"]), int(one["modified"]) * 1_000_000),
                str(one["picture"]),
            )
            for one in content["captions"]
        ]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"expected captions as the page sends them, found {error!r}") from error


def _name(text: Any) -> str:
    parts = [p for p in PurePosixPath(str(text)).parts if p not in ("/", "..", ".")]
    name = CONTROL.sub("_", "/".join(parts).replace("\\", "_"))
    return name or "picture"


def download(captions: Sequence[Reviewed], kind: str, identity: str) -> tuple[str, bytes]:
    """Return the name and content of a file with captions: captions.csv, or a ZIP of sidecars.

    Args:
        captions: of the pictures; a second one of the same name gets a number.
        kind: one of `KINDS`.
        identity: of the captioner.

    Raises:
        UserError: there is no such kind.
    """
    require(kind in KINDS, f"expected one of {', '.join(KINDS)}, found {kind!r}")
    named = _distinct(captions)
    if kind == "csv":
        with tempfile.TemporaryDirectory(prefix="captions-") as folder:
            path = Path(folder) / "captions.csv"
            with Listing(path, identity) as listing:
                for name, one in named.items():
                    listing.add(path.parent / name, one.state, one.row)
            return path.name, path.read_bytes()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        registries: dict[PurePosixPath, dict[str, str]] = {}
        for name, one in named.items():
            picture, (text, corrected) = PurePosixPath(name), one.sidecar_text
            if kind == "xmp":
                content = xmp.new_file(text, xmp.PERSON if corrected else xmp.WRITER)
                archive.writestr(f"{name}.xmp", content)
                continue
            sidecar = picture.with_name(f"{picture.name if kind == 'txt' else picture.stem}.txt")
            archive.writestr(str(sidecar), f"{text}\n")
            if not corrected:
                known = registries.setdefault(sidecar.parent, {})
                known[sidecar.name] = digest(f"{text}\n".encode())
        for folder_name, digests in registries.items():
            archive.writestr(str(folder_name / REGISTRY), json.dumps(digests, ensure_ascii=False))
    return "captions.zip", file.getvalue()


def _distinct(captions: Sequence[Reviewed]) -> dict[str, Reviewed]:
    named: dict[str, Reviewed] = {}
    for one in captions:
        path, number = PurePosixPath(one.name), 1
        while str(path) in named:
            number += 1
            path = path.with_name(f"{PurePosixPath(one.name).stem} ({number}){path.suffix}")
        named[str(path)] = one
    return named


def save(
    captions: Mapping[Path, Reviewed], folder: Path, kind: str, identity: str, replace: bool
) -> str:
    """Write the captions of an album into it, and return in words what was written.

    Args:
        captions: by picture; all lie in `folder`.
        folder: the album.
        kind: one of `KINDS`.
        identity: of the captioner.
        replace: replace sidecars by people and other programs.

    Raises:
        UserError: they cannot be written.
    """
    require(kind in KINDS, f"expected one of {', '.join(KINDS)}, found {kind!r}")
    if kind == "csv":
        table = folder / "captions.csv"
        with Listing(table, identity) as listing:
            for path, one in captions.items():
                listing.add(path, state_of(path), one.row)
        return f"{len(captions)} captions saved in {table}."
    texts = {path: one.sidecar_text for path, one in captions.items()}
    outcome = write_given(texts, cast(SidecarKind, kind), replace)
    said = [f"{outcome.written} files written beside their pictures in {folder}."]
    if outcome.kept:
        said.append(f"{len(outcome.kept)} are already there and were left as they are.")
    return " ".join([*said, *(f"{reason}." for reason in outcome.left)])
