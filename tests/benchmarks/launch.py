"""Trainings in folders and processes of their own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.work import WorkFolder


def link_data(work: Path, folder: Path) -> None:
    """Make `folder` a work directory with the features and captions of `work`, and no runs."""
    source, target = WorkFolder(work), WorkFolder(folder)
    target.captions.symlink_to(source.captions.resolve())
    target.vocabulary.symlink_to(source.vocabulary.resolve())
    target.features.symlink_to(source.features.resolve())


def train_command(work: Path, launcher: Sequence[str] = ()) -> list[str]:
    """Return the command that trains the run "run" in `work`; see `train_in_subprocess`."""
    return [sys.executable, "-m", *launcher, "decoder.train", "--work", str(work), "--run", "run"]


def train_in_subprocess(
    work: Path,
    options: Sequence[str],
    launcher: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[list[dict[str, Any]], float]:
    """Train in a new folder and a new process.

    Args:
        work: work directory with the features and captions.
        options: of decoder.train.
        launcher: a module that starts decoder.train, such as torchrun, and its options.
        environment: variables to add to those of this process.

    Returns:
        The lines of metrics.jsonl, and the peak resident memory of the process in MB.
    """
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        folder = Path(scratch)
        link_data(work, folder)
        command = [*train_command(folder, launcher), *options]
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
        lines = WorkFolder(folder).run("run").metrics.read_text().splitlines()
    return [json.loads(line) for line in lines], usage.ru_maxrss / 1024
