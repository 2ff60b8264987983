"""The outputs of shards: all files of a shard or none, and never made twice at the same time.

    OUT/NAME.json                 the record of the shard NAME: of what and how its outputs were
                                  made, their sizes and SHA-256; it appears first
    OUT/NAME.jsonl, OUT/NAME.h5   its outputs; the last of them appears last
    OUT/.claims/                  claims of the shards that are being made

A shard is done when its record is there, of the wanted kind, and its outputs in the recorded sizes.
Whatever stops a process, a shard that it has not finished is made again from its start. Any number
of processes, on any number of machines, may work on the same shards: each makes those that are
neither done nor claimed.
"""

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from features.errors import UserError
from features.output_places import CLAIMS, Busy, OutputPlace, output_place
from features.progress import Progress
from features.remote_files import shown
from features.scratch import scratch_folder
from features.shards import Shard, ShardError
from features.store import differences

log = logging.getLogger(__name__)

_REQUESTS = 16  # at the same time

Make = Callable[[Shard, Path], Mapping[str, Any]]
"""Writes the outputs of a shard to a folder, and returns facts for its record; or ShardError.

Of these, "failed" is the number of pictures that could not be read, and "passing" that of those
whose reasons may pass.
"""


class Outcome(NamedTuple):
    """What became of a shard."""

    shard: Shard
    state: Literal["made", "done", "busy", "broken"]
    """Made now, done before, being made by another process, or impossible to make."""
    facts: Mapping[str, Any] = {}
    """If it was made: what `Make` returned, the seconds that took, and the bytes of the outputs."""
    reason: str = ""
    """Why it is broken."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of one command at one place, as one run of it makes them.

    Attributes:
        location: a local folder or a URL.
        command: the command, such as "pipeline.extract".
        kind: all that the outputs depend on beside the shard, as JSON-able values.
        suffixes: of the outputs of a shard; the last is published last.
        owner: a name of the run; its processes share their claims.
        retry: whether to make shards again of which a picture failed for a reason that may pass.
    """

    location: str
    command: str
    kind: Mapping[str, Any]
    suffixes: tuple[str, ...]
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    retry: bool = False

    @cached_property
    def place(self) -> OutputPlace:
        """Where they are; UserError if it cannot be written."""
        return output_place(self.location)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "place"}

    def done(self, shard: Shard, force: bool = False) -> Mapping[str, Any] | None:
        """Return the record of a shard if it is done; with `force`, by this owner.

        Raises:
            UserError: the place holds outputs of another command or kind, or cannot be read.
            ShardError: the outputs there are of another shard with the same name, or it is unknown
                whether they are.
        """
        try:
            record = json.loads(self.place.read(f"{shard.name}.json") or b"null")
            command, kind, files = record["command"], record["kind"], record["files"]
            sizes = {str(name): int(file["bytes"]) for name, file in files.items()}
            source = str(record["source"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        where = f"{shown(self.location)}/{shard.name}"
        if command != self.command:
            raise UserError(f"{where}.json was written by {command}; choose another --out")
        if force and record.get("owner") != self.owner:
            return None
        if differing := differences(_as_json(self.kind), kind):
            raise UserError(
                f"{where}.* are other outputs than requested: {differing}; choose another --out, "
                "or --force to make them again"
            )
        if self.retry and record.get("passing") and record.get("owner") != self.owner:
            return None
        if set(sizes) != {f"{shard.name}{suffix}" for suffix in self.suffixes}:
            return None
        if any(self.place.size(name) != size for name, size in sizes.items()):
            return None
        if source == shown(shard.source):
            return None if _changed(shard, record) else record
        digest = record.get("source_sha256")
        if digest is None or shard.sha256() != digest:
            raise ShardError(
                f"{where}.* were made of {source}, which may be another shard; choose another "
                "--out, or --force to make them again"
            )
        return record  # it has moved

    def all_done(self, shards: Sequence[Shard], force: bool = False) -> set[str]:
        """Return the names of the shards that are done; see `done`."""

        def is_done(shard: Shard) -> bool:
            try:
                return self.done(shard, force) is not None
            except ShardError:  # it will be reported when its turn comes
                return False

        with ThreadPoolExecutor(_REQUESTS) as threads:
            results = threads.map(is_done, shards)
            return {shard.name for shard, done in zip(shards, results, strict=True) if done}

    def publish(
        self, shard: Shard, source: Mapping[str, Any], folder: Path, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Move the outputs of a shard from a local folder to their place; return its record.

        Args:
            shard: the shard.
            source: what `described` returns of it.
            folder: where the outputs are.
            facts: what else to record.

        Raises:
            UserError: they cannot be written.
        """
        names = [f"{shard.name}{suffix}" for suffix in self.suffixes]
        record = {
            "command": self.command,
            "owner": self.owner,
            **source,
            "files": {name: _stated(folder / name) for name in names},
            **facts,
            "kind": _as_json(self.kind),
        }
        self.place.remove(names[-1])  # or an old one would stand beside the new record
        # The record comes first, so whatever has no record is not ours.
        text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
        self.place.write(f"{shard.name}.json", text.encode())
        for name in names:
            self.place.put(folder / name, name)
        return record

    def check_free(self, shard: Shard) -> None:
        """Raise ShardError if a file of another program is where an output of a shard goes."""
        written = self.place.read(f"{shard.name}.json")
        if written is not None:
            names = [] if _is_record(written) else [f"{shard.name}.json"]
        else:
            names = [f"{shard.name}{suffix}" for suffix in self.suffixes]
            names = [name for name in names if self.place.size(name) is not None]
        if names:
            raise ShardError(
                f"its output {shown(self.location)}/{names[0]} is there already, but was not "
                "written by this project; move that file, or choose another --out"
            )

    def wrong(self, shard: Shard) -> str:
        """Return what is wrong with the outputs of a shard: their hashes are compared.

        Raises:
            UserError: see `done`.
        """
        try:
            record = self.done(shard)
        except ShardError as error:
            return str(error)
        if record is None:
            return "it is not done"
        with scratch_folder() as folder:
            for name, stated in record["files"].items():
                self.place.fetch(name, folder / name)
                if _stated(folder / name) != stated:
                    return (
                        f"{name} has another SHA-256 than recorded; delete it, and the same "
                        "command without --verify makes the shard again"
                    )
                (folder / name).unlink()
        return ""


def described(shard: Shard) -> dict[str, Any]:
    """Return what a record holds of the shard itself, to recognise it later."""
    stamp = shard.stamp()
    return {
        "source": shown(shard.source),
        "source_bytes": stamp.bytes,
        "source_version": stamp.version,
        "source_modified": shard.modified(),
        "source_sha256": shard.sha256(),
    }


def _changed(shard: Shard, record: Mapping[str, Any]) -> bool:
    """Whether a shard at the recorded place has another content than recorded.

    One that is not there any more has not, nor has a remote folder: to list it would take too long.
    """

    def differs(name: str, now: object) -> bool:
        then = record.get(f"source_{name}")
        return now is not None and then is not None and now != then

    stamp = shard.stamp()
    if differs("bytes", stamp.bytes) or differs("version", stamp.version):
        return True
    if shard.suffix and shard.modified() == record.get("source_modified"):
        return False
    return differs("sha256", shard.sha256())


def make_shard(shard: Shard, outputs: Outputs, make: Make, force: bool = False) -> Outcome:
    """Make and publish the outputs of a shard, unless it is done or another process makes it.

    Args:
        shard: the shard.
        outputs: where they go.
        make: writes them to a temporary folder, as NAME and each of the suffixes.
        force: make them even if they are there.

    Raises:
        UserError: the outputs cannot be written, or `make` says that no shard can be made.
    """
    try:
        if outputs.done(shard, force):
            return Outcome(shard, "done")
        with outputs.place.claim(shard.name, outputs.owner) as check:
            if outputs.done(shard, force):  # another process has just made it
                return Outcome(shard, "done")
            outputs.check_free(shard)
            with scratch_folder() as folder, ThreadPoolExecutor(1) as thread:
                start = time.perf_counter()
                source = thread.submit(described, shard)  # it reads the shard, which takes a while
                facts = make(shard, folder)
                seconds = round(time.perf_counter() - start, 3)
                check()
                if outputs.done(shard, force):  # one with the same claim was faster
                    return Outcome(shard, "done")
                if outputs.retry and not force and not _better(facts, outputs, shard):
                    log.info(f"{shard}: no more pictures can be read now; its outputs are kept")
                    return Outcome(shard, "done")
                facts = {**facts, "seconds": seconds}
                record = outputs.publish(shard, source.result(), folder, facts)
        # Not the whole record, as there may be a million of them.
        size = sum(file["bytes"] for file in record["files"].values())
        return Outcome(shard, "made", {**facts, "bytes": size})
    except Busy:
        return Outcome(shard, "busy")
    except ShardError as error:
        return Outcome(shard, "broken", reason=str(error))
    except MemoryError:
        return Outcome(shard, "broken", reason="it needs more memory than there is")


def _better(facts: Mapping[str, Any], outputs: Outputs, shard: Shard) -> bool:
    """Whether fewer pictures failed than in outputs that are there, or fewer that may pass."""
    before = replace(outputs, retry=False).done(shard)
    if before is None:
        return True
    now, then = ((of.get("failed", 0), of.get("passing", 0)) for of in (facts, before))
    return now < then


def make_shards(
    shards: Iterable[Shard], outputs: Outputs, make: Make, what: str, force: bool = False
) -> list[Outcome]:
    """Make the outputs of shards one after another, as `make_shard` does.

    At the end it waits for the shards that other processes are making, and makes those that they
    did not finish.

    Args:
        shards: the shards.
        outputs: where the outputs go.
        make: see `make_shard`.
        what: the name of the task for its progress, such as "extract".
        force: make them even if they are there.

    Returns:
        What became of each shard; none is busy.

    Raises:
        UserError: see `make_shard`; what was published is kept.
    """
    outcomes: list[Outcome] = []
    waiting = list(shards)
    with Progress(what, len(waiting), "shard") as progress:
        announced = False
        while waiting:
            busy = []
            for shard in waiting:
                outcome = make_shard(shard, outputs, make, force)
                if outcome.state == "busy":
                    busy.append(shard)
                    continue
                outcomes.append(outcome)
                progress.update()
            if busy and not announced:
                log.info(f"{what}: waiting for {len(busy)} shards that other processes are making")
                announced = True
            if len(busy) == len(waiting):
                time.sleep(outputs.place.poll_seconds)
            waiting = busy
    return outcomes


def unfinished(folder: Path, command: str, last: str) -> list[str]:
    """Return the shards in a local folder that were begun but are not done, ascending.

    They have a claim, a record or captions, but not their last output: they are being made, their
    process was stopped, or they are broken.

    Args:
        folder: the folder of the outputs.
        command: the command that makes them; shards with a record of another are left out.
        last: the suffix of the output that appears last.
    """
    claims = {path.name for path in (folder / CLAIMS).glob("*")}
    begun = {name.removesuffix(".lock").removesuffix(".owner") for name in claims}
    begun |= {path.stem for suffix in ("json", "jsonl") for path in folder.glob(f"*.{suffix}")}
    missing = (name for name in sorted(begun) if not (folder / f"{name}{last}").exists())
    return [name for name in missing if _may_be_of(command, folder / f"{name}.json")]


def _may_be_of(command: str, record: Path) -> bool:
    """Whether a record is one of a command, or is not there yet."""
    try:
        return bool(json.loads(record.read_bytes())["command"] == command)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _stated(file: Path) -> dict[str, Any]:
    """Return the size and hash of a file for a record."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _is_record(content: bytes) -> bool:
    """Whether a file is a record of outputs, perhaps of another command or version."""
    try:
        return isinstance(json.loads(content)["command"], str)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
