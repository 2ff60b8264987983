"""Starting from a trained captioner: what is kept, what is refused, and what is recorded."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from decoder import caption, export, train
from decoder.model.decoders import build
from decoder.runs.loading import load_decoder
from decoder.training.transfer import Trained, transfer
from evaluation import score
from pipeline import captions, vocabulary
from pipeline.captions import Source
from pipeline.vocabulary import EOS
from pipeline.work import RunFolder
from tests.decoder.conftest import SMALL

CPU = torch.device("cpu")


@pytest.fixture
def source(trained: Path) -> RunFolder:
    """A trained run with a hidden size of 24."""
    return RunFolder(trained / "runs" / "small")


@pytest.fixture
def other(work: Path) -> Path:
    """A work directory in whose captions "red" is called "crimson"."""
    file = work / "captions.json"
    text = file.read_text().replace('"red"', '"crimson"').replace(" red ", " crimson ")
    file.write_text(text)
    train_captions = [
        c.tokens for image in captions.load(file).split("train") for c in image.captions
    ]
    vocabulary.save(vocabulary.build(train_captions, 2, 20), work / "vocabulary.json")
    return work


def test_words_that_both_know_keep_their_weights(source: RunFolder, other: Path) -> None:
    old, old_words, config = load_decoder(source, source.best, CPU)
    words = vocabulary.load(other / "vocabulary.json")
    assert "crimson" in words.words
    torch.manual_seed(1)
    options = train.TrainOptions(Path("w"), "r").decoder
    options = replace(options, hidden=24, attention=16)
    model = build(options, len(words), old.region_embedding.in_features)
    kept = transfer(Trained("small", source, old, old_words, config), model, words)
    assert kept == len(set(words.words) & set(old_words.words)) - 4
    for word in ("<eos>", "a", "blue"):
        new_id, old_id = words.ids[word], old_words.ids[word]
        for layer in ("word_embedding", "output"):
            shift = EOS if layer == "output" else 0
            row = getattr(model, layer).weight[new_id - shift]
            assert torch.equal(row, getattr(old, layer).weight[old_id - shift])
        assert model.output.bias[new_id - EOS] == old.output.bias[old_id - EOS]
    assert torch.equal(model.region_embedding.weight, old.region_embedding.weight)
    # A new word is as likely as its frequency suggests, not 0 and not certain.
    biases, new = model.output.bias.detach(), words.ids["crimson"] - EOS
    assert biases.min() <= biases[new] <= biases.max()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_training_that_starts_from_a_run_records_and_continues_it(
    source: RunFolder,
    other: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = captions.load(other / "captions.json")
    stated = Source("shapes", "karpathy", "CC0 (drawn).")
    captions.save(replace(table, sources=(stated,)), other / "captions.json")
    command = ["--work", str(other), "--run", "mine", "--init", str(source.path), "--beam", "2"]
    command += ["--xe.epochs", "1", "--rl.epochs", "0", "--batch-size", "4"]
    with caplog.at_level(logging.WARNING):
        assert train.main(command) == 0
    assert "words are known to" in capsys.readouterr().out
    assert "may share pictures with val and test of karpathy" in caplog.text
    mine = RunFolder(other / "runs" / "mine")
    config = json.loads(mine.config.read_text())
    assert config["options"]["decoder"]["hidden"] == 24
    assert config["options"]["xe"]["learning_rate"] == 1e-3
    assert [entry["dataset"] for entry in config["init"]["data"]] == ["shapes"]
    # One epoch from trained weights is better than one from nothing.
    first = json.loads(mine.metrics.read_text().splitlines()[0])
    before = json.loads(source.metrics.read_text().splitlines()[0])
    assert first["loss"] < before["loss"]
    assert train.main(command) == 0
    assert "unchanged, skipped" in capsys.readouterr().out
    linked = tmp_path / "linked"
    linked.symlink_to(source.path)  # the same captioner at another place
    command[command.index("--init") + 1] = str(linked)
    assert train.main([*command, "--resume"]) == 0
    assert "continuing" in capsys.readouterr().out
    command[command.index("--init") + 1] = str(source.path)

    # What it learnt from is recorded: the work directory may have other captions later.
    table = captions.load(other / "captions.json")
    captions.save(replace(table, dataset="later"), other / "captions.json")
    assert export.main(["--run", str(mine.path), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- Terms of shapes: CC0 (drawn).\n" in card
    assert f"- Training started from the captioner {source.path.name}, trained on shapes." in card
    assert str(tmp_path) not in card
    assert "- Terms of shapes, which apply here too: drawn by this project" in card

    # The saved state has all weights, so it is continued without the captioner.
    capsys.readouterr()
    source.path.rename(tmp_path / "away")
    try:
        assert train.main([*command, "--resume"]) == 0
        assert "continuing" in capsys.readouterr().out
        mine.state.unlink()
        assert train.main([*command, "--resume"]) == 2
        assert "there is no such run" in capsys.readouterr().err
    finally:
        (tmp_path / "away").rename(source.path)


def test_trainings_one_after_the_other_record_their_data_once(source: RunFolder) -> None:
    old, old_words, config = load_decoder(source, source.best, CPU)
    first = Trained("small", source, old, old_words, config)
    second = replace(first, config={**config, "init": first.record()})
    assert second.record()["data"] == first.record()["data"]


def test_an_exported_captioner_and_its_run_name_their_data_alike(
    source: RunFolder, tmp_path: Path
) -> None:
    assert export.main(["--run", str(source.path), "--out", str(tmp_path), "--no-scores"]) == 0
    records = [
        Trained("small", run, *load_decoder(run, run.best, CPU)).record()["data"]
        for run in (source, RunFolder(tmp_path))
    ]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "32"], "expected its own architecture, found --hidden 32 (it has 24)"),
        (["--cell", "gru"], "found --cell gru (it has lstm)"),
    ],
)
def test_another_architecture_is_refused_by_name(
    source: RunFolder,
    work: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--work", str(work), "--run", "mine", "--init", str(source.path), *options]
    assert train.main(command) == 2
    assert message in capsys.readouterr().err


def test_other_features_and_missing_runs_are_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--work", str(work), "--run", "mine", "--init"]
    assert train.main([*command, "packaged"]) == 2
    found = capsys.readouterr().err
    assert "--init packaged (made with --backbone efficientnet_lite0+" in found
    for name in ("nowhere", str(work)):
        assert train.main([*command, name]) == 2
        assert f"--init {name}: there is no such run" in capsys.readouterr().err


def test_small_data_gets_more_epochs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--work", str(work), "--run", "r", *SMALL, "--batch-size", "40", "--dry-run"]
    assert train.main(command) == 0
    printed = capsys.readouterr().out
    assert "600 epochs of cross-entropy, because" in printed
    assert "give only 1 steps an epoch" in printed


def test_a_split_of_another_work_directory_is_captioned_and_scored(
    source: RunFolder, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a data set of val pictures alone, without a vocabulary."""
    elsewhere = Path(shutil.copytree(work, tmp_path / "elsewhere"))
    table = captions.load(elsewhere / "captions.json")
    alone = replace(table, images=tuple(table.split("val")))
    captions.save(alone, elsewhere / "captions.json")
    (elsewhere / "vocabulary.json").unlink()
    command = ["--run", str(source.path), "--split", "val", "--work", str(elsewhere)]
    assert caption.main(command) == 0
    results = elsewhere / "captions_val_small.json"
    assert len(json.loads(results.read_text())) == len(alone.images)
    given = ["--captions", str(elsewhere / "captions.json"), "--results", str(results)]
    assert score.main([*given, "--bootstrap", "0"]) == 0
    assert (elsewhere / "scores_val_small.json").exists()
    assert not (source.path / "captions_val.json").exists()


def test_a_prepared_split_is_for_the_included_captioner_unless_a_run_is_named(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ([], ["--run", "packaged"]):
        assert caption.main([*run, "--split", "val", "--work", str(work)]) == 2
        assert "efficientnet_lite0+efficientnet_lite1" in capsys.readouterr().err
        assert caption.main([*run, "--split", "val"]) == 2
        assert "--split needs --run" in capsys.readouterr().err
