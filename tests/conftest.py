"""Fixtures for all tests."""

import shutil
from pathlib import Path

import pytest

from pipeline import extract, prepare
from tests.fuzz.readers import finish

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "flickr8k"


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """Flickr8k's photographs and captions, which may not be copied into the project."""
    if not FLICKR8K.is_dir():
        pytest.skip("needs Flickr8k in ../shared/flickr8k, whose licence forbids copying it here")
    return FLICKR8K


@pytest.fixture(scope="session")
def extracted_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory of 40 drawn scenes with their features; read-only, `work` is a copy."""
    folder = tmp_path_factory.mktemp("shapes")
    stage = ["--dataset", "shapes", "--images", "40", "--min-count", "2", "--work", str(folder)]
    assert prepare.main(stage) == 0
    assert extract.main(["--work", str(folder), "--backbone", "efficientnet_lite0"]) == 0
    return folder


@pytest.fixture
def work(extracted_shapes: Path, tmp_path: Path) -> Path:
    """A copy of `extracted_shapes` that a test may change."""
    return Path(shutil.copytree(extracted_shapes, tmp_path / "work"))


@pytest.fixture(scope="session")
def finished(extracted_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with the run "small", trained, captioned and scored; read-only."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(extracted_shapes, folder)
    finish(folder)
    return folder
