"""Memory, open files and local disk of extractions by shards, from 10 to 400 shards.

    .venv/bin/python -m tests.benchmarks.many_shards [--counts 10 100 400] [--caption]

Each shard is one small archive of drawn pictures under another name. Every row is a new process,
which makes all of its shards one after another. Memory is its peak. Open files and temporary files
are counted every 20 ms, and the largest number is shown.
"""

import multiprocessing
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from tests.tar_shards import shard


class Usage(NamedTuple):
    """The most that a process used."""

    memory: float
    """MB"""
    files: int
    """Open at once."""
    disk: float
    """MB of temporary files."""
    seconds: float


def main(
    counts: tuple[int, ...] = (10, 100, 400), pictures: int = 2, caption: bool = False
) -> None:
    """Print a table with a row for each number of shards.

    Args:
        counts: numbers of shards.
        pictures: pictures in each shard.
        caption: write captions with the included captioner, rather than features.
    """
    print("| shards | memory | open files | temporary files | time |")
    print("|---|---|---|---|---|")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            used = _measured(Path(folder), count, pictures, caption)
        print(
            f"| {count} | {used.memory:.0f} MB | {used.files} | {used.disk:.1f} MB | "
            f"{used.seconds:.0f} s |",
            flush=True,
        )


def _measured(folder: Path, count: int, pictures: int, caption: bool) -> Usage:
    (folder / "in").mkdir()
    first = shard(folder / "in" / f"{0:05}.tar", [f"{number:03}" for number in range(pictures)])
    for number in range(1, count):
        os.link(first, first.with_name(f"{number:05}.tar"))
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_run, args=(folder, caption, answers))
    process.start()
    used: Usage = answers.get()
    process.join()
    return used


def _run(folder: Path, caption: bool, answers: Any) -> None:
    started = time.perf_counter()
    scratch = folder / "scratch"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    files, disk = [0], [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
            disk.append(sum(_size(path) for path in scratch.rglob("*")))
            del files[: files.index(max(files))], disk[: disk.index(max(disk))]

    watching = threading.Thread(target=watch)
    watching.start()
    if caption:
        from decoder.caption import main as command
    else:
        from pipeline.extract import main as command
    out = folder / "out"
    assert command(["--shards", f"{folder}/in/*.tar", "--out", str(out), "-q"]) == 0
    ended.set()
    watching.join()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers.put(Usage(memory, max(files), max(disk) / 1e6, time.perf_counter() - started))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # just deleted
        return 0


if __name__ == "__main__":
    tyro.cli(main)
