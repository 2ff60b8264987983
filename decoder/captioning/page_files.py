"""The captions of the page as files: a table, or a text or XMP file for each picture.

They are what the command line writes (see `listing` and `sidecars`), and it reads them again: a
table counts its pictures as done, and a text that a person corrected is not replaced.
"""

import io
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast, get_args

from decoder.captioning import xmp
from decoder.captioning.files import check_names
from decoder.captioning.listing import Listing, State, state_of
from decoder.captioning.sidecar_files import digest, registry_of
from decoder.captioning.sidecars import Kind as SidecarKind
from decoder.captioning.sidecars import Text, write_given
from decoder.captioning.writer import hedge
from features.errors import UserError, counted, require
from features.folders import real_path
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
                _text(one["text"]),
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


def _text(text: Any) -> str:
    """Return a text in one line, without characters that XML or UTF-8 cannot hold."""
    plain = re.sub(rf"{CONTROL.pattern}|[\ufffe\uffff]", " ", str(text))
    return " ".join(plain.encode(errors="replace").decode().split())


def _name(text: Any) -> str:
    parts = [p for p in PurePosixPath(str(text)).parts if p not in ("/", "..", ".")]
    name = re.sub(rf"{CONTROL.pattern}|[\\\ud800-\udfff]", "_", "/".join(parts))
    return name or "picture"


def download(captions: Sequence[Reviewed], kind: str, identity: str) -> tuple[str, bytes]:
    """Return the name and content of a file with captions: captions.csv, or a ZIP of sidecars.

    Args:
        captions: of the pictures; a second one of the same name gets a number.
        kind: one of `KINDS`.
        identity: of the captioner.

    Raises:
        UserError: there is no such kind, or a text file would belong to two pictures.
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
        owners: dict[PurePosixPath, str] = {}
        registries: dict[PurePosixPath, dict[str, set[str]]] = {}
        for name, one in named.items():
            picture, (text, corrected) = PurePosixPath(name), one.sidecar_text
            if kind == "xmp":
                content = xmp.new_file(text, xmp.PERSON if corrected else xmp.WRITER)
                archive.writestr(f"{name}.xmp", content)
                continue
            sidecar = picture.with_name(f"{picture.name if kind == 'txt' else picture.stem}.txt")
            owner = owners.setdefault(sidecar, name)
            require(
                owner == name,
                f"{sidecar} would be the caption of both {owner} and {name}; remove one of them, "
                "or choose text files such as dog.jpg.txt",
            )
            archive.writestr(str(sidecar), f"{text}\n")
            if not corrected:
                known = registries.setdefault(sidecar.parent, {})
                known[sidecar.name] = {digest(f"{text}\n".encode())}
        for place, digests in registries.items():
            content = registry_of(digests)
            # A name of its own, so that unpacking replaces no record of earlier texts.
            registry = REGISTRY.replace(".json", f"-{digest(content)[:12]}.json")
            archive.writestr(str(place / registry), content)
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


class Saved(NamedTuple):
    """What was written into an album."""

    said: str
    """In words."""
    pictures: list[Path]
    """Those whose captions were written."""


def save(
    captions: Mapping[Path, Reviewed], folder: Path, kind: str, identity: str, replace: bool
) -> Saved:
    """Write the captions of an album into it, and return what was written.

    A generated text replaces no row of a table, which a person may have corrected.

    Args:
        captions: by picture; all lie in `folder`.
        folder: the album.
        kind: one of `KINDS`.
        identity: of the captioner.
        replace: replace any row of a table, and sidecars by people and other programs.

    Raises:
        UserError: they cannot be written.
    """
    require(kind in KINDS, f"expected one of {', '.join(KINDS)}, found {kind!r}")
    if kind == "csv":
        table = folder / "captions.csv"
        check_names(map(Path, map(real_path, captions)), "a table", "save text or XMP files")
        written = []
        listing = Listing(table, identity)
        listing.advice = "move the file elsewhere, or save text or XMP files"
        with listing:
            for path, one in captions.items():
                row = listing.find(path)
                if replace or one.corrected or row is None or row.error:
                    listing.add(path, state_of(path), one.row)
                    written.append(path)
        said = [f"{counted(len(written), 'caption')} saved in {table}."]
        return Saved(_with_left(said, len(captions) - len(written)), written)
    texts = {path: one.sidecar_text for path, one in captions.items()}
    outcome = write_given(texts, cast(SidecarKind, kind), replace)
    files = counted(len(outcome.written), "file")
    said = [f"{files} saved in {folder}, beside the pictures."]
    said += [f"{reason}." for reason in outcome.left.values()]
    return Saved(_with_left(said, len(outcome.kept)), outcome.written)


def _with_left(said: list[str], count: int) -> str:
    left = "1 is already there and was left as it is."
    if count > 1:
        left = f"{count} are already there and were left as they are."
    return " ".join([*said, left] if count else said)
