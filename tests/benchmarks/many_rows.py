"""Peak memory of a work directory of shards, from 10,000 to 10 million pictures.

    .venv/bin/python -m tests.benchmarks.many_rows --folder DIR [--counts 10000 100000 1000000]

Each shard is a copy of one store of 10,000 small rows, with image ids and keys of its own, so a
million pictures take 0.6 GB in DIR. Every figure is the peak of a new process.
"""

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tyro

from features.row_format import Packed, Record, RowFormat, checksum
from features.store_writing import write_store
from pipeline.work import WorkFolder

ROWS, HELD_OUT, STEPS = 10_000, 500, 200
_CHANNELS, _GRID = 16, (2, 2)
_WORDS = ("dog", "cat", "boat", "tree", "house", "bird", "car", "kite")


def main(folder: Path, counts: tuple[int, ...] = (10_000, 100_000, 1_000_000)) -> None:
    """Print a table of peak memory and times.

    Args:
        folder: a folder for temporary files, which is made and removed.
        counts: numbers of pictures, multiples of 10,000.
    """
    out = folder / "stores"
    out.mkdir(parents=True)
    base = folder / "base.h5"
    _write_base(base)
    made = 0
    print("| pictures | prepare | cross-entropy | REINFORCE | caption | search | of database |")
    print("|---|---|---|---|---|---|---|")
    for count in counts:
        for number in range(made, count // ROWS):
            _add_shard(base, out, number)
        made = count // ROWS
        work = folder / f"work{count}"
        figures = [_measured(task, out, work) for task in (prepare, xe, rl, caption, stream)]
        size = WorkFolder(work).database.stat().st_size / 1e6
        cells = [f"{memory:.0f} MB, {seconds:.0f} s" for memory, seconds in figures]
        print(f"| {count:,} | {' | '.join(cells)} | {size:,.0f} MB |", flush=True)
    shutil.rmtree(folder)


def _write_base(path: Path) -> None:
    description = {
        "backbone": "random",
        "grid": list(_GRID),
        "channels": _CHANNELS,
        "dtype": "float16",
    }
    kind = RowFormat(description, compression="none")
    random = np.random.default_rng(0)

    def record(row: int) -> Record:
        grid = random.random((_GRID[0] * _GRID[1], _CHANNELS)).astype(np.float16)
        pooled = grid.mean(0, dtype=np.float32).astype(np.float16)[None]
        sums = np.array([[checksum(pooled[0]), checksum(grid, 0)]], np.uint32)
        return Record(row, Packed(pooled, [grid.tobytes()], sums, None))

    write_store(path, kind, range(ROWS), map(record, range(ROWS)), {})


def _add_shard(base: Path, out: Path, number: int) -> None:
    path = out / f"{number:06}.h5"
    shutil.copyfile(base, path)
    first = number * ROWS
    with h5py.File(path, "r+") as file:
        file["image_id"][:] = np.arange(first, first + ROWS)
    lines = (
        json.dumps(
            {
                "id": first + row,
                "key": f"{number:06}{row:05}",
                "file_name": f"{row:05}.jpg",
                "captions": [f"a {_WORDS[row % 8]} {_WORDS[row // 8 % 8]} of name{first + row}"],
            }
        )
        for row in range(ROWS)
    )
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")


def prepare(out: Path, work: Path) -> None:
    """Read all captions into the database."""
    from pipeline.prepare import main as run

    held = ["--val", str(HELD_OUT), "--test", str(HELD_OUT)]
    assert run(["--dataset", "shards", "--root", str(out), "--work", str(work), *held, "-q"]) == 0


def _trainer(work: Path) -> Any:
    from decoder.model.options import ModelOptions
    from decoder.train import new_trainer
    from decoder.training.options import TrainOptions

    model = ModelOptions(hidden=32, attention=32)
    return new_trainer(TrainOptions(work, "small", decoder=model, batch_size=50))


def _steps(work: Path, phase: int) -> Any:
    trainer = _trainer(work)
    trainer.initialise()
    chosen = trainer.phases[phase]
    for batch in islice(trainer.training.epoch(chosen.name, 0), STEPS):
        trainer.step(chosen, batch)
    return trainer


def xe(out: Path, work: Path) -> None:
    """Take steps of cross-entropy, and keep the weights."""
    from decoder.runs import checkpoints
    from features.files import write_json
    from pipeline import vocabulary

    trainer = _steps(work, 0)
    run = trainer.state.run
    checkpoints.save(run.best, trainer.state.average)
    write_json(run.config, trainer.state.config)
    vocabulary.save(trainer.vocabulary, run.vocabulary)


def rl(out: Path, work: Path) -> None:
    """Take steps of REINFORCE; every picture has words of its own, so n-grams grow with them."""
    _steps(work, 1)


def caption(out: Path, work: Path) -> None:
    """Caption the test split, which has the same size every time."""
    from decoder.caption import main as run

    folder = WorkFolder(work).run("small").path
    assert run(["--run", str(folder), "--split", "test", "-q"]) == 0


def stream(out: Path, work: Path) -> None:
    """Read the pooled features of all pictures, as the index of a search does."""
    from decoder.ranking.embedding_file import blocks
    from pipeline.caption_database import open_features

    store = open_features(WorkFolder(work))
    for rows in store.stored_rows():
        for block in blocks(rows):
            store.pooled(block)


def _measured(task: Callable[[Path, Path], None], out: Path, work: Path) -> tuple[float, float]:
    """Run a task in a new process; return its peak memory in MB and its seconds."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_run, args=(task, out, work, answers))
    process.start()
    found: tuple[float, float] = answers.get()
    process.join()
    return found


def _run(task: Callable[[Path, Path], None], out: Path, work: Path, answers: Any) -> None:
    import contextlib
    import io
    import resource

    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        task(out, work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers.put((peak, time.perf_counter() - started))


if __name__ == "__main__":
    tyro.cli(main)
