"""A caption beside its picture: in a text file, or in an XMP file for photo software."""

import errno
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from decoder.captioning import xmp
from decoder.captioning.embedded import describes_itself
from decoder.captioning.sidecar_files import (
    Digests,
    LeftAloneError,
    check_writable,
    digest,
    locked,
    read,
    read_registry,
    replace_content,
    write_registry,
)
from decoder.captioning.sidecar_names import Neighbours, is_picture, may_own
from decoder.captioning.writer import CaptionWriter
from decoder.captioning.xml_elements import MAX_BYTES, NotXmpError
from features.errors import UserError, first_few

Kind = Literal["txt", "stem-txt", "xmp"]

_GROUP = 50  # captions written at once, so that the registry is not rewritten for each of them


class Text(NamedTuple):
    """What a sidecar says."""

    text: str
    corrected: bool = False
    """Whether a person wrote it. It replaces a generated one and is not taken for one later."""


class _Task(NamedTuple):
    """A caption to write."""

    picture: Path
    sidecar: Path
    text: Text

    @property
    def content(self) -> bytes:
        """The caption as a text file."""
        return f"{self.text.text}\n".encode()


@dataclass
class Outcome:
    """What became of the sidecars."""

    written: list[Path] = field(default_factory=list)
    """The pictures whose sidecars were written."""
    kept: dict[Path, Path] = field(default_factory=dict)
    """The files that hold a caption already, by picture: its sidecar, or the picture itself."""
    left: dict[Path, str] = field(default_factory=dict)
    """The sidecars left alone, and why, by picture."""

    def leave(self, picture: Path, sidecar: Path, error: Exception) -> None:
        """Record why a sidecar is left alone; raise the error again if the disk is full."""
        reason = str(error)
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise error
            reason = error.strerror or reason
        self.left[picture] = f"{sidecar} is left alone: {reason}"


def write_sidecars(writer: CaptionWriter, paths: Sequence[Path], kind: Kind, force: bool) -> int:
    """Write the captions that are missing or outdated, and return the exit status.

    Args:
        writer: captions the pictures.
        paths: the pictures.
        kind: txt for photo.jpg.txt, stem-txt for photo.txt, xmp for photo.jpg.xmp or photo.xmp.
            A picture that describes itself gets no XMP file.
        force: replace captions that exist, including those by people and other programs.

    Returns:
        1 if a sidecar was left alone because it cannot be read or written safely, otherwise 0.

    Raises:
        UserError: the disk is full, or see `CaptionWriter.captions`.
    """
    outcome = Outcome()
    missing = _missing(dict.fromkeys(paths, False), kind, force, outcome)
    waiting: list[_Task] = []
    empty: list[str] = []

    def write_waiting() -> None:
        tasks = waiting.copy()
        waiting.clear()
        _write(tasks, kind, force, outcome)

    try:
        for path, (best, *_) in writer.captions(list(missing), len(outcome.kept)):
            if best.caption:
                waiting.append(_Task(path, missing[path], Text(best.hedged)))
            else:
                empty.append(str(path))
            if len(waiting) == _GROUP:
                write_waiting()
    finally:  # neither an error nor Ctrl-C loses captions
        write_waiting()
    _report(outcome, empty, kind)
    return 1 if outcome.left else 0


def write_given(texts: Mapping[Path, Text], kind: Kind, force: bool) -> Outcome:
    """Write texts that are known already, by picture; see `write_sidecars`."""
    outcome = Outcome()
    corrected = {picture: text.corrected for picture, text in texts.items() if text.text}
    missing = _missing(corrected, kind, force, outcome)
    tasks = [_Task(picture, sidecar, texts[picture]) for picture, sidecar in missing.items()]
    _write(tasks, kind, force, outcome)
    return outcome


def _write(tasks: Sequence[_Task], kind: Kind, force: bool, outcome: Outcome) -> None:
    by_folder: dict[Path, list[_Task]] = defaultdict(list)
    for task in tasks:
        by_folder[task.sidecar.parent].append(task)
    for folder, group in by_folder.items():
        try:
            with locked(folder):
                (_write_xmp if kind == "xmp" else _write_texts)(group, force, outcome)
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error.strerror}") from error


def _missing(
    corrected: Mapping[Path, bool], kind: Kind, force: bool, outcome: Outcome
) -> dict[Path, Path]:
    """Return the sidecars to write, by picture; `corrected` says whose text a person wrote."""
    neighbours = Neighbours()
    registries: dict[Path, Digests] = {}
    missing: dict[Path, Path] = {}
    for picture, by_person in corrected.items():
        sidecar = picture
        try:
            if kind == "xmp":
                sidecar, other = _xmp_of(picture, neighbours)
                wanted = _may_describe(_read_xmp(sidecar), picture, sidecar, force, by_person)
                if other and not force and (file := _read_xmp(other)):
                    wanted = wanted and (not file.described or file.generated)
                if wanted and not force and describes_itself(picture):
                    sidecar, wanted = picture, False
            else:
                sidecar = _text_of(picture, kind, neighbours)
                folder = sidecar.parent
                if folder not in registries:
                    registries[folder] = read_registry(folder)
                wanted = _may_write_text(picture, sidecar, force, registries[folder], by_person)
            if wanted:
                check_writable(sidecar)
                missing[picture] = sidecar
            else:
                outcome.kept[picture] = sidecar
        except (LeftAloneError, OSError) as error:
            outcome.leave(picture, sidecar, error)
    return missing


def _report(outcome: Outcome, empty: Sequence[str], kind: Kind) -> None:
    inside = [str(picture) for picture, each in outcome.kept.items() if picture == each]
    beside = len(outcome.kept) - len(inside)
    print(
        f"caption: {len(outcome.written)} sidecars written, {beside} already there"
        + (
            f"; {len(inside)} pictures have a description inside: {first_few(inside)}; --force "
            "writes sidecars for them too"
            if inside
            else ""
        )
        + (f"; no sidecar for {len(empty)} empty captions: {first_few(empty)}" if empty else "")
    )
    if old := [str(picture) for picture, each in outcome.kept.items() if is_older(each, picture)]:
        what = "descriptions" if kind == "xmp" else "sidecars"
        print(
            f"caption: {len(old)} of these are older than their pictures and may not be ours: "
            f"{first_few(old)}; --force replaces all {what}",
            file=sys.stderr,
        )
    for reason in outcome.left.values():
        print(f"error: {reason}", file=sys.stderr)


def is_older(sidecar: Path, picture: Path) -> bool:
    """Whether a sidecar was written before its picture was last changed."""
    try:
        return sidecar.stat().st_mtime_ns < picture.stat().st_mtime_ns
    except OSError:
        return False


# Text files


def _text_of(picture: Path, kind: Kind, neighbours: Neighbours) -> Path:
    """Return photo.jpg.txt or photo.txt; the second must not belong to photo.png too."""
    if kind == "txt":
        return picture.with_name(f"{picture.name}.txt")
    if rivals := [name for name in neighbours.of_stem(picture) if is_picture(name)]:
        raise LeftAloneError(
            f"{picture.stem}.txt would be the caption of {first_few(rivals)} too; rename one of "
            "them, or use --sidecar txt"
        )
    return picture.with_name(f"{picture.stem}.txt")


def _may_write_text(
    picture: Path, sidecar: Path, force: bool, generated: Digests, corrected: bool
) -> bool:
    """Whether there is no text file yet, or one of ours that is corrected or outdated."""
    content = read(sidecar)
    if content is None or force:
        return True
    outdated = corrected or is_older(sidecar, picture)
    return outdated and digest(content) in generated.get(sidecar.name, ())


def _write_texts(tasks: Sequence[_Task], force: bool, outcome: Outcome) -> None:
    """Write text files of one folder.

    The registry knows a generated text before it is written, and the text that it replaces until
    then, so that neither is ever taken for one by a person.
    """
    folder = tasks[0].sidecar.parent
    chosen: list[_Task] = []
    try:
        known = read_registry(folder)
        both = known.copy()
        for task in tasks:
            picture, sidecar, (_, corrected) = task
            if not _may_write_text(picture, sidecar, force, known, corrected):
                outcome.kept[picture] = sidecar
                continue
            chosen.append(task)
            if not corrected:
                both[sidecar.name] = known.get(sidecar.name, set()) | {digest(task.content)}
        if both != known:
            write_registry(folder, both)
    except (LeftAloneError, OSError) as error:
        for task in tasks:
            outcome.leave(task.picture, task.sidecar, error)
        return
    for task in chosen:
        try:
            replace_content(task.sidecar, task.content)
        except OSError as error:
            outcome.leave(task.picture, task.sidecar, error)
            continue
        outcome.written.append(task.picture)
        known.pop(task.sidecar.name, None)
        if not task.text.corrected:
            known[task.sidecar.name] = {digest(task.content)}
    if known != both:
        with suppress(OSError):  # both texts of a file may stay registered
            write_registry(folder, known)


# XMP files


def _xmp_of(picture: Path, neighbours: Neighbours) -> tuple[Path, Path | None]:
    """Return the XMP file to edit or create, and another one that is about the picture too.

    photo.jpg.xmp (darktable, digiKam) belongs to photo.jpg. photo.xmp (Adobe) may belong to
    photo.jpg, to photo.raw or to both.
    """
    full = neighbours.file(picture, f"{picture.name}.xmp")
    short = neighbours.file(picture, f"{picture.stem}.xmp")
    new = picture.with_name(f"{picture.name}.xmp")
    if short is None:
        return full or new, None
    if extension := _extension(short):
        belongs = extension == picture.suffix.lower().removeprefix(".")
    else:
        rivals = [name for name in neighbours.of_stem(picture) if may_own(name)]
        belongs = not rivals
        if rivals and full is None:
            raise LeftAloneError(
                f"{short.name} may be about {first_few(rivals)}; rename it to {new.name}, or to "
                "the name of the other file and .xmp"
            )
    if full:
        return full, short if belongs else None
    return short if belongs else new, None


def _extension(sidecar: Path) -> str:
    file = _read_xmp(sidecar)
    return file.extension if file else ""


def _read_xmp(sidecar: Path) -> xmp.Xmp | None:
    """Read an XMP file; None if there is none."""
    try:
        content = read(sidecar, MAX_BYTES + 1)
        return None if content is None else xmp.Xmp(content)
    except (NotXmpError, LeftAloneError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LeftAloneError(f"{sidecar.name}: {reason}") from error


def _may_describe(
    file: xmp.Xmp | None, picture: Path, sidecar: Path, force: bool, corrected: bool
) -> bool:
    """Whether there is no description yet, or one of ours that is corrected or outdated."""
    if file is None or force:
        return True
    if file.described:
        return file.generated and (corrected or is_older(sidecar, picture))
    if file.other_writer:
        raise LeftAloneError(
            f"it has no description but names {file.other_writer!r:.60} as its writer; --force "
            "replaces the name"
        )
    return True


def _write_xmp(tasks: Sequence[_Task], force: bool, outcome: Outcome) -> None:
    """Set descriptions in XMP files, read again because other programs may have changed them."""
    for picture, sidecar, (text, corrected) in tasks:
        try:
            file = _read_xmp(sidecar)
            if not _may_describe(file, picture, sidecar, force, corrected):
                outcome.kept[picture] = sidecar
                continue
            author = xmp.PERSON if corrected else xmp.WRITER
            content = file.describe(text, force, author) if file else xmp.new_file(text, author)
            replace_content(sidecar, content)
            outcome.written.append(picture)
        except (LeftAloneError, NotXmpError, OSError) as error:
            outcome.leave(picture, sidecar, error)
