"""Speed and memory of training on a small and a larger data set of random features.

    .venv/bin/python -m tests.benchmarks.growth [--images 1000] [--times 4] [--rounds 3]

The default decoder takes the same number of steps of both phases on each data set; the trainings
take turns. Memory is the peak of the training's process.
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import tyro

from tests.benchmarks.launch import train_in_subprocess
from tests.benchmarks.random_data import random_work_folder

PHASES = ("xe", "rl")


class Training(NamedTuple):
    """Speed and memory of one training."""

    rates: dict[str, float]
    """Captions/s of each phase, without validation."""
    memory: float
    """Peak resident memory, MB."""


def main(images: int = 1000, times: int = 4, rounds: int = 3) -> None:
    """Print captions/s and memory for both data sets.

    Args:
        images: size of the smaller data set.
        times: size of the larger one, as a multiple of the smaller.
        rounds: number of trainings on each.
    """
    with tempfile.TemporaryDirectory() as scratch:
        works = [Path(scratch) / str(images * factor) for factor in (1, times)]
        for work in works:
            work.mkdir()
            random_work_folder(work, int(work.name))
        pairs = list(zip(works, (times, 1), strict=True))  # equal numbers of steps
        trainings = [[_train(work, epochs) for work, epochs in pairs] for _ in range(rounds)]
    print("| images | cross-entropy, captions/s | REINFORCE | memory, MB |")
    print("|---|---|---|---|")
    for work, of_work in zip(works, zip(*trainings, strict=True), strict=True):
        rates = [f"{median(one.rates[phase] for one in of_work):.1f}" for phase in PHASES]
        memory = median(one.memory for one in of_work)
        print(f"| {work.name} | {' | '.join(rates)} | {memory:.0f} |")
    print()
    for phase in PHASES:
        ratios = [large.rates[phase] / small.rates[phase] for small, large in trainings]
        print(f"{phase}: {median(ratios):.2f} times as fast with {times} times the images")
    more = median(large.memory - small.memory for small, large in trainings)
    print(f"memory: {1000 * more / (images * (times - 1)):.1f} MB for each further 1,000 images")


def _train(work: Path, epochs: int) -> Training:
    options = ["--xe.epochs", str(epochs), "--rl.epochs", str(epochs)]
    lines, memory = train_in_subprocess(work, options)
    rates = {
        phase: median(line["captions_per_second"] for line in lines if line["phase"] == phase)
        for phase in PHASES
    }
    return Training(rates, memory)


if __name__ == "__main__":
    tyro.cli(main)
