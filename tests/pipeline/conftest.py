"""Fixtures for the tests of the stages."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline import captions, vocabulary
from pipeline.prepare import main


class Outcome(NamedTuple):
    status: int
    out: str
    err: str
    work: Path

    @property
    def table(self) -> captions.CaptionTable:
        assert self.status == 0, self.err
        return captions.load(self.work / "captions.json")

    @property
    def vocabulary(self) -> vocabulary.Vocabulary:
        return vocabulary.load(self.work / "vocabulary.json")

    @property
    def splits(self) -> dict[str, str]:
        return {image.file_name: image.split for image in self.table.images}

    @property
    def texts(self) -> dict[str, list[str]]:
        return {image.file_name: [c.text for c in image.captions] for image in self.table.images}


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the stage on ROOT = tmp_path/root with WORK = tmp_path/work."""
    (tmp_path / "root").mkdir()

    def run(dataset: str, *arguments: str, root: Path = tmp_path / "root") -> Outcome:
        work = tmp_path / "work"
        common = ["--dataset", dataset, "--root", str(root), "--work", str(work)]
        # A test has few captions, so all words are kept unless it sets another --min-count.
        status = main([*common, "--min-count", "1", *arguments])
        return Outcome(status, *capsys.readouterr(), work)

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that `prepare` reads."""
    return tmp_path / "root"
