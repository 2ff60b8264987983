"""Damaged files are read or refused. `tests/fuzz/run.py` tries many more of them."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import UserError
from features.images import PictureError
from tests.fuzz.readers import Reader, readers

# Number of damaged files for each reader; fewer where a case is slow.
CASES = {
    "captions.json": 150,
    "vocabulary.json": 150,
    "results.json": 150,
    "results.jsonl": 60,
    "folder x.csv": 100,
    "folder y.jsonl": 100,
    "folder lists.csv": 100,
    "folder list.json": 60,
    "folder coco.json": 60,
    "folder beside/1.txt": 60,
    "folder metadata/2.json": 40,
    "folder .captions-generated.json": 40,
    "flickr30k results.csv": 60,
    "karpathy dataset_x.json": 100,
    "coco annotations/captions_train2017.json": 60,
    "flickr8k Flickr8k.token.txt": 60,
    "flickr8k captions.txt": 100,
    "zip archive": 150,
    "picture jpeg": 60,
    "picture png": 60,
    "picture gif": 60,
    "picture webp": 60,
    "picture tiff": 60,
    "picture bmp": 60,
    "picture ppm": 60,
    "picture jpeg2000": 60,
    "picture avif": 60,
    "store float16 deflate": 60,
    "part float16 deflate": 20,
    "store int8 deflate": 60,
    "part int8 deflate": 20,
    "store float16 none": 60,
    "part float16 none": 20,
    "weights": 50,
    "state": 50,
    "config.json": 50,
    "vocabulary.json of a run": 50,
    "config.json in the report": 10,
    "metrics.jsonl": 20,
    "scores.json": 20,
    "attention.npz": 50,
    "embedding": 30,
    "expectation": 50,
    "ranking.npz": 100,
    "listing .csv": 100,
    "listing .jsonl": 100,
    "page": 60,
    "review": 60,
    "xmp": 200,
    "captions of a shard": 60,
    "captions.db": 60,
}


@pytest.fixture(scope="module")
def all_readers(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    found = readers(finished, tmp_path_factory.mktemp("readers"))
    return {reader.name: reader for reader in found}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")  # a damaged file may cause warnings
def test_damaged_file_is_read_or_refused(
    all_readers: dict[str, Reader], name: str, tmp_path: Path
) -> None:
    reader, path = all_readers[name], tmp_path / "damaged"

    @settings(
        max_examples=CASES[name],
        derandomize=True,  # the same cases each time; `run.py` tries new ones
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(random=st.randoms(use_true_random=False))
    def check(random: object) -> None:
        path.write_bytes(reader.damage(random.choice(reader.examples), random))
        with suppress(UserError, PictureError):
            reader.read(path)

    check()


def test_every_reader_is_tested_and_reads_its_examples(
    all_readers: dict[str, Reader], tmp_path: Path
) -> None:
    assert all_readers.keys() == CASES.keys()
    path = tmp_path / "example"
    for reader in all_readers.values():
        for example in reader.examples:
            path.write_bytes(example)
            reader.read(path)


def test_a_store_on_which_hdf5_loops_for_ever_is_refused() -> None:
    """HDF5 1.14 never returns from reading an attribute of this file, which `run.py` produced."""
    seed = Path(__file__).parent / "seeds" / "store_whose_heap_loops.h5"
    code = f"from features.store import *; from pathlib import *; FeatureStore(Path({str(seed)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "UserError" in done.stderr
