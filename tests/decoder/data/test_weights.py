"""Sources that are weighted: how often their images are drawn in an epoch."""

import json
from collections import Counter
from pathlib import Path

import pytest

from decoder import train
from decoder.data.single_store import SingleStoreReader
from decoder.data.weights import parse_weights
from features.errors import UserError
from features.store import FeatureStore
from pipeline import captions, vocabulary
from tests.decoder.conftest import SMALL


@pytest.fixture
def two_sources(work: Path) -> Path:
    """A work directory whose training images 1 to 7 are from "mine", the others from "shapes"."""
    content = json.loads((work / "captions.json").read_text())
    training = [image for image in content["images"] if image["split"] == "train"]
    for image in training[:7]:
        image["source"] = "mine"
    (work / "captions.json").write_text(json.dumps(content))
    return work


def drawn(work: Path, weights: dict[str, float], epoch: int = 0) -> tuple[Counter[int], list[int]]:
    """Return how often each image of "mine" and any other is drawn in an epoch, and all draws."""
    table = captions.load(work / "captions.json")
    words = vocabulary.load(work / "vocabulary.json")
    store = FeatureStore(work / "features.h5")
    reader = SingleStoreReader(store, table, words, 4, seed=1, grid=False, weights=weights)
    batches = [batch.image_ids.tolist() for batch in reader.epoch("rl", epoch)]
    assert len(batches) == reader.batches_per_epoch
    # An epoch that is continued in the middle draws the same images.
    later = [batch.image_ids.tolist() for batch in reader.epoch("rl", epoch, 3)]
    assert later == batches[3:]
    draws = [image for batch in batches for image in batch]
    return Counter(draws), draws


def test_images_are_drawn_by_the_weight_of_their_source(two_sources: Path) -> None:
    table = captions.load(two_sources / "captions.json")
    mine = [image.id for image in table.split("train") if image.source == "mine"]
    others = [image.id for image in table.split("train") if image.source == "shapes"]
    assert len(mine) == 7
    once, _ = drawn(two_sources, {})
    assert once == Counter(mine + others)
    counts, _ = drawn(two_sources, {"mine": 2})
    assert counts == Counter(mine * 2 + others)
    counts, draws = drawn(two_sources, {"mine": 1.5, "shapes": 0.5})
    assert sorted(counts[image] for image in mine) == [1, 1, 1, 2, 2, 2, 2]  # 10.5 is rounded up
    assert sum(counts[image] for image in others) == (len(others) + 1) // 2
    assert max(counts[image] for image in others) == 1
    assert drawn(two_sources, {"mine": 1.5, "shapes": 0.5})[1] == draws
    assert drawn(two_sources, {"mine": 1.5, "shapes": 0.5}, epoch=1)[1] != draws


@pytest.mark.parametrize("text", ["mine", "mine=", "mine=0", "mine=nan", "mine=1,mine=2", "=2", ""])
def test_weights_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected NAME=WEIGHT"):
        parse_weights(text)


def test_a_training_records_its_weights_and_sources(
    two_sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--work", str(two_sources), "--run", "w", *SMALL, "--xe.epochs", "1"]
    command += ["--rl.epochs", "0", "--source-weights"]
    assert train.main([*command, "his=2"]) == 2
    assert "names 'his', but the training images are from 'mine', 'shapes'" in (
        capsys.readouterr().err
    )
    assert train.main([*command, "mine=2.5"]) == 0
    config = json.loads((two_sources / "runs" / "w" / "config.json").read_text())
    assert config["options"]["source_weights"] == "mine=2.5"
    images = sum(config["sources"].values())
    assert config["sources"] == {"mine": 7, "shapes": images - 7}
    assert train.main([*command, "mine=2.5"]) == 0
    assert "unchanged, skipped" in capsys.readouterr().out


def test_without_sources_a_run_is_what_it_was(work: Path) -> None:
    """An image without a source is the data set's own, and is written as before."""
    before = (work / "captions.json").read_bytes()
    table = captions.load(work / "captions.json")
    assert {image.source for image in table.images} == {"shapes"}
    captions.save(table, work / "captions.json")
    assert (work / "captions.json").read_bytes() == before
