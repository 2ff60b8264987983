"""Readers of the captions beside stores of shards, and of the database that is made of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.row_format import RowFormat
from features.store import FeatureStore
from pipeline.caption_database import open_database
from pipeline.prepare import main as prepare
from pipeline.readers.shards import read_shard
from pipeline.work import WorkFolder
from tests.features.conftest import DESCRIPTION, extract


class Examples(NamedTuple):
    """Valid files, and the functions that read files like them."""

    lines: bytes
    read_lines: Callable[[Path], object]
    database: bytes
    read_database: Callable[[Path], object]


def examples(folder: Path) -> Examples:
    """Make a shard of five pictures and its database in an empty folder."""
    out, work = folder / "out", WorkFolder(folder / "work")
    out.mkdir(parents=True)
    extract(out / "a.h5", [1, 2, 3, 4, 5], RowFormat(DESCRIPTION), {5: "it is empty"})
    lines = []
    for image_id, split in enumerate(("train", "train", "val", "test", "val"), 1):
        line = {"id": image_id, "key": f"k{image_id}", "file_name": f"{image_id}.jpg"}
        line |= {"captions": ["A dog runs."], "split": split}
        lines.append(json.dumps(line | ({"error": "it is empty"} if image_id == 5 else {})))
    beside = out / "a.jsonl"
    beside.write_text("\n".join(lines) + "\n")
    arguments = ["--dataset", "shards", "--root", str(out), "--work", str(work.path)]
    assert prepare([*arguments, "--min-count", "1"]) == 0
    store = FeatureStore(out / "a.h5")

    def read_lines(path: Path) -> None:
        beside.write_bytes(path.read_bytes())
        list(read_shard(store))

    def read_database(path: Path) -> None:
        work.database.write_bytes(path.read_bytes())
        table = open_database(work.database)
        assert len(table.images) == len(list(table.images))
        for images in table.splits.values():
            images.rows[np.arange(min(len(images), 9))]
            images.with_ids([1, 3])
            [table.path(image) for image in images]

    return Examples(beside.read_bytes(), read_lines, work.database.read_bytes(), read_database)
