"""How long training takes to reach a validation CIDEr (beam 5), by one recipe and by another.

    .venv/bin/python -m tests.benchmarks.speedrun --work work/flickr8k [--target 0.45] [--rl 5]
        [--recipe "wide: --batch-size 20 --xe.learning-rate 2e-3"]

The baseline trains as peers do: Adam at 5e-4, lowered by a fifth every three epochs, batches of 10
images, no warm-up, no smoothing of labels, no average of the weights and random ones to begin with,
the size of the default and an attention as large as the state; then, with --rl, REINFORCE at 5e-5
and temperature 1. Without --target it is trained first, to its end, and its best CIDEr of each
phase is the target of the others. Seconds are those of the clock, from the start of the process,
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
from tests.benchmarks.training import link

BASELINE = [
    *("--batch-size", "10", "--warmup", "0", "--average", "0", "--clip", "1000000"),
    *("--xe.learning-rate", "5e-4", "--xe.label-smoothing", "0", "--initial", "random"),
    *("--hidden", "256", "--attention", "256", "--dropout", "0.5"),
    *("--rl.learning-rate", "5e-5", "--rl.temperature", "1"),
]
DECAY, EVERY = 0.8, 3
PHASES = ("xe", "rl")


class Epoch(NamedTuple):
    """What a finished epoch has reached."""

    seconds: float
    """Since the start of the process."""
    phase: str
    cider: float


def main(
    work: Path,
    target: float | None = None,
    epochs: int = 30,
    rl: int = 0,
    recipe: tuple[str, ...] = (),
    options: str = "",
    child: str | None = None,
) -> None:
    """Train by every recipe until the target is reached, and print what it took.

    Args:
        work: a work directory with captions and features.
        target: the validation CIDEr to reach by cross-entropy; by default the best of the baseline.
        epochs: of cross-entropy, for the baseline.
        rl: epochs of REINFORCE, for the baseline; the others then go on to the end of theirs. 0:
            cross-entropy only.
        recipe: further recipes, as "name: options of decoder.train".
        options: options of decoder.train for every recipe, such as "--model att2in".
        child: train by this recipe, as the benchmark's own processes do.
    """
    if child is not None:
        sys.exit(_train(*json.loads(child)))
    lengths = ["--xe.epochs", str(epochs), "--rl.epochs", str(rl)]
    recipes = {"baseline": [*BASELINE, *lengths], "default": []}
    for text in recipe:
        name, _, own = text.partition(":")
        recipes[name] = own.split()
    targets = {} if target is None else {"xe": target}
    reached: dict[str, list[Epoch]] = {}
    for name, own in recipes.items():
        if name == "baseline" and target is not None:
            continue
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            link(work, Path(scratch))
            every = [*([] if rl else ["--rl.epochs", "0"]), *options.split(), *own]
            enough = None if rl else targets.get("xe")
            reached[name] = _follow(Path(scratch), name, every, enough)
        for phase in PHASES if name == "baseline" else ():
            ciders = [epoch.cider for epoch in reached[name] if epoch.phase == phase]
            targets |= {phase: max(ciders)} if ciders else {}
        _print(reached, targets)


def _follow(work: Path, name: str, options: list[str], target: float | None) -> list[Epoch]:
    """Train in a process of its own, until an epoch reaches the target; return its epochs."""
    started = time.perf_counter()
    arguments = ["--run", "run", "--work", str(work), *options]
    child = json.dumps([name == "baseline", arguments])
    command = [sys.executable, "-m", __spec__.name, "--work", str(work), "--child", child]
    process = subprocess.Popen(command)
    metrics, epochs = work / "runs" / "run" / "metrics.jsonl", []
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
                raise SystemExit(f"{' '.join(options)}: decoder.train ended in an error")
            return epochs
        time.sleep(0.1)


def _print(reached: dict[str, list[Epoch]], targets: dict[str, float]) -> None:
    told = ", ".join(f"{cider:.3f} ({phase})" for phase, cider in targets.items())
    print(f"\ntarget: validation CIDEr {told}; {torch.get_num_threads()} threads\n")
    print("| recipe | phase | seconds to target | of baseline | epochs | best | all seconds |")
    print("|---|---|---|---|---|---|---|")
    times: dict[tuple[str, str], float] = {}
    for name, epochs in reached.items():
        for phase in targets:
            # Whatever phase it is in: what counts is the captions.
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


def _train(as_peers: bool, arguments: list[str]) -> int:
    """Run decoder.train, the rates as peers have them: falling by steps, then constant."""

    def rate(trainer: Trainer, phase: Phase, step: int) -> float:
        if phase.name != "xe":
            return trainer.options.rl.learning_rate
        epoch = step // trainer.training.batches_per_epoch
        return trainer.options.xe.learning_rate * DECAY ** (epoch // EVERY)

    if as_peers:
        Trainer._learning_rate = rate  # type: ignore[method-assign]
    return train.main(arguments)


if __name__ == "__main__":
    tyro.cli(main)
