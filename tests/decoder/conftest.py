"""A small batch for tests of models, objectives and search; small runs for tests of commands."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from decoder import train
from decoder.data.batches import Batch, Features, pad
from decoder.ranking import embedding_file
from evaluation import java
from features.errors import UserError
from features.store import fingerprint
from pipeline import vocabulary
from pipeline.vocabulary import EOS, UNK
from pipeline.work import WorkFolder
from tests.conftest import MakeOnce

WORDS, CHANNELS, REGIONS = 20, 24, 9

SMALL = ["--hidden", "24", "--attention", "16", "--batch-size", "4", "--seed", "7", "--beam", "2"]
SMALL += ["--xe.learning-rate", "0.02"]
BOTH_PHASES = [*SMALL, "--xe.epochs", "2", "--rl.epochs", "1", "--rl.samples", "2"]


@pytest.fixture
def batch() -> Batch:
    """Four images, one of them with three captions; lengths from 1 to 7, one word unknown."""
    generator = torch.Generator().manual_seed(0)
    captions = [
        [5, 6, 7, 8, 9, 10, EOS],
        [8, EOS],
        [11, UNK, 12, EOS],
        [5, 13, EOS],
        [EOS],
        [14, 15, 16, 17, EOS],
    ]
    return Batch(
        image_ids=torch.tensor([30, 10, 20, 40]),
        features=Features(
            torch.rand(4, REGIONS, CHANNELS, generator=generator),
            torch.rand(4, CHANNELS, generator=generator),
        ),
        tokens_BT=pad(captions),
        image_B=torch.tensor([0, 0, 0, 1, 2, 3]),
    )


def hide_java(patch: pytest.MonkeyPatch) -> None:
    """Let trainings validate without Java, which would take half their time."""

    def find_java() -> Path:
        raise UserError("this test runs without Java")

    patch.setattr(java, "find_java", find_java)


def _train(folder: Path, shapes: Path, run: str, options: list[str]) -> None:
    shutil.copytree(shapes, folder)
    with pytest.MonkeyPatch.context() as patch:
        hide_java(patch)
        assert train.main(["--work", str(folder), "--run", run, *options]) == 0


@pytest.fixture(scope="session")
def trained(extracted_shapes: Path, make_once: MakeOnce) -> Path:
    """A work directory with the run "small" of both phases, never interrupted; read-only."""

    return make_once(
        "trained", lambda folder: _train(folder, extracted_shapes, "small", BOTH_PHASES)
    )


@pytest.fixture(scope="session")
def captioner(extracted_shapes: Path, make_once: MakeOnce) -> Path:
    """A work directory with the run "captioner", whose captions differ; read-only.

    Its joint embedding is trained, too.
    """
    options = [*SMALL, "--hidden", "128", "--batch-size", "1", "--xe.epochs", "5", "--dropout", "0"]
    options += ["--xe.learning-rate", "0.003", "--xe.label-smoothing", "0", "--average", "0.9"]
    options += ["--rl.epochs", "0"]

    def make(folder: Path) -> None:
        _train(folder, extracted_shapes, "captioner", options)
        run = WorkFolder(folder).run("captioner")
        description = json.loads(run.config.read_text())["features"]
        words = vocabulary.load(run.vocabulary)
        embedding_file.load_or_train(run, run.work, words, fingerprint(description))

    return make_once("captioner", make)
