"""Time that training recipes take to reach the same validation CIDEr (beam 5).

    .venv/bin/python -m tests.benchmarks.speedrun --work work/flickr8k [--target 0.45] [--rl 5]
        [--recipe "wide: --batch-size 20 --xe.learning-rate 2e-3"]

The baseline is a common recipe: Adam at 5e-4, lowered by a fifth every three epochs, batches of 10
images, no warm-up, no label smoothing, no averaged weights, random first weights, the default
hidden size and an attention as large as the state; then, with --rl, REINFORCE at 5e-5 and
temperature 1. Without --target the baseline trains first, to its end, and its best CIDEr in each
phase is the target of the other recipes. Seconds are elapsed time from the start of the process,
with validation.
"""

import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import tyro

from decoder import train
from decoder.training.phases import Phase
from decoder.training.trainer import Trainer
from pipeline.work import WorkFolder
from tests.benchmarks.launch import link_data

BASELINE = [
    *("--batch-size", "10", "--warmup", "0", "--average", "0", "--clip", "1000000"),
    *("--xe.learning-rate", "5e-4", "--xe.label-smoothing", "0", "--initial", "random"),
    *("--hidden", "256", "--attention", "256", "--dropout", "0.5"),
    *("--rl.learning-rate", "5e-5", "--rl.temperature", "1"),
]
DECAY, EVERY = 0.8, 3
PHASES = ("xe", "rl")


class Epoch(NamedTuple):
    """Result of an epoch."""

    seconds: float
    """Since the start of the process."""
    phase: str
    cider: float
    """Of the validation captions."""


def main(
    work: Path,
    target: float | None = None,
    epochs: int = 30,
    rl: int = 0,
    recipe: tuple[str, ...] = (),
    options: str = "",
    child: str | None = None,
) -> None:
    """Train by every recipe until the target is reached, and print the time it took.

    Args:
        work: work directory with captions and features.
        target: validation CIDEr to reach by cross-entropy; by default the baseline's best.
        epochs: of cross-entropy in the baseline.
        rl: epochs of REINFORCE in the baseline. With more than 0, every recipe trains to its end;
            with 0, all train by cross-entropy only.
        recipe: further recipes, as "name: options of decoder.train".
        options: options of decoder.train for every recipe, such as "--model att2in".
        child: used by the processes that this benchmark starts.
    """
    if child is not None:
        sys.exit(_train(*json.loads(child)))
    lengths = ["--xe.epochs", str(epochs), "--rl.epochs", str(rl)]
    recipes = {"baseline": [*BASELINE, *lengths], "default": []}
    for text in recipe:
        name, _, own_options = text.partition(":")
        recipes[name] = own_options.split()
    targets = {} if target is None else {"xe": target}
    reached: dict[str, list[Epoch]] = {}
    for name, own in recipes.items():
        if name == "baseline" and target is not None:
            continue
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            link_data(work, Path(scratch))
            arguments = [*([] if rl else ["--rl.epochs", "0"]), *options.split(), *own]
            enough = None if rl else targets.get("xe")
            reached[name] = _follow(Path(scratch), name, arguments, enough)
        for phase in PHASES if name == "baseline" else ():
            ciders = [epoch.cider for epoch in reached[name] if epoch.phase == phase]
            targets |= {phase: max(ciders)} if ciders else {}
        _print(reached, targets)


def _follow(work: Path, name: str, options: list[str], target: float | None) -> list[Epoch]:
    """Train in a new process until an epoch reaches the target; return the epochs."""
    started = time.perf_counter()
    arguments = ["--run", "run", "--work", str(work), *options]
    child = json.dumps([name == "baseline", arguments])
    command = [sys.executable, "-m", __spec__.name, "--work", str(work), "--child", child]
    process = subprocess.Popen(command)
    metrics, epochs = WorkFolder(work).run("run").metrics, []
    while True:
        ended = process.poll() is not None
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        for line in map(json.loads, lines[len(epochs) :]):
            seconds = time.perf_counter() - started
            epochs.append(Epoch(seconds, line["phase"], line["val"]["CIDEr"]))
            if target is not None and epochs[-1].cider >= target and not ended:
                process.send_signal(signal.SIGTERM)
                process.wait()
                return epochs
        if ended:
            if process.returncode:
                raise SystemExit(f"decoder.train {' '.join(options)}: status {process.returncode}")
            return epochs
        time.sleep(0.1)


def _print(reached: dict[str, list[Epoch]], targets: dict[str, float]) -> None:
    text = ", ".join(f"{cider:.3f} ({phase})" for phase, cider in targets.items())
    print(f"\ntarget: validation CIDEr {text}; {torch.get_num_threads()} threads\n")
    print("| recipe | phase | seconds to target | of baseline | epochs | best | all seconds |")
    print("|---|---|---|---|---|---|---|")
    times: dict[tuple[str, str], float] = {}
    for name, epochs in reached.items():
        for phase in targets:
            # In any phase: an epoch of REINFORCE may reach the target of cross-entropy.
            hits = [(n, e) for n, e in enumerate(epochs, 1) if e.cider >= targets[phase]]
            count, took, share = "", "not reached", ""
            if hits:
                times[name, phase] = hits[0][1].seconds
                count, took = str(hits[0][0]), f"{times[name, phase]:.0f}"
                if ("baseline", phase) in times:
                    share = f"{times[name, phase] / times['baseline', phase]:.2f}"
            best = max((e.cider for e in epochs if e.phase == phase), default=math.nan)
            print(f"| {name} | {phase} | {took} | {share} | {count} | {best:.3f} | ", end="")
            print(f"{epochs[-1].seconds:.0f} |", flush=True)


def _train(baseline: bool, arguments: list[str]) -> int:
    """Run decoder.train, with the learning rates of the baseline if `baseline`.

    They fall in steps during cross-entropy and are constant during REINFORCE.
    """

    def rate(trainer: Trainer, phase: Phase, step: int) -> float:
        if phase.name != "xe":
            return trainer.options.rl.learning_rate
        epoch = step // trainer.training.batches_per_epoch
        return trainer.options.xe.learning_rate * DECAY ** (epoch // EVERY)

    if baseline:
        Trainer._learning_rate = rate  # type: ignore[method-assign]
    return train.main(arguments)


if __name__ == "__main__":
    tyro.cli(main)
