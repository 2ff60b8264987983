"""Captions of pictures: what identifies the weights and options that wrote them."""

from pathlib import Path

import pytest
import torch

from decoder.captioning import writer
from decoder.captioning.captioner import Candidate
from decoder.captioning.writer import CaptionWriter
from decoder.generation.options import GenerateOptions
from features.errors import UserError
from pipeline.work import RunFolder


def identity(run: RunFolder, options: GenerateOptions, seed: int = 1) -> str:
    cpu = torch.device("cpu")
    runs = [(run, run.best)]
    made = CaptionWriter(runs, options, threshold=0.4, batch_size=50, seed=seed, device=cpu)
    return made.identity()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.best.write_bytes(b"weights")
    folder.config.write_bytes(b"config")
    folder.vocabulary.write_bytes(b"vocabulary")
    folder.expectation.write_bytes(b"expectation")
    return folder


def test_the_identity_is_that_of_version_0_2_so_that_its_listings_can_be_continued(run):
    assert identity(run, GenerateOptions()) == "f11d091d3dab"
    assert identity(run, GenerateOptions(sample=True), seed=3) == "475a0d4e0912"


def test_the_identity_changes_with_whatever_changes_the_captions(run):
    identities = [
        identity(run, GenerateOptions()),
        identity(run, GenerateOptions(beam=3)),
        identity(run, GenerateOptions(sample=True)),
        identity(run, GenerateOptions(sample=True), seed=2),
        identity(run, GenerateOptions(rerank=True)),
    ]
    run.expectation.write_bytes(b"another expectation")
    identities.append(identity(run, GenerateOptions(rerank=True)))
    run.best.write_bytes(b"other weights")
    identities.append(identity(run, GenerateOptions()))
    assert len(set(identities)) == len(identities)
    assert identity(run, GenerateOptions(), seed=2) == identities[-1], "a search draws nothing"


def test_captions_that_neutral_words_make_equal_are_given_once(run, monkeypatch):
    texts = ("a man sits", "a dog sits", "a woman sits")
    candidates = [Candidate([1], text, -1.0 - number) for number, text in enumerate(texts)]
    found = [("picture", writer.Captioned(candidates, None))]
    monkeypatch.setattr(writer, "caption_pictures", lambda *_: found)
    monkeypatch.setattr(CaptionWriter, "_captioner", None)
    monkeypatch.setattr(CaptionWriter, "_calibration", None)
    options = {"threshold": 0, "batch_size": 1, "seed": 1, "device": torch.device("cpu")}
    neutral = CaptionWriter([(run, run.best)], GenerateOptions(captions=3), neutral=True, **options)
    ((_, captions),) = neutral.captioned(["picture"], None)
    said = [(one.caption, one.log_probability) for one in captions]
    assert said == [("A person sits.", -1.0), ("A dog sits.", -2.0)]


def test_weights_that_cannot_be_read_are_named(run):
    run.best.unlink()
    with pytest.raises(UserError, match=r"cannot read .*best\.safetensors"):
        identity(run, GenerateOptions())
