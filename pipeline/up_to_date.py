"""Work already done and unchanged is skipped: what a stage read, with which options, and wrote."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from features.files import write_json

# A larger file (a feature store) is known by its size and time; hashing it would cost more than
# some of the stages that read it.
_HASHED_BYTES = 64 * 2**20

# Options that do not change what a stage writes.
_WITHOUT_EFFECT = {
    "force",
    "resume",
    "save_minutes",
    "device",
    "compile",
    "download",
    "mirror",
    "like",
    "dry_run",
}


class Stamp:
    """The record of one finished stage, `folder/.done/STAGE.json`.

    `options` is the stage's options dataclass. Paths inside `folder` are recorded relative to it,
    so that the stamp still holds when the folder has moved.
    """

    def __init__(self, folder: Path, stage: str, options: Any, inputs: Iterable[Path] = ()) -> None:
        self.path = folder / ".done" / f"{stage}.json"
        self._folder = Path(os.path.realpath(folder))
        chosen = {k: v for k, v in asdict(options).items() if k not in _WITHOUT_EFFECT}
        self._options = json.loads(json.dumps(chosen, default=self._name))
        self._inputs = self._states(inputs)

    def holds(self) -> bool:
        """Whether the stage was finished with these options and inputs and its outputs stand."""
        try:
            record = json.loads(self.path.read_text())
            return (
                record["options"] == self._options
                and record["inputs"] == self._inputs
                and record["outputs"]
                == self._states(self._folder / path for path in record["outputs"])
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False  # no record, or none that can be trusted: the stage runs

    def write(self, outputs: Iterable[Path]) -> None:
        """Record the stage as finished; called last."""
        record = {
            "options": self._options,
            "inputs": self._inputs,
            "outputs": self._states(outputs),
        }
        write_json(self.path, record)

    def _name(self, value: object) -> str:
        if not isinstance(value, Path):
            return str(value)
        path = Path(os.path.realpath(value))  # Path.resolve fails on links that lead in a circle
        return str(path.relative_to(self._folder) if path.is_relative_to(self._folder) else path)

    def _states(self, paths: Iterable[Path]) -> dict[str, str]:
        return {self._name(path): _state(path) for path in paths}


def recorded_options(folder: Path, stage: str) -> dict[str, Any] | None:
    """Return the options with which a stage of `folder` was finished, None if that is not known."""
    try:
        return dict(json.loads((folder / ".done" / f"{stage}.json").read_text())["options"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def changed_inputs(folder: Path, stage: str) -> list[str]:
    """Return the files that changed since the stage of `folder` that made something from them."""
    try:
        record = json.loads((folder / ".done" / f"{stage}.json").read_text())
        inputs = record["inputs"].items()
        return [name for name, state in inputs if _state(folder / name) != state]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # no record, or none that can be trusted: the stage will run


def _state(path: Path) -> str:
    try:
        status = path.stat()
        if path.is_dir() or status.st_size > _HASHED_BYTES:
            return f"{status.st_size} bytes at {status.st_mtime_ns}"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:  # missing or unreadable, which is the stage's business to tell
        return str(error.strerror)
