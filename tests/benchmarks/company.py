"""What training loses beside other work, on random features.

    .venv/bin/python -m tests.benchmarks.company [--images 60]

The default decoder takes steps of cross-entropy on all cores: alone, beside a process that keeps
one core busy, and beside a second training. Threads that wait for one another sleep, as they do
here unless OMP_WAIT_POLICY says otherwise, or stay awake, as they do by torch's own default.
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

from tests.benchmarks.training import link, made, train_apart

WAITING = {"asleep": {}, "awake": {"GOMP_SPINCOUNT": "300000"}}
BUSY = [sys.executable, "-c", "while True: pass"]


def main(images: int = 60) -> None:
    """Print captions/s of each.

    Args:
        images: of the data set, which is read five times.
    """
    with tempfile.TemporaryDirectory() as scratch:
        work = made(Path(scratch), images)
        print("| threads that wait | alone | beside a busy process | beside a second training |")
        print("|---|---|---|---|")
        for name, environment in WAITING.items():
            with tempfile.TemporaryDirectory(dir=work) as other:
                link(work, Path(other))
                training = [
                    sys.executable,
                    "-m",
                    "decoder.train",
                    "--work",
                    other,
                    "--run",
                    "other",
                ]
                found = [_rate(work, environment)]
                for command in (BUSY, [*training, "--xe.epochs", "10000"]):
                    with _beside(command, environment):
                        found.append(_rate(work, environment))
            print(f"| {name} | {' | '.join(f'{rate:.0f}' for rate in found)} |", flush=True)


@contextmanager
def _beside(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | environment, **quiet)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _rate(work: Path, environment: dict[str, str]) -> float:
    """Train; return captions/s, the median of the epochs."""
    length = ["--xe.epochs", "5", "--rl.epochs", "0"]
    lines, _ = train_apart(work, length, environment=environment)
    return median(line["captions_per_second"] for line in lines)


if __name__ == "__main__":
    tyro.cli(main)
