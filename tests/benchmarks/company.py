"""Training speed beside other work, on random features.

    .venv/bin/python -m tests.benchmarks.company [--images 60]

The default decoder trains by cross-entropy on all cores: alone, beside a process that keeps one
core busy, and beside a second training. Threads that wait for one another sleep, which is this
project's default, or spin, which is torch's own default (see OMP_WAIT_POLICY).
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import tyro

from tests.benchmarks.launch import link_data, train_command, train_in_subprocess
from tests.benchmarks.random_data import random_work_folder

WAITING = {"sleep": {}, "spin": {"GOMP_SPINCOUNT": "300000"}}
BUSY = [sys.executable, "-c", "while True: pass"]


def main(images: int = 60) -> None:
    """Print captions/s of each combination.

    Args:
        images: size of the data set; a training reads it five times.
    """
    with tempfile.TemporaryDirectory() as scratch:
        work = random_work_folder(Path(scratch), images)
        print("| waiting threads | alone | beside a busy process | beside a second training |")
        print("|---|---|---|---|")
        for name, environment in WAITING.items():
            with tempfile.TemporaryDirectory(dir=work) as second:
                link_data(work, Path(second))
                training = [*train_command(Path(second)), "--xe.epochs", "10000"]
                rates = [_rate(work, environment)]
                for command in (BUSY, training):
                    with _running(command, environment):
                        rates.append(_rate(work, environment))
            print(f"| {name} | {' | '.join(f'{rate:.0f}' for rate in rates)} |", flush=True)


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a command in the background within this context."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | environment, **quiet)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _rate(work: Path, environment: dict[str, str]) -> float:
    """Train; return captions/s, the median of the epochs."""
    epochs = ["--xe.epochs", "5", "--rl.epochs", "0"]
    lines, _ = train_in_subprocess(work, epochs, environment=environment)
    return median(line["captions_per_second"] for line in lines)


if __name__ == "__main__":
    tyro.cli(main)
