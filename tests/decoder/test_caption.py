"""Captioning through the command line: a split, your own pictures, files that do not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decoder import caption
from evaluation import score
from pipeline import extract
from pipeline.work import RunFolder


def test_your_own_pictures_are_captioned_and_broken_ones_reported(captioner, tmp_path, capsys):
    """The CNN is the same, so a picture of the data set gets the caption of its stored features."""
    run = captioner / "runs" / "captioner"
    assert caption.main(["--run", str(run), "--split", "val"]) == 0
    results = json.loads((run / "captions_val.json").read_text())
    table = json.loads((captioner / "captions.json").read_text())
    names = {image["id"]: image["file_name"] for image in table["images"]}
    pictures = [captioner / "images" / names[result["image_id"]] for result in results]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    capsys.readouterr()

    paths = [str(path) for path in (*pictures, broken, tmp_path / "missing.png")]
    assert caption.main(["--run", str(run), *paths]) == 1
    printed = capsys.readouterr()
    lines = [line.split("\t") for line in printed.out.splitlines()]
    assert [path for path, _ in lines] == [str(path) for path in pictures]
    expected = [result["caption"] for result in results]
    written = [text[:-1].lower() for _, text in lines]
    agreeing = sum(a == b for a, b in zip(written, expected, strict=True))
    assert agreeing >= len(expected) - 1, "float rounding may tip one beam, not more"
    assert "broken.jpg" in printed.err
    assert "missing.png" in printed.err


def test_folders_are_searched_for_pictures_and_json_is_printed(captioner, tmp_path, capsys):
    inner = tmp_path / "with space" / "inner"
    inner.mkdir(parents=True)
    scene = Image.open(min((captioner / "images").iterdir()))
    scene.convert("CMYK").save(inner / "é.jpg")
    scene.convert("RGBA").save(tmp_path / "b.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    run = str(captioner / "runs" / "captioner")
    assert caption.main(["--run", run, "--json", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["b.PNG", "é.jpg"]
    for line in lines:
        assert line["caption"].endswith(".")
        assert line["log_probability"] < 0


def test_attention_is_saved_for_each_word_of_the_first_captions(captioner):
    run = captioner / "runs" / "captioner"
    assert caption.main(["--run", str(run), "--split", "train", "--attention", "5"]) == 0
    captions = json.loads((run / "captions_train.json").read_text())
    with np.load(run / "attention_train.npz") as saved:
        ids, words, weights = saved["image_id"], saved["words"], saved["weights"]
    assert ids.tolist() == [caption["image_id"] for caption in captions[:5]]
    for caption_words, attention, result in zip(words, weights, captions, strict=False):
        count = sum(word != "" for word in caption_words)
        assert " ".join(caption_words[:count]).replace(" '", "'") == result["caption"]
        np.testing.assert_allclose(attention[:count].sum((1, 2)), 1, rtol=1e-5)
        assert not attention[count:].any()
    assert weights.shape[2:] == (7, 7)


def test_a_missing_split_or_run_is_named(captioner, capsys):
    run = str(captioner / "runs" / "captioner")
    assert caption.main(["--run", run, "--split", "tests"]) == 2
    assert "has no split 'tests'; it has train" in capsys.readouterr().err
    assert caption.main(["--run", str(captioner / "runs" / "none"), "--split", "val"]) == 2
    assert "create it with python -m decoder.train" in capsys.readouterr().err
    assert caption.main(["--run", run]) == 2
    assert (
        "paths of pictures, or --split NAME, --alt PAGE or --shards PATTERN"
        in capsys.readouterr().err
    )


def test_a_store_of_another_backbone_is_refused(captioner, work, capsys):
    """A decoder trained on the features of one CNN writes nonsense from those of another."""
    run = Path(shutil.copytree(captioner / "runs" / "captioner", work / "runs" / "captioner"))
    (work / "features.h5").unlink()
    stage = ["--work", str(work), "--backbone", "efficientnet_lite1", "--grid", "4"]
    assert extract.main(stage) == 0
    assert caption.main(["--run", str(run), "--split", "val"]) == 2
    error = capsys.readouterr().err
    assert "efficientnet_lite0" in error
    assert "efficientnet_lite1" in error


def test_a_vocabulary_that_does_not_fit_the_weights_is_refused(captioner, work, capsys):
    run = Path(shutil.copytree(captioner / "runs" / "captioner", work / "runs" / "captioner"))
    vocabulary = json.loads((run / "vocabulary.json").read_text())
    for words in (
        [*vocabulary["words"], "zebra"],
        [*vocabulary["words"][:4], *reordered(vocabulary)],
    ):
        changed = {**vocabulary, "words": words, "counts": [1] * len(words)}
        (run / "vocabulary.json").write_text(json.dumps(changed))
        assert caption.main(["--run", str(run), "--split", "val"]) == 2
        assert "is not the vocabulary that the run was trained with" in capsys.readouterr().err


def reordered(vocabulary: dict) -> list[str]:
    """The same words in another order, which the shapes of the weights do not reveal."""
    return vocabulary["words"][:3:-1]


def test_weights_of_another_size_are_refused(captioner, work, capsys):
    run = Path(shutil.copytree(captioner / "runs" / "captioner", work / "runs" / "captioner"))
    config = json.loads((run / "config.json").read_text())
    config["options"]["decoder"]["hidden"] = 32
    (run / "config.json").write_text(json.dumps(config))
    assert caption.main(["--run", str(run), "--split", "val"]) == 2
    assert "does not fit the run's config.json and vocabulary.json" in capsys.readouterr().err


def test_captions_written_to_another_file_leave_the_others_alone(captioner, tmp_path):
    run = captioner / "runs" / "captioner"
    assert caption.main(["--run", str(run), "--split", "val"]) == 0
    before = {p: p.read_bytes() for p in (run / "captions_val.json", run / "attention_val.npz")}
    options = ["--sample", "--temperature", "2", "--top-k", "9", "--top-p", "0.9"]
    out = tmp_path / "sampled.json"
    stage = ["--run", str(run), "--split", "val", "--out", str(out), *options]
    assert caption.main(stage) == 0
    assert len(json.loads(out.read_text())) == len(json.loads(before[run / "captions_val.json"]))
    assert {path: path.read_bytes() for path in before} == before
    # val.json shares no file with captions_val.json, though both are of the split val.
    stage[stage.index("--out") + 1] = str(run / "val.json")
    assert caption.main([*stage, "--attention", "1"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    with np.load(run / "attention_val_val.npz") as saved:
        assert len(saved["image_id"]) == 1
    for name in ("val.json", "attention_val_val.npz"):  # the captioner is shared
        (run / name).unlink()


def test_a_run_of_the_same_name_does_not_replace_captions(captioner, tmp_path, capsys):
    run, other, work = captioner / "runs" / "captioner", tmp_path / "captioner", tmp_path / "work"
    shutil.copytree(run, other)
    work.mkdir()
    for name in ("captions.json", "features.h5"):
        shutil.copy(captioner / name, work)
    stage = ["--split", "val", "--work", str(work), "--run"]
    assert caption.main([*stage, str(run)]) == 0
    assert caption.main([*stage, str(run), "--beam", "2"]) == 0
    capsys.readouterr()
    assert caption.main([*stage, str(other)]) == 2
    out = work / "captions_val_captioner.json"
    assert f"{out} has the captions of {run.resolve()}, another run" in capsys.readouterr().err
    assert caption.main([*stage, str(other), "--force"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sample", "--beam", "3"], "--beam is for the search"),
        (["--sample", "--groups", "2", "--samples", "4"], "--groups is for the beam search"),
        (["--top-k", "9"], "--top-k and --top-p need --sample"),
        (
            ["--captions", "10"],
            "10 needs --rerank, which searches with 40, or a --beam of at least",
        ),
        (
            ["--captions", "10", "--beam", "9"],
            "--captions 10 needs a --beam of at least 10, found 9",
        ),
    ],
)
def test_options_without_effect_are_refused(options, message, capsys):
    assert caption.main(["picture.jpg", *options]) == 2
    assert message in capsys.readouterr().err


def test_neutral_words_are_refused_for_captions_to_be_scored(captioner, capsys):
    split = ["--run", str(captioner / "runs" / "none"), "--split", "val", "--neutral"]
    assert caption.main([*split, "yes"]) == 2
    assert "--neutral is for captions that people read" in capsys.readouterr().err
    for harmless in ("auto", "no"):
        assert caption.main([*split, harmless]) == 2
        assert "--neutral" not in capsys.readouterr().err


def test_generation_options_on_the_command_line_take_effect(captioner, tmp_path):
    run = str(captioner / "runs" / "captioner")
    written = {}
    for name, options in {
        "greedy": ["--beam", "1"],
        "short": ["--max-length", "2"],
        "likely": ["--length-penalty", "0"],
        "long": ["--length-penalty", "2"],
        "xe": ["--weights", "best_xe"],
    }.items():
        out = tmp_path / f"{name}.json"
        stage = ["--run", run, "--split", "test", "--out", str(out), *options]
        assert caption.main(stage) == 0
        written[name] = [len(result["caption"].split()) for result in json.loads(out.read_text())]
    assert max(written["short"]) <= 2
    assert sum(written["long"]) > sum(written["likely"])


def test_a_truncated_checkpoint_is_refused(captioner, work, capsys):
    run = Path(shutil.copytree(captioner / "runs" / "captioner", work / "runs" / "captioner"))
    weights = run / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert caption.main(["--run", str(run), "--split", "val"]) == 2
    assert "not a complete safetensors file" in capsys.readouterr().err


def test_a_split_has_the_scores_that_the_training_measured(captioner, tmp_path):
    run, out = RunFolder(captioner / "runs" / "captioner"), tmp_path / "captions_val.json"
    stage = ["--run", str(run.path), "--split", "val", "--beam", "2", "--out", str(out)]
    assert caption.main(stage) == 0
    files = ["--captions", str(captioner / "captions.json"), "--results", str(out)]
    assert score.main(files) == 0
    found = json.loads((tmp_path / "scores_val.json").read_text())["corpus"]["CIDEr"]
    lines = map(json.loads, run.metrics.read_text().splitlines())
    assert found == pytest.approx(max(line["val"]["CIDEr"] for line in lines))
