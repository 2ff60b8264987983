"""How training scales with processes, on random features and captions as long as Flickr8k's.

    .venv/bin/python -m tests.benchmarks.processes [--processes 2] [--images 10 50] [--rounds 3]

An Up-Down of hidden size 512 trains for one epoch of each phase, in one process of one thread, in
several of one thread, and in one of as many threads; they take turns. The batch is the same, shared
among the processes. Captions/s are those of training alone, samples in REINFORCE.
"""

import tempfile
from pathlib import Path
from statistics import median

import tyro

from tests.benchmarks.training import made, train_apart

PICTURES = 500


def main(
    processes: int = 2, images: tuple[int, ...] = (10, 50), rounds: int = 3, hidden: int = 512
) -> None:
    """Print a table of captions/s, and how many times those of one process of one thread.

    Args:
        processes: how many, and threads of the single process.
        images: how many in a batch.
        rounds: how often each way has its turn.
        hidden: size of the recurrent state and of the attention.
    """
    sizes = ["--hidden", str(hidden), "--attention", str(hidden)]
    ways = [(1, 1), (processes, 1), (1, processes)]
    with tempfile.TemporaryDirectory() as scratch:
        work = made(Path(scratch), PICTURES)
        print("| processes x threads | images | cross-entropy | times | REINFORCE | times |")
        print("|---|---|---|---|---|---|")
        for count in images:
            found = [
                [_rates(work, *way, [*sizes, "--batch-size", str(count)]) for way in ways]
                for _ in range(rounds)
            ]
            for way, of_rounds in zip(ways, zip(*found, strict=True), strict=True):
                cells = []
                for phase in ("xe", "rl"):
                    rate = median(rates[phase] for rates in of_rounds)
                    times = median(
                        rates[phase] / one[0][phase]
                        for rates, one in zip(of_rounds, found, strict=True)
                    )
                    cells += [f"{rate:.1f}", f"{times:.2f}"]
                print(f"| {way[0]} x {way[1]} | {count} | {' | '.join(cells)} |", flush=True)


def _rates(work: Path, processes: int, threads: int, options: list[str]) -> dict[str, float]:
    """Train for an epoch of each phase; return the captions/s of each."""
    # The dashes keep torchrun from reading --run as one of its own options.
    together = f"torch.distributed.run --standalone --nproc-per-node={processes} -m --"
    launch = together.split() if processes > 1 else []
    options = ["--xe.epochs", "1", "--rl.epochs", "1", *options]
    lines, _ = train_apart(work, options, launch, {"OMP_NUM_THREADS": str(threads)})
    return {line["phase"]: line["captions_per_second"] for line in lines}


if __name__ == "__main__":
    tyro.cli(main)
