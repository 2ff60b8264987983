"""Training speed in several processes, on random features and captions as long as Flickr8k's.

    .venv/bin/python -m tests.benchmarks.processes [--processes 2] [--images 10 50] [--rounds 3]

Up-Down with hidden size 512 trains for one epoch of each phase: in one process of one thread, in
several processes of one thread, and in one process of several threads. These take turns. The size
of the batch is the same; processes share it. Captions/s exclude validation; in REINFORCE they count
samples.
"""

import tempfile
from pathlib import Path
from statistics import median

import tyro

from tests.benchmarks.launch import train_in_subprocess
from tests.benchmarks.random_data import random_work_folder

PICTURES = 500


def main(
    processes: int = 2, images: tuple[int, ...] = (10, 50), rounds: int = 3, hidden: int = 512
) -> None:
    """Print captions/s, and their ratio to those of one process of one thread.

    Args:
        processes: number of processes, and of threads of the single process.
        images: batch sizes, in images.
        rounds: number of trainings of each kind.
        hidden: size of the recurrent state and of the attention.
    """
    sizes = ["--hidden", str(hidden), "--attention", str(hidden)]
    layouts = [(1, 1), (processes, 1), (1, processes)]
    with tempfile.TemporaryDirectory() as scratch:
        work = random_work_folder(Path(scratch), PICTURES)
        print("| processes x threads | images | cross-entropy | times | REINFORCE | times |")
        print("|---|---|---|---|---|---|")
        for count in images:
            options = [*sizes, "--batch-size", str(count)]
            results = [
                [_rates(work, *layout, options) for layout in layouts] for _ in range(rounds)
            ]
            for layout, of_layout in zip(layouts, zip(*results, strict=True), strict=True):
                cells = []
                for phase in ("xe", "rl"):
                    rate = median(rates[phase] for rates in of_layout)
                    times = median(
                        rates[phase] / single[phase]
                        for rates, (single, *_) in zip(of_layout, results, strict=True)
                    )
                    cells += [f"{rate:.1f}", f"{times:.2f}"]
                print(f"| {layout[0]} x {layout[1]} | {count} | {' | '.join(cells)} |", flush=True)


def _rates(work: Path, processes: int, threads: int, options: list[str]) -> dict[str, float]:
    """Train for an epoch of each phase; return the captions/s of each."""
    # The dashes keep torchrun from reading --run as one of its own options.
    torchrun = f"torch.distributed.run --standalone --nproc-per-node={processes} -m --"
    launcher = torchrun.split() if processes > 1 else []
    epochs = ["--xe.epochs", "1", "--rl.epochs", "1"]
    environment = {"OMP_NUM_THREADS": str(threads)}
    lines, _ = train_in_subprocess(work, [*epochs, *options], launcher, environment)
    return {line["phase"]: line["captions_per_second"] for line in lines}


if __name__ == "__main__":
    tyro.cli(main)
