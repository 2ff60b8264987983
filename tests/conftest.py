"""Fixtures for all tests."""

import errno
import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from evaluation import java, scores
from evaluation.baselines import baselines_of
from pipeline import captions, extract, prepare
from pipeline.work import WorkFolder
from tests.fuzz.readers import finish

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "flickr8k"


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """Flickr8k's photographs and captions, which may not be copied into the project."""
    if not FLICKR8K.is_dir():
        pytest.skip("needs Flickr8k in ../shared/flickr8k, whose licence forbids copying it here")
    return FLICKR8K


@pytest.fixture(scope="session", autouse=True)
def quick_meteor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let METEOR read a table of one paraphrase; its own, of millions, takes ten seconds."""
    real, folder = java.find_java(), tmp_path_factory.mktemp("java")
    table, quick = folder / "paraphrases.gz", folder / "bin" / "java"
    table.write_bytes(gzip.compress(b"0.5\nruns\nis running\n"))
    quick.parent.mkdir()
    quick.write_text(
        f'#!/bin/sh\ncase "$*" in *meteor*) exec "{real}" "$@" -a "{table}";; esac\n'
        f'exec "{real}" "$@"\n'
    )
    quick.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_HOME", str(folder))
        yield


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Make a folder in the first process that asks for it; each process gets a copy.

    `make_once(name, make)` calls `make` with a path that does not exist yet.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent / "made" if "PYTEST_XDIST_WORKER" in os.environ else own / "made"
    shared.mkdir(exist_ok=True)

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                make(folder)
                made.touch()
        return Path(shutil.copytree(folder, own / name))

    return make_once


@pytest.fixture(scope="session")
def extracted_shapes(make_once: MakeOnce) -> Path:
    """A work directory of 40 drawn scenes with their features; read-only, `work` is a copy."""

    def make(folder: Path) -> None:
        stage = ["--dataset", "shapes", "--images", "40", "--min-count", "2", "--work", str(folder)]
        assert prepare.main(stage) == 0
        assert extract.main(["--work", str(folder), "--backbone", "efficientnet_lite0"]) == 0

    return make_once("shapes", make)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders called "closed" cannot be opened; root, as whom tests may run, can open any."""
    scandir = os.scandir

    def guarded(path: object = ".") -> object:
        if Path(str(path)).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)


@pytest.fixture
def work(extracted_shapes: Path, tmp_path: Path) -> Path:
    """A copy of `extracted_shapes` that a test may change."""
    return Path(shutil.copytree(extracted_shapes, tmp_path / "work"))


@pytest.fixture(scope="session")
def finished(extracted_shapes: Path, make_once: MakeOnce) -> Path:
    """A work directory with the run "small", trained, captioned and scored; read-only."""

    def make(folder: Path) -> None:
        shutil.copytree(extracted_shapes, folder)
        finish(folder)
        # The baselines of its report, so that no test that writes one starts Java.
        run = WorkFolder(folder).run("small")
        table = captions.load(run.work.captions)
        baselines_of(run.work, table, "val", scores.load(run.scores("val")).images)

    return make_once("finished", make)
