"""Seconds from the start of decoder.train to the end of its first step.

    .venv/bin/python -m tests.benchmarks.first_step WORK

trains in a copy of the work directory WORK and ends after the first step; `training.py` times it.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

from decoder import train
from decoder.training.trainer import Trainer
from tests.benchmarks.launch import link_data


def seconds_to_first_step(work: Path, cpu_time: bool) -> float:
    """Run this module in a process of its own.

    Args:
        work: work directory with features and captions.
        cpu_time: measure processor time instead of elapsed time.

    Returns:
        The seconds that the process took.
    """

    def now() -> float:
        times = os.times()
        used = times.children_user + times.children_system
        return used if cpu_time else time.perf_counter()

    started = now()
    command = [sys.executable, "-m", "tests.benchmarks.first_step", str(work)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return now() - started


def main(work: tyro.conf.Positional[Path]) -> int:
    """Train as the command line does, and end this process after the first step.

    Args:
        work: work directory with features and captions.
    """
    step = Trainer.step

    def only_step(*arguments: Any) -> None:
        step(*arguments)
        os._exit(0)

    Trainer.step = only_step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as scratch:
        link_data(work, Path(scratch))
        return train.main(["--work", scratch, "--run", "first"])


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
