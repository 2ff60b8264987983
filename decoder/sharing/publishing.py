"""Putting a finished captioner into its folder, beside other files that somebody keeps there."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from features.commands import EXPORT
from features.errors import UserError
from features.files import read_json
from pipeline.work import RunFolder

# Files that earlier versions, which kept no record of them, wrote into the folder.
_UNRECORDED = (
    *("config.json", "vocabulary.json", "best.safetensors", "document_frequencies.safetensors"),
    *("expectation.safetensors", "embedding.safetensors", "onnx/cnn.onnx", "onnx/encode.onnx"),
    *("onnx/step.onnx", "onnx/words.json", "onnx/README.md"),
)
_OLD_CARD = "MODEL_CARD.md"  # until version 0.2


def check_destination(out: Path, run: RunFolder) -> None:
    """Raise UserError unless `out` is free, empty, or a captioner that may be replaced.

    Hidden files, such as those of git, do not count.
    """
    destination, source = out.resolve(), run.path.resolve()
    if destination == source or destination in source.parents:
        raise UserError(
            f"--out {out} is the folder of the run or contains it; choose another folder"
        )
    if not out.exists() or RunFolder(out).captioner.is_file():
        return
    if not out.is_dir() or any(not file.name.startswith(".") for file in out.iterdir()):
        raise UserError(
            f"--out {out}: expected a new or empty folder, or a captioner to replace, found "
            f"{'other files' if out.is_dir() else 'a file'}; choose another folder"
        )


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder, by its path there, for captioner.json."""
    return {name: _sha256(folder / name) for name in _names(folder)}


def _names(folder: Path) -> list[str]:
    """Return the paths of the files in a folder, relative to it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [file.relative_to(folder).as_posix() for file in files]


def publish(new: Path, out: Path) -> None:
    """Move the files of a finished captioner from `new` to the folder `out`, captioner.json last.

    Files of the captioner that was there are replaced or removed. Everything else stays: a file
    that somebody put there or edited is kept under another name, with a message, if the captioner
    has a file of that name.
    """
    if not out.exists():
        new.rename(out)
        return
    recorded = _recorded(RunFolder(out))
    last = RunFolder(new).captioner.name
    names = [name for name in _names(new) if name != last]
    for name in dict.fromkeys((*names, *recorded)):
        old = out / name
        if name == last or not (old.exists() or old.is_symlink()):
            continue
        ours = name in recorded and old.is_file() and recorded[name] in (None, _sha256(old))
        if ours and name not in names:
            old.unlink()
            with suppress(OSError):  # unless it was the last file of onnx/
                old.parent.rmdir()
        elif not ours and name in names:
            kept = next(path for path in _other_names(old) if not path.exists())
            old.rename(kept)
            print(f"export: {old} is not as an export wrote it; it is kept as {kept.name}")
    for name in (*names, last):
        (out / name).parent.mkdir(exist_ok=True)
        (new / name).replace(out / name)
    if (out / _OLD_CARD).exists():
        print(
            f"export: {out / _OLD_CARD} is the card of an earlier export; README.md is the new one"
        )


def _recorded(old: RunFolder) -> dict[str, str | None]:
    """Return the files of the captioner in a folder with their hashes, None where not recorded."""
    if not old.captioner.is_file():
        return {}
    with suppress(UserError):  # a broken captioner.json is replaced
        content = read_json(old.captioner, EXPORT)
        files = content.get("files") if isinstance(content, dict) else None
        if isinstance(files, dict):
            return {str(name): str(value) for name, value in files.items() if _is_inside(str(name))}
    return dict.fromkeys(_UNRECORDED)


def _is_inside(name: str) -> bool:
    """Whether a recorded name, which anybody may have edited, stays inside the folder."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def _other_names(file: Path) -> Iterator[Path]:
    """Yield names under which a file may be kept: README.old.md, README.2.old.md, ..."""
    number = 1
    while True:
        middle = ".old" if number == 1 else f".{number}.old"
        yield file.with_name(f"{file.stem}{middle}{file.suffix}")
        number += 1


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
