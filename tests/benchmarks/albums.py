"""Time and memory of searching a folder of pictures.

    .venv/bin/python -m tests.benchmarks.albums --run CAPTIONER --folder ALBUM

Prints the seconds to index the album, to open it again, and for a query, the size of the index, and
the peak memory of each process. The index is kept in a temporary folder.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from decoder.ranking.albums import open_album
from decoder.runs.packaged import packaged_captioner
from pipeline.work import RunFolder

QUERIES = ("a dog in the snow", "two children", "beach", "a red car in front of a house", "food")


def measure(run: RunFolder, folder: Path, cache: Path) -> dict[str, float]:
    """Open and search an album in this process, which must have run nothing else."""
    start = time.perf_counter()
    album = open_album(folder, run, cache=cache)
    ready, processor = time.perf_counter() - start, time.process_time()
    seconds = []
    for query in QUERIES:
        start = time.perf_counter()
        album.search(query)
        seconds.append(time.perf_counter() - start)
    return {
        "pictures": len(album),
        "unreadable": len(album.unreadable),
        "open, s": ready,
        "processor time, s": processor,
        "query, ms (median)": 1000 * statistics.median(seconds),
        "memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "index, MB": sum(file.stat().st_size for file in cache.iterdir()) / 1e6,
    }


def main() -> None:
    """Measure in two processes: the first indexes the album, the second finds the index."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="captioner; by default the included one")
    parser.add_argument("--folder", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--cache", type=Path, help=SUPPRESS)  # given to the processes
    options = parser.parse_args()
    run = options.run or packaged_captioner()
    if options.cache:
        print(json.dumps(measure(RunFolder(run), options.folder, options.cache)))
        return
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "tests.benchmarks.albums", "--run", str(run)]
        command += ["--folder", str(options.folder), "--cache", cache]
        for name in ("first", "again"):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)


if __name__ == "__main__":
    main()
