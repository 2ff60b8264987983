"""Size of a stored image, and speed and memory of reading stores of several sizes.

    .venv/bin/python -m tests.benchmarks.store --work work/flickr8k [--folder DIR] [--seconds 10]

WORK has a float16 store. The benchmark writes up to 5 GB of temporary files to WORK or --folder.
For the second table a new process reads each store. It drops the file from the page cache after
every batch, so that each row comes from the disk, as from a store larger than the memory.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

from features.parts import PartWriter
from features.row_format import Packed, Record, RowFormat
from features.store import STORED, FeatureStore
from features.store_writing import begin, merge, write_store
from pipeline.work import WorkFolder

KINDS = (("float16", "none"), ("float16", "deflate"), ("int8", "deflate"))
COCO, COCO_VALUES, COCO_REGIONS = 123_287, 50 * 2048, 49 * 2048
BATCH = 64


def main(
    work: Path,
    folder: Path | None = None,
    images: int = 2000,
    seconds: float = 10.0,
    read: Path | None = None,
) -> None:
    """Print both tables.

    Args:
        work: work directory with a float16 store.
        folder: folder for temporary stores; WORK by default.
        images: number of images of WORK's store that the first table copies.
        seconds: time for which each store is read.
        read: used by the processes that this benchmark starts.
    """
    if read is not None:
        print(json.dumps(_read_cold(read, seconds)))
        return
    store = FeatureStore(WorkFolder(work).features)
    with tempfile.TemporaryDirectory(dir=folder or work) as temporary:
        _sizes(store, Path(temporary), images, seconds)
        print()
        _memory(store, Path(temporary), seconds, _training(work))


def _sizes(store: FeatureStore, folder: Path, images: int, seconds: float) -> None:
    print(f"{'type':<10}{'compression':<13}{'bytes/image':>12}{'of float16':>12}", end="")
    print(f"{'rows/s':>8}{'COCO 7x7x2048':>15}   (50.5 GB in float32)")
    rows = np.flatnonzero(store.status == STORED)[:images]
    stores = {}
    for dtype, compression in KINDS:
        path = folder / f"{dtype}-{compression}.h5"
        stores[dtype, compression] = FeatureStore(_copy(store, rows, path, dtype, compression))
    rates = _rates(list(stores.values()), seconds)
    for (dtype, compression), copy, rate in zip(stores, stores.values(), rates, strict=True):
        kind = copy.row_format
        size = copy.path.stat().st_size / len(copy)
        share = size / (2 * (kind.regions + 1) * kind.channels)
        coco = share * COCO * COCO_VALUES * 2 / 1e9
        print(f"{dtype:<10}{compression:<13}{size:>12,.0f}{share:>12.3f}{rate:>8,.0f}", end="")
        print(f"{coco:>12.1f} GB")


def _copy(store: FeatureStore, rows: np.ndarray, path: Path, dtype: str, compression: str) -> Path:
    """Write rows of a float16 store as another kind of store."""
    description = {**store.description, "dtype": dtype}
    kind = RowFormat(description, store.row_format.views[:1], compression)
    if dtype == "int8":
        sample = store.grid(rows[:: max(1, len(rows) // 256)])
        largest = np.abs(sample).max((0, 1))
        kind = replace(kind, scale=np.where(largest > 0, largest, 1).astype(np.float32) / 127)
    writer = PartWriter(begin(path, kind, None), kind)
    for some in np.array_split(rows, len(rows) // BATCH + 1):
        ids = store.image_ids[some].tolist()
        writer.put(ids, store.grid(some)[:, None], store.pooled(some)[:, None])
    writer.close()
    merge(path, kind, None, store.image_ids[rows].tolist(), {})
    return path


def _rates(stores: list[FeatureStore], seconds: float) -> list[float]:
    """Read random batches from the stores in turn; return the rows a second of each."""
    spent, read = np.zeros(len(stores)), np.zeros(len(stores))
    random = np.random.default_rng(0)
    while spent.sum() < seconds:
        for i, store in enumerate(stores):
            rows = random.integers(len(store), size=BATCH)
            start = time.perf_counter()
            store.grid(rows)
            store.pooled(rows)
            spent[i] += time.perf_counter() - start
            read[i] += BATCH
    return list(read / spent)


def _memory(store: FeatureStore, folder: Path, seconds: float, training: float) -> None:
    print(f"{'store':<7}{'GB':>6}{'images':>10}{'rows/s':>8}{'of training':>13}", end="")
    print(f"{'resident, MB':>14}{'by reading':>12}")
    for times in (1, 4, 16):
        path = folder / "repeated.h5"
        _repeat(store, times, path)
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.store",
            "--work",
            ".",
            "--read",
            str(path),
        ]
        figures = json.loads(subprocess.check_output([*command, "--seconds", str(seconds)]))
        share = f"{figures['rate'] / training:.0f} x" if training else "?"
        size = path.stat().st_size / 1e9
        print(f"{times:>3} x  {size:>6.2f}{figures['images']:>10,}{figures['rate']:>8,.0f}", end="")
        print(f"{share:>13}{figures['resident']:>14,.0f}{figures['added']:>12,.0f}")


def _repeat(store: FeatureStore, times: int, path: Path) -> None:
    """Write a store with every stored row of `store` repeated `times` times."""
    stored = np.flatnonzero(store.status == STORED)

    def records() -> Iterator[Record]:
        for image_id, row in enumerate(itertools.chain(*[stored.tolist()] * times)):
            packed = store.record(row).packed
            assert isinstance(packed, Packed)
            yield Record(image_id, packed)

    write_store(path, store.row_format, range(len(stored) * times), records(), {})


def _read_cold(path: Path, seconds: float) -> dict[str, float]:
    """Read random batches of a store for `seconds`; return rows a second and peak resident MB."""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which importing torch has set
    before = _peak()
    store = FeatureStore(path)
    file = os.open(path, os.O_RDONLY)
    random = np.random.default_rng(0)
    start, read = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        rows = random.integers(len(store), size=BATCH)
        store.grid(rows)
        store.pooled(rows)
        read += BATCH
    rate = read / (time.perf_counter() - start)
    return {"rate": rate, "images": len(store), "resident": _peak(), "added": _peak() - before}


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _training(work: Path) -> float:
    """Return the images a second of the fastest training in WORK, or 0 if it has no runs."""
    table = json.loads(WorkFolder(work).captions.read_text())
    captions = len(table["annotations"]) / len(table["images"])
    rates = [
        json.loads(line)["captions_per_second"] / captions
        for path in work.glob("runs/*/metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    return max(rates, default=0.0)


if __name__ == "__main__":
    tyro.cli(main)
