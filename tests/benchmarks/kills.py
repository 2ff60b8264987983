"""Kill real trainings at random moments, and compare their results with uninterrupted ones.

    .venv/bin/python -m tests.benchmarks.kills [--kills 200]

Each training is a small one on drawn scenes. It is killed with SIGKILL and continued with --resume
until it ends. Validation runs without Java. The exit status is 1 if any result differs.
"""

import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

import tyro

from pipeline import extract, prepare
from tests.decoder.training.processes import kill_after, run, unlike

OPTIONS = ["--hidden", "48", "--attention", "24", "--batch-size", "4", "--beam", "3"]
OPTIONS += ["--average", "0.5", "--xe.learning-rate", "0.02", "--xe.epochs", "4"]
OPTIONS += ["--xe.scheduled-sampling", "0.2", "--rl.epochs", "3", "--rl.samples", "3"]
MODELS = (("show_tell", "gru"), ("updown", "lstm"), ("att2in", "gru"))
SAVE_MINUTES = ("0", "0.005", "5")


def main(kills: int = 200, seconds: float = 1.0, images: int = 40, seed: int = 1) -> int:
    """Kill trainings until `kills` is reached; print a line for each training, and a total.

    Args:
        kills: number of kills.
        seconds: longest time from the first work of a process to its kill.
        images: size of the data set.
        seed: of the random moments.
    """
    chance, counts, differing, trainings = random.Random(seed), Counter[str](), 0, 0
    started = time.monotonic()
    logging.getLogger("tensorboard").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shapes = folder / "shapes"
        stage = ["--dataset", "shapes", "--images", str(images), "--min-count", "2"]
        assert prepare.main([*stage, "--work", str(shapes)]) == 0
        assert extract.main(["--work", str(shapes), "--backbone", "efficientnet_lite0"]) == 0
        uninterrupted: dict[str, Path] = {}
        for model, cell in cycle(MODELS):
            if sum(counts.values()) >= kills:
                break
            output = folder / "output"
            arguments = ["--work", str(shapes), *OPTIONS, "--model", model, "--cell", cell]
            if model not in uninterrupted:
                assert run([*arguments, "--run", model], output) == 0, output.read_text()
                uninterrupted[model] = shapes / "runs" / model
            killed = shapes / "runs" / "killed"
            kills_here = _kill_until_it_ends(
                [*arguments, "--run", "killed"], output, chance, seconds
            )
            counts, trainings = counts + kills_here, trainings + 1
            differences = unlike(killed, uninterrupted[model])
            differing += bool(differences)
            result = differences or "the same result"
            print(f"{model} {cell}: {sum(kills_here.values())} kills, {result}")
            shutil.rmtree(killed)
    where = ", ".join(f"{count} in {what}" for what, count in counts.most_common())
    minutes = (time.monotonic() - started) / 60
    print(
        f"{sum(counts.values())} kills ({where}) of {trainings} trainings in "
        f"{minutes:.0f} min; {trainings - differing} of {trainings} ended "
        "with the same weights, state, metrics and events as an uninterrupted one"
    )
    return 1 if differing else 0


def _kill_until_it_ends(
    arguments: list[str], output: Path, chance: random.Random, seconds: float
) -> Counter[str]:
    """Kill and resume a training until it ends; count the kills by what it was doing."""
    counts = Counter[str]()
    while True:
        options = ["--resume", "--save-minutes", chance.choice(SAVE_MINUTES)]
        activity = kill_after([*arguments, *options], output, chance.uniform(0, seconds))
        if not activity:
            return counts
        counts[activity] += 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
