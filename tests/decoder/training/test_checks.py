"""Values that are not finite stop a training; data and options that spoil scores are reported."""

import logging
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder import train
from decoder.training import checks
from features.row_format import Packed, Record, checksum
from features.store import FeatureStore
from features.store_writing import write_store
from pipeline import captions, extract, prepare, vocabulary
from tests.decoder.training.processes import End
from tests.decoder.training.test_resume import AT_EVERY_STEP, Training


def break_features(work: Path, image_id: int, value: float) -> None:
    """Write a value into the features of one image, with checksums that are right."""
    store = FeatureStore(work / "features.h5")
    kind = store.row_format

    def records() -> Iterator[Record]:
        for row in range(len(store)):
            record = store.record(row)
            if record.image_id == image_id:
                pooled = np.full((1, kind.channels), value, "<f2")
                grid = np.full((kind.regions, kind.channels), value, "<f2")
                sums = np.array([[checksum(pooled[0]), checksum(grid)]], "<u4")
                record = Record(image_id, Packed(pooled, [kind.pack(grid)], sums))
            yield record

    write_store(store.path, kind, store.image_ids.tolist(), records(), {})


@pytest.fixture
def training(work: Path) -> Training:
    return Training(work)


def error_of(training: Training) -> str:
    printed = training.printed()
    assert "Traceback" not in printed
    # One line: without Java, a warning of the tokenizer may follow later.
    return printed.split("error: ")[-1].splitlines()[0]


@pytest.mark.parametrize(
    ("phase", "value"),
    [("cross-entropy", np.nan), ("cross-entropy", np.inf), ("REINFORCE", np.nan)],
)
def test_features_that_are_not_finite_stop_it_and_are_named(
    phase: str, value: float, training: Training, work: Path
) -> None:
    assert training.run(*AT_EVERY_STEP, end=End(phase, 3)) == -signal.SIGKILL
    table = captions.load(work / "captions.json")
    image = table.split("train")[5].id
    intact = shutil.copy(work / "features.h5", work / "intact.h5")
    break_features(work, image, value)
    assert training.run(*AT_EVERY_STEP) == 2
    error = error_of(training)
    step = training.steps() - (40 if phase == "REINFORCE" else 0)
    named = re.search(rf"at step {step} of {phase}, epoch 1, images ([\d, ]+); the fea", error)
    assert named
    assert str(image) in named[1].split(", ")
    assert len(named[1].split(", ")) == 4
    assert f"the features of {image} are not finite: extract them again" in error
    assert f"the last good state is in {training.state}" in error
    shutil.move(intact, work / "features.h5")
    assert training.run() == 0, training.printed()
    assert f"continuing {training.folder} in {phase}, epoch 1" in training.printed()


def test_features_of_a_validation_image_that_are_not_finite_are_named(
    training: Training, work: Path
) -> None:
    image = captions.load(work / "captions.json").split("val")[1].id
    break_features(work, image, np.nan)
    assert training.run() == 2
    error = error_of(training)
    assert "in validation, at step 8 of cross-entropy, epoch 1" in error
    assert f"the features of {image} are not finite: extract them again" in error
    assert training.steps() == 8


@pytest.mark.parametrize("phase", ["xe", "rl"])
def test_a_too_high_learning_rate_stops_it_before_the_weights_are_spoilt(
    phase: str, training: Training
) -> None:
    options = [f"--{phase}.learning-rate", "1e38", "--warmup", "0", "--xe.epochs", "1"]
    options += ["--xe.scheduled-sampling", "0"]  # which would raise another error first
    assert training.run(*options) == 2
    error = error_of(training)
    name = {"xe": "cross-entropy", "rl": "REINFORCE"}[phase]
    assert re.search(rf"at step \d of {name}, epoch 1, images \d+, \d+, \d+, \d+;", error)
    assert f"start again (--force) with a lower --{phase}.learning-rate" in error
    if phase == "xe":
        assert "no state has been saved yet" in error
        return
    assert f"the last good state is in {training.state}" in error
    before = training.state.read_bytes()
    assert training.run(*options) == 2  # it continues from there, into the same error
    assert f"continuing {training.folder} in cross-entropy, epoch 2" in training.printed()
    assert error_of(training) == error
    assert training.state.read_bytes() == before


def test_weights_that_are_not_finite_are_never_saved(training: Training) -> None:
    options = ["--xe.learning-rate", "1e39", "--warmup", "0", *AT_EVERY_STEP]
    assert training.run(*options) == 2
    error = error_of(training)
    assert "is not finite after step 1 of cross-entropy; start again (--force)" in error
    assert not training.state.exists()


Train = Callable[..., list[str]]


@pytest.fixture
def trained(work: Path, caplog: pytest.LogCaptureFixture) -> Train:
    """Trains in this process; returns the warnings."""

    def warnings(*options: str) -> list[str]:
        small = ["--hidden", "16", "--attention", "8", "--batch-size", "4", "--beam", "1"]
        small += ["--xe.epochs", "0", "--rl.samples", "2"]
        arguments = ["--work", str(work), "--run", "small", *small, *options]
        with caplog.at_level(logging.WARNING):
            assert train.main(arguments) == 0
        return [record.getMessage() for record in caplog.records]

    return warnings


FLAT = "the reward does not vary"


def test_a_reward_that_does_not_vary_is_reported_once(trained: Train) -> None:
    """At such a low temperature every sample is the greedy caption."""
    found = [
        text for text in trained("--rl.epochs", "4", "--rl.temperature", "1e-6") if FLAT in text
    ]
    assert len(found) == 1
    assert "in 20 consecutive steps" in found[0]


def test_a_reward_that_varies_is_not_reported(trained: Train) -> None:
    assert not [text for text in trained("--rl.epochs", "3") if FLAT in text]


def test_a_single_training_image_is_reported(work: Path, trained: Train) -> None:
    table = captions.load(work / "captions.json")
    held_out = [image for image in table.images if image.split != "train"]
    single = replace(table, images=(table.split("train")[0], *held_out))
    captions.save(single, work / "captions.json")
    found = [text for text in trained("--rl.epochs", "3") if FLAT in text]
    assert len(found) == 1
    assert "in 3 consecutive steps" in found[0]
    assert "With one training image CIDEr-D is always 0" in found[0]


def test_a_training_of_too_few_steps_is_reported_with_options_that_give_enough(
    trained: Train, caplog: pytest.LogCaptureFixture
) -> None:
    few = "steps of cross-entropy in all"
    (found,) = [text for text in trained("--xe.epochs", "1", "--rl.epochs", "0") if few in text]
    match = re.search(r"(\d+) training images .* --batch-size 10 --xe.epochs (\d+),", found)
    assert match
    caplog.clear()
    steps = -(-int(match[1]) // 10) * int(match[2])
    checks.report_few_steps(steps, int(match[1]))
    assert not caplog.records


def test_a_vocabulary_that_lacks_many_words_is_reported(work: Path, trained: Train) -> None:
    assert not [text for text in trained("--rl.epochs", "1") if "unknown" in text]
    words = vocabulary.load(work / "vocabulary.json")
    cut = replace(words, words=words.words[:12], counts=words.counts[:12])
    vocabulary.save(cut, work / "vocabulary.json")
    tokens = [
        token
        for image in captions.load(work / "captions.json").split("train")
        for caption in image.captions
        for token in caption.tokens
    ]
    share = sum(token not in cut.words for token in tokens) / len(tokens)
    found = trained("--rl.epochs", "1", "--force")
    assert any(f"{100 * share:.1f} % of the words in the training" in text for text in found)


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory of a folder's pictures, some of them in two splits under two names."""
    root = tmp_path_factory.mktemp("leaking")
    stage = ["--dataset", "shapes", "--images", "12", "--min-count", "1"]
    assert prepare.main([*stage, "--work", str(root / "drawn")]) == 0
    pictures = sorted((root / "drawn" / "images").iterdir())
    table = captions.load(root / "drawn" / "captions.json")
    texts = {image.file_name: image.captions[0].text for image in table.images}
    folder = root / "pictures"
    folder.mkdir()
    rows = ["file_name,split,caption"]
    for number, picture in enumerate(pictures):
        split = "val" if number in (2, 5) else "test" if number == 7 else "train"
        copies = [(picture.name, split)]
        if number in (5, 7):
            copies.append((f"copy {number}.jpg", "train"))
        for name, of in copies:
            shutil.copy(picture, folder / name)
            rows.append(f'{name},{of},"{texts[picture.name]}"')
    (folder / "captions.csv").write_text("\n".join(rows))
    work = root / "work"
    stage = ["--dataset", "folder", "--root", str(folder), "--min-count", "1"]
    assert prepare.main([*stage, "--work", str(work)]) == 0
    assert extract.main(["--work", str(work), "--backbone", "efficientnet_lite0"]) == 0
    return work


def test_held_out_pictures_that_are_trained_on_are_reported(
    leaking: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = captions.load(leaking / "captions.json")
    ids = {image.file_name: image.id for image in table.images}
    store = FeatureStore(leaking / "features.h5")
    expected = {}
    for split in ("val", "test"):
        of_split = {image.file_name for image in table.split(split)}
        twins = {
            name: f"copy {number}.jpg"
            for number, name in enumerate(sorted(ids.keys() - {"copy 5.jpg", "copy 7.jpg"}))
            if number in (5, 7) and name in of_split
        }
        expected[split] = {ids[name]: ids[twin] for name, twin in twins.items()}
        assert len(expected[split]) == 1
    assert checks.leaks(store, table) == expected
    options = ["--run", "r", "--hidden", "8", "--xe.epochs", "1", "--rl.epochs", "0"]
    with caplog.at_level(logging.WARNING):
        assert train.main(["--work", str(leaking), *options]) == 0
    warned = [record.getMessage() for record in caplog.records]
    for split, pairs in expected.items():
        ((image, twin),) = pairs.items()
        start = f"1 {split} images are also training images under another id"
        assert any(text.startswith(start) and f"{image} (train {twin})" in text for text in warned)


def test_pictures_that_only_look_alike_are_not_reported(work: Path) -> None:
    table = captions.load(work / "captions.json")
    store = FeatureStore(work / "features.h5")
    assert checks.leaks(store, table) == {"val": {}, "test": {}}


def test_tf32_is_reported_where_there_is_none(caplog) -> None:
    checks.report_precision("tf32", torch.device("cpu"))
    assert "--precision tf32: cpu computes products in float32" in caplog.text


@pytest.mark.parametrize("slower", [8.2, 0.4])
def test_bfloat16_is_reported_where_the_processor_has_to_emulate_it(
    slower: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert checks.bfloat16_slowdown() > 0
    monkeypatch.setattr(checks, "bfloat16_slowdown", lambda: slower)
    checks.report_precision("float32", torch.device("cpu"))
    checks.report_precision("bfloat16", torch.device("meta"))
    assert not caplog.records
    checks.report_precision("bfloat16", torch.device("cpu"))
    warned = [record.getMessage() for record in caplog.records]
    assert [("8.2 times as long" in text, "leave the option out" in text) for text in warned] == (
        [(True, True)] if slower > 1 else []
    )
