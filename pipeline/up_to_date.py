"""Skip a stage that is up to date: record its options, inputs and outputs, and compare them."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from features.files import write_json

# A larger file, such as a feature store, is compared by size and modification time: hashing it
# would take longer than some of the stages that read it.
_HASHED_BYTES = 64 * 2**20

# Options that do not change the output of a stage.
_WITHOUT_EFFECT = {
    "force",
    "resume",
    "save_minutes",
    "device",
    "compile",
    "download",
    "mirror",
    "like",
    "preset",
    "dry_run",
    *("prefix_keys", "retry"),  # of shards, which have no stamp
}


class Stamp:
    """The record of a finished stage, `folder/.done/STAGE.json`.

    `options` is the options dataclass of the stage. Paths inside `folder` are stored relative to
    it, for the folder of a run those inside its work directory too, so that the stamp still holds
    when that has moved. `digest` stands for inputs that are too many to record.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        options: Any,
        inputs: Iterable[Path] = (),
        digest: str = "",
    ) -> None:
        self.path = folder / ".done" / f"{stage}.json"
        self._folder = Path(os.path.realpath(folder))
        chosen = {k: v for k, v in asdict(options).items() if k not in _WITHOUT_EFFECT}
        self._options = json.loads(json.dumps(chosen, default=self._name))
        # As versions before 0.3 recorded them, with absolute paths in the work directory of a run.
        self._former_options = json.loads(json.dumps(chosen, default=self._former_name))
        self._inputs = self._states(inputs)
        self._digest = digest

    def holds(self) -> bool:
        """Whether the stage finished with these options and inputs, with its outputs unchanged."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            outputs = self._renamed(record["outputs"])
            return (
                _given(record["options"]) in map(_given, (self._options, self._former_options))
                and self._renamed(record["inputs"]) == self._inputs
                and record.get("digest", "") == self._digest
                and outputs == self._states(self._folder / path for path in outputs)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False  # no record or a damaged one: the stage runs

    def write(self, outputs: Iterable[Path]) -> None:
        """Record the stage as finished; call this last."""
        record = {
            "options": self._options,
            "inputs": self._inputs,
            "outputs": self._states(outputs),
        }
        if self._digest:
            record["digest"] = self._digest
        write_json(self.path, record)

    def _name(self, value: object) -> str:
        if not isinstance(value, Path):
            return str(value)
        path = Path(os.path.realpath(value))  # Path.resolve fails on circular links
        root = self._folder.parents[1] if self._folder.parent.name == "runs" else self._folder
        return os.path.relpath(path, self._folder) if path.is_relative_to(root) else str(path)

    def _former_name(self, value: object) -> str:
        if not isinstance(value, Path):
            return str(value)
        path = Path(os.path.realpath(value))
        return str(path.relative_to(self._folder) if path.is_relative_to(self._folder) else path)

    def _renamed(self, states: dict[str, str]) -> dict[str, str]:
        return {self._name(self._folder / name): state for name, state in states.items()}

    def _states(self, paths: Iterable[Path]) -> dict[str, str]:
        return {self._name(path): _state(path) for path in paths}


def recorded_options(folder: Path, stage: str) -> dict[str, Any] | None:
    """Return the options with which a stage of `folder` finished, or None if there is no record."""
    try:
        return dict(_record(folder, stage)["options"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def changed_inputs(folder: Path, stage: str) -> list[str]:
    """Return the inputs of a stage of `folder` that have changed since it finished.

    One that is recorded with its absolute path, and is not there any more, may only have moved.
    """
    try:
        inputs = _record(folder, stage)["inputs"].items()
        changed = [
            name
            for name, state in inputs
            if _has_changed(folder / name, state)
            and ((folder / name).exists() or not Path(name).is_absolute())
        ]
        return [os.path.realpath(folder / n) if n.startswith("..") else n for n in changed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # no record or a damaged one: the stage will run


def _record(folder: Path, stage: str) -> Any:
    return json.loads((folder / ".done" / f"{stage}.json").read_text(encoding="utf-8"))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without those that are None or empty, as newer ones are by default."""
    return {name: value for name, value in options.items() if value not in (None, [])}


def _has_changed(path: Path, state: str) -> bool:
    try:
        path.stat()
        if path.is_file():
            with path.open("rb") as file:
                file.read(1)
    except FileNotFoundError:
        pass
    except OSError:
        return False  # it cannot be read now, which is no change
    return _state(path) != state


def _state(path: Path) -> str:
    try:
        status = path.stat()
        if not path.is_file() or status.st_size > _HASHED_BYTES:  # a pipe may have no end
            return f"{status.st_size} bytes at {status.st_mtime_ns}"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:  # missing or unreadable; the stage itself reports it
        return str(error.strerror)
