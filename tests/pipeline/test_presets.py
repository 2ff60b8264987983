"""The presets: their options are valid, what is typed overrides them, COCO's run on a tiny COCO."""

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tyro
from PIL import Image, ImageDraw

from decoder import caption, train
from decoder.captioning.options import CaptionOptions
from decoder.runs.packaged import packaged_captioner
from decoder.training.options import TrainOptions
from features.backbones import names
from pipeline import extract, prepare
from pipeline.options import ExtractOptions, PrepareOptions
from pipeline.parsing import PARSING
from pipeline.presets import with_preset

PROJECT = Path(__file__).parents[2]
STAGES: dict[str, tuple[type, list[str]]] = {
    "prepare": (PrepareOptions, ["--dataset", "coco", "--root", "/data", "--work", "w"]),
    "extract": (ExtractOptions, ["--work", "w"]),
    "train": (TrainOptions, ["--work", "w", "--run", "r"]),
    "caption": (CaptionOptions, ["--run", "w/runs/r", "--split", "val"]),
}
SHAPES = {"circle": ImageDraw.ImageDraw.ellipse, "square": ImageDraw.ImageDraw.rectangle}
COLOURS = ("red", "green", "blue", "yellow", "black", "white")


def options(preset: str, stage: str) -> Any:
    """Return the options of a stage under a preset, parsed as the stage parses them."""
    kind, required = STAGES[stage]
    typed = [*required, "--preset", preset]
    return replace(tyro.cli(kind, args=with_preset(stage, typed), config=PARSING), preset=None)


@pytest.mark.parametrize(
    "preset",
    [
        *("shapes", "flickr8k", "flickr30k", "karpathy", "folder"),
        *("coco", "coco_att2in", "included", "transfer"),
    ],
)
def test_a_preset_has_only_valid_options(preset):
    assert set(options(preset, "extract").backbone.split("+")) <= set(names())
    assert options(preset, "train").xe.epochs != 0
    assert options(preset, "prepare").dataset == "coco"
    assert options(preset, "caption").split == "val"


def test_the_preset_of_flickr8k_has_the_settings_of_its_published_results():
    assert options("flickr8k", "extract").views == 7
    train = options("flickr8k", "train")
    assert (train.decoder.hidden, train.decoder.dropout) == (320, 0.5)
    assert (train.xe.epochs, train.xe.learning_rate, train.rl.epochs) == (9, 2e-3, 9)
    generate = options("flickr8k", "caption").generate
    assert (generate.rerank, generate.beam) == (True, 50)


def test_the_preset_of_the_included_captioner_repeats_its_recipe():
    config = json.loads((packaged_captioner() / "config.json").read_text())
    saved, train = config["options"], options("included", "train")
    assert asdict(train.decoder) == saved["decoder"]
    assert train.source_weights == saved["source_weights"]
    assert (train.batch_size, train.rl.learning_rate) == (20, saved["rl"]["learning_rate"])
    assert (train.xe.epochs, train.xe.learning_rate, train.rl.epochs) == (6, 2e-3, 4 + 5 + 12)
    extract = options("included", "extract")
    assert (extract.backbone, extract.views) == (config["features"]["backbone"], 3)
    generate = options("included", "caption").generate
    assert (generate.rerank, generate.width) == (True, 40)


def test_options_that_are_typed_override_a_preset():
    typed = ["--work", "w", "--run", "r", "--xe.epochs", "2", "--preset=shapes"]
    train = tyro.cli(TrainOptions, args=with_preset("train", typed), config=PARSING)
    assert (train.preset, train.xe.epochs, train.rl.epochs) == ("shapes", 2, 3)


@pytest.mark.parametrize("stage", [prepare, extract, train, caption])
def test_an_unknown_preset_is_refused_by_every_stage(stage, capsys):
    kind = stage.__name__.split(".")[1]
    assert stage.main([*STAGES[kind][1], "--preset", "flikr8k"]) == 2
    assert "unknown preset 'flikr8k': did you mean flickr8k" in capsys.readouterr().err


def test_an_error_about_an_option_of_the_preset_says_so(capsys):
    assert caption.main(["--preset", "flickr8k", "--sample", "--split", "val"]) == 2
    assert "(--preset sets --beam)" in capsys.readouterr().err
    assert caption.main(["--split", "val", "--preset"]) == 2
    assert capsys.readouterr().err.startswith("error: expected --preset NAME, found --preset; see")


def test_preset_for_your_own_pictures_is_the_defaults():
    for stage, (kind, required) in STAGES.items():
        assert options("folder", stage) == tyro.cli(kind, args=required)


def test_the_preset_that_starts_from_the_included_captioner_extracts_its_features():
    assert options("transfer", "train").init == "packaged"
    config = json.loads((packaged_captioner() / "config.json").read_text())
    assert options("transfer", "extract").backbone == config["features"]["backbone"]


def test_coco_presets_have_the_published_settings():
    for preset, model, hidden in (("coco", "updown", 1000), ("coco_att2in", "att2in", 512)):
        train = options(preset, "train")
        assert (train.decoder.model, train.decoder.hidden) == (model, hidden)
        assert (train.xe.learning_rate, train.rl.learning_rate) == (5e-4, 5e-5)
        assert (train.xe.epochs, train.xe.scheduled_sampling) == (30, 0.25)
        assert options(preset, "extract").backbone == "resnet101"


def make_coco(root: Path) -> None:
    """Write a tiny COCO: pictures in train2014 and val2014, captions, Karpathy's splits."""
    splits = ["train"] * 10 + ["restval"] * 4 + ["val"] * 4 + ["test"] * 4
    images = []
    for number, split in enumerate(splits, 1):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number:012}.jpg"
        colour, (shape, draw) = COLOURS[number % 6], list(SHAPES.items())[number % 2]
        picture = Image.new("RGB", (64, 48), "grey")
        draw(ImageDraw.Draw(picture), (8, 8, 40, 40), fill=colour)
        (root / folder).mkdir(parents=True, exist_ok=True)
        picture.save(root / folder / name)
        texts = (f"A {colour} {shape}.", f"There is a {colour} {shape} on grey.")
        sentences = [{"raw": text, "tokens": text.lower().strip(".").split()} for text in texts]
        images.append(
            {
                "filename": name,
                "filepath": folder,
                "split": split,
                "cocoid": number,
                "sentences": sentences,
            }
        )
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    (root / "annotations").mkdir()
    for year in ("train2014", "val2014"):
        of_year = [image for image in images if image["filepath"] == year]
        content = {
            "images": [{"id": i["cocoid"], "file_name": i["filename"]} for i in of_year],
            "annotations": [
                {"image_id": i["cocoid"], "caption": s["raw"]}
                for i in of_year
                for s in i["sentences"]
            ],
        }
        (root / "annotations" / f"captions_{year}.json").write_text(json.dumps(content))


@pytest.mark.timeout(600)
def test_run_all_trains_a_tiny_coco_with_its_preset_and_options_given_override_it(tmp_path):
    make_coco(tmp_path / "coco")
    work = tmp_path / "work"
    # ResNet-101's weights would have to be downloaded, and its decoder takes too long.
    given = ["--root", str(tmp_path / "coco"), "--work", str(work), "--min-count", "2"]
    given += ["--backbone", "efficientnet_lite0"]
    small = ["--hidden", "16", "--attention", "16", "--xe.epochs", "1", "--rl.epochs", "0"]
    command = [PROJECT / "run_all.sh", "coco", *given, "--", *small]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        for line in training.stdout:
            if line.startswith("== decoder.caption"):  # what follows knows no preset of COCO
                training.kill()
    run = work / "runs" / "coco"
    config = json.loads((run / "config.json").read_text())
    assert config["preset"] == "coco"
    saved = config["options"]
    expected = asdict(options("coco", "train"))
    expected["decoder"] |= {"hidden": 16, "attention": 16}
    expected["xe"]["epochs"], expected["rl"]["epochs"] = 1, 0
    assert saved == {name: expected[name] for name in saved}
    vocabulary = json.loads((work / "vocabulary.json").read_text())
    assert (vocabulary["min_count"], vocabulary["max_length"]) == (2, 16)
    assert json.loads((work / "extract.json").read_text())["backbone"] == "efficientnet_lite0"
