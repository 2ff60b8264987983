"""Where results are written: names that two inputs do not share, and files that are not lost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.errors import UserError


def variant(captions: Path, split: str) -> str:
    """Return what names the files that belong to a file of captions: X for captions_X.json.

    For NAME.json it is NAME_SPLIT, so that val.json and captions_val.json do not share files.
    """
    rest = _after_prefix(captions, "captions_", ".json")
    return rest or f"{_whole_name(captions, '.json')}_{split}"


def scores_path(results: Path, split: str) -> Path:
    """Return the default path of the scores of `results`, in the same folder.

    captions_X.json has scores_X.json: those of captions_val_xe.json (before REINFORCE) must not
    overwrite scores_val.json. NAME.json has scores_NAME_SPLIT.json.
    """
    return results.with_name(f"scores_{variant(results, split)}.json")


def attention_path(captions: Path, split: str) -> Path:
    """Return the path of the attention saved with `captions`, in the same folder.

    captions_X.json has attention_X.npz, NAME.json has attention_NAME_SPLIT.npz.
    """
    return captions.with_name(f"attention_{variant(captions, split)}.npz")


def retrieval_path(ranking: Path) -> Path:
    """Return the default path of the recall of `ranking`, in the same folder.

    ranking_X.npz has retrieval_X.json, NAME.npz has retrieval_NAME.json.
    """
    rest = _after_prefix(ranking, "ranking_", ".npz")
    return ranking.with_name(f"retrieval_{rest or _whole_name(ranking, '.npz')}.json")


def check_out(out: Path, inputs: Mapping[str, Path], chosen: bool, key: str) -> None:
    """Check that writing `out` loses nothing but an earlier result of the same inputs.

    Args:
        out: the file to write.
        inputs: the files it is computed from, by the name under which `out` records them.
        chosen: whether `out` is the user's choice; then it may hold the result of other inputs.
        key: an entry that every file of this kind has.

    Raises:
        UserError: `out` is one of the inputs, a file of another kind, or the result of inputs with
            other names.
    """
    if not out.is_file():
        return
    for name, path in inputs.items():
        if path.exists() and out.samefile(path):
            raise UserError(f"{out} is the file of --{name}; choose another --out")
    record, damaged = _record(out)
    if key not in record and (chosen or not damaged):
        raise UserError(
            f"{out} exists and was not written by this command; choose another --out, or delete it"
        )
    if chosen:
        return
    for name, path in inputs.items():
        before = record.get(name)
        if isinstance(before, str) and not _is_same(Path(before), path):
            raise UserError(
                f"{out} belongs to --{name} {before}, not to {path}; choose another --out, or "
                "delete it"
            )


def _after_prefix(path: Path, prefix: str, suffix: str) -> str:
    """Return what follows the prefix in PREFIXnameSUFFIX, "" if the name is not of this form."""
    has_form = path.suffix == suffix and path.stem.startswith(prefix)
    return path.stem.removeprefix(prefix) if has_form else ""


def _whole_name(path: Path, suffix: str) -> str:
    return path.stem if path.suffix == suffix else path.name


def _record(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the content of a file, empty if it is no object of JSON, and whether it is no JSON."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}, True
    return content if isinstance(content, dict) else {}, False


def _is_same(before: Path, path: Path) -> bool:
    """Whether a recorded path names the file `path`, which may have been moved with its folder."""
    if before.name == path.name:
        return True
    beside = path.with_name(before.name)  # another spelling on a disk that ignores case
    return beside.exists() and beside.samefile(path)
