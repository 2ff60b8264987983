"""Whether training becomes slower or larger with the data set, on random features.

    .venv/bin/python -m tests.benchmarks.growth [--images 1000] [--times 4] [--rounds 3]

The default decoder trains by as many steps of both phases on each of two data sets, the second of
them so many times as large; they take turns. Memory is the peak of the whole process.
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import tyro

from tests.benchmarks.training import made, train_apart

PHASES = ("xe", "rl")


class Training(NamedTuple):
    """What one training took."""

    rates: dict[str, float]
    """Captions/s of each phase, without validation."""
    memory: float
    """Peak resident memory, MB."""


def main(images: int = 1000, times: int = 4, rounds: int = 3) -> None:
    """Print captions/s and memory of both.

    Args:
        images: of the smaller data set.
        times: how many times as many the larger one has.
        rounds: how often each has its turn.
    """
    with tempfile.TemporaryDirectory() as scratch:
        works = [Path(scratch) / str(images * factor) for factor in (1, times)]
        for work in works:
            work.mkdir()
            made(work, int(work.name))
        pairs = list(zip(works, (times, 1), strict=True))
        found = [[_train(work, epochs) for work, epochs in pairs] for _ in range(rounds)]
    print("| images | cross-entropy, captions/s | REINFORCE | memory, MB |")
    print("|---|---|---|---|")
    for work, of_rounds in zip(works, zip(*found, strict=True), strict=True):
        rates = [f"{median(one.rates[phase] for one in of_rounds):.1f}" for phase in PHASES]
        memory = median(one.memory for one in of_rounds)
        print(f"| {work.name} | {' | '.join(rates)} | {memory:.0f} |")
    for phase in PHASES:
        ratios = [large.rates[phase] / small.rates[phase] for small, large in found]
        print(
            f"\n{phase}: {median(ratios):.2f} times as fast with {times} times the images", end=""
        )
    more = median(large.memory - small.memory for small, large in found)
    print(f"\nmemory: {1000 * more / (images * (times - 1)):.1f} MB for a thousand images")


def _train(work: Path, epochs: int) -> Training:
    length = ["--xe.epochs", str(epochs), "--rl.epochs", str(epochs)]
    lines, memory = train_apart(work, length)
    rates = [(line["phase"], line["captions_per_second"]) for line in lines]
    return Training(
        {p: median(rate for phase, rate in rates if phase == p) for p in PHASES}, memory
    )


if __name__ == "__main__":
    tyro.cli(main)
