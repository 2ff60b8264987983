"""Time and memory of a search.

    .venv/bin/python -m tests.benchmarks.search --run RUN

Prints, for the validation split and for all images of the run's work directory: seconds until a
process is ready to search, seconds for a query in it, and its peak memory. The first line includes
training the embedding, which happens once; its files are deleted at the end.
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import torch

from decoder.ranking.searcher import Searcher
from pipeline.work import RunFolder, WorkFolder
from tests.benchmarks.launch import link_data

QUERIES = 30


def measure(run: RunFolder, work: Path, split: str | None) -> dict[str, float]:
    """Search `work` in this process, which must have run nothing else; return its figures."""
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
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run, in its work directory")
    # Given to the processes that are measured.
    parser.add_argument("--split", help=SUPPRESS)
    parser.add_argument("--measure", type=Path, help=SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(RunFolder(options.run), options.measure, options.split)))
        return
    run = RunFolder(options.run.resolve())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        copy = WorkFolder(work).run("run")
        copy.path.parent.mkdir(parents=True)
        link_data(run.work.path, work)
        shutil.copytree(run.path, copy.path, ignore=lambda *_: ["state", "tensorboard"])
        command = [sys.executable, "-m", "tests.benchmarks.search", "--run", str(copy.path)]
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
        query = [
            sys.executable,
            "-m",
            "decoder.search",
            "--run",
            str(copy.path),
            "a dog in the snow",
        ]
        subprocess.run(query, check=True, stdout=subprocess.DEVNULL)
        print(f"decoder.search, from its start to its end: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
