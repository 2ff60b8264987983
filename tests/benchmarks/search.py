"""Time and memory of the search, by hand:

    python -m tests.benchmarks.search --run RUN

For the validation split and for all images of the run's work directory: seconds until a process is
ready to search, seconds for a query in it, and its peak memory. Training the embedding, which
happens once, is timed separately and its result deleted.
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

import torch

from decoder.ranking.searcher import Searcher
from pipeline.work import RunFolder, WorkFolder

QUERIES = 30


def measure(run: RunFolder, work: Path, split: str | None) -> dict[str, float]:
    """Return the figures of this process, which must have run nothing else."""
    start = time.perf_counter()
    weights = run.best_xe if run.best_xe.exists() else run.best
    searcher = Searcher(run, weights, WorkFolder(work), torch.device("cpu"), split)
    ready = time.perf_counter() - start
    captions = [
        caption.text for caption, _ in searcher.captions[:: len(searcher.captions) // QUERIES]
    ]
    searcher.find(captions[0])
    seconds = []
    for caption in captions:
        start = time.perf_counter()
        searcher.find(caption)
        seconds.append(time.perf_counter() - start)
    return {
        "images": len(searcher.images),
        "ready after, s": ready,
        "query, s (median)": statistics.median(seconds),
        "query, s (slowest)": max(seconds),
        "memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measure in separate processes, in a copy of the work directory without its search folder."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--split")
    parser.add_argument(
        "--measure", type=Path, help="measure in this process, in this work directory"
    )
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(RunFolder(options.run), options.measure, options.split)))
        return
    run = RunFolder(options.run.resolve())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        (work / "runs").mkdir(parents=True)
        for name in ("captions.json", "features.h5"):
            (work / name).symlink_to(run.work.path / name)
        shutil.copytree(run.path, work / "runs" / "run", ignore=lambda *_: ["state", "tensorboard"])
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.search",
            "--run",
            str(work / "runs" / "run"),
        ]
        for name, arguments in {
            "trained first, all images": [],
            "all images": [],
            "validation split": ["--split", "val"],
        }.items():
            done = subprocess.run(
                [*command, "--measure", str(work), *arguments],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            figures = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
        start = time.perf_counter()
        query = [sys.executable, "-m", "decoder.search", "--run", command[-1], "a dog in the snow"]
        subprocess.run(query, check=True, stdout=subprocess.DEVNULL)
        print(f"the whole command, from a cold start: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
