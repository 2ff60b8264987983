"""Files of version 0.2.0 are still read: a work directory, runs, scores, a captioner.

tests/data/version_0_2 was made by that version from 12 scenes of shapes; their pictures are left
out. `stopped` has the state and metrics of the same run after its first epoch of REINFORCE.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from decoder import caption, train
from evaluation import report, score
from pipeline import captions, vocabulary
from tests.pictures import moon

DATA = Path(__file__).parent / "data" / "version_0_2"
# With these, a decoder of four units writes something else for most images.
LONG = ["--no-bad-endings", "--length-penalty", "1.5", "--no-repeat-ngram", "2"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run in a copy of the work directory."""
    shutil.copytree(DATA, tmp_path / "0.2")
    return tmp_path / "0.2" / "shapes" / "runs" / "first"


def written(file: Path) -> dict[int, tuple[str, float]]:
    """Return the caption and the mean log-probability of each image."""
    records = json.loads(file.read_text())
    return {r["image_id"]: (r["caption"], r["mean_log_probability"]) for r in records}


def test_the_work_directory_is_read():
    table = captions.load(DATA / "shapes" / "captions.json")
    assert [len(table.split(name)) for name in ("train", "val", "test")] == [10, 1, 1]
    words = vocabulary.load(DATA / "shapes" / "vocabulary.json")
    assert {"a", "red", "bird"} <= set(words.words)


@pytest.mark.parametrize(("weights", "suffix"), [("best", ""), ("best_xe", "_xe")])
def test_a_run_writes_the_same_captions(run, weights, suffix):
    out = run / "again.json"
    options = ["--run", str(run), "--split", "train", "--weights", weights, "--out", str(out)]
    assert caption.main([*options, *LONG]) == 0
    before, now = written(run / f"captions_train{suffix}.json"), written(out)
    assert len({text for text, _ in before.values()}) > 3
    for image, (text, log_probability) in before.items():
        assert now[image] == (text, pytest.approx(log_probability, rel=1e-4))


def test_a_captioner_captions_a_picture(run, tmp_path, capsys):
    picture = tmp_path / "noise.png"
    moon((64, 64)).save(picture)
    assert caption.main([str(picture), "--run", str(DATA / "captioner"), *LONG]) == 0
    path, text = capsys.readouterr().out.rstrip("\n").split("\t")[:2]
    assert (path, len(text.split()) > 3) == (str(picture), True)


def test_a_stopped_run_continues_to_the_weights_that_it_would_have_had(run, capsys):
    finished = load_file(run / "best.safetensors")
    epochs = (run / "metrics.jsonl").read_text().splitlines()
    (run / "best.safetensors").unlink()
    shutil.copytree(DATA / "stopped", run, dirs_exist_ok=True)
    work = str(run.parents[1])
    assert train.main(["--work", work, "--like", str(run), "--run", "first", "--resume"]) == 0
    assert "continuing" in capsys.readouterr().out
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert lines[:-1] == epochs[:-1]
    assert json.loads(lines[-1])["loss"] == pytest.approx(json.loads(epochs[-1])["loss"], rel=1e-3)
    for name, tensor in load_file(run / "best.safetensors").items():
        torch.testing.assert_close(tensor, finished[name], rtol=1e-3, atol=1e-5)


def test_a_finished_run_is_not_overwritten(run, capsys):
    work = str(run.parents[1])
    assert train.main(["--work", work, "--like", str(run), "--run", "first"]) == 2
    assert "already has a run; start again with --force" in capsys.readouterr().err


def test_scores_are_read_and_the_report_is_made(run, capsys):
    table = captions.load(run.parents[1] / "captions.json")
    for image in table.images:
        table.path(image).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(table.path(image))
    assert score.main(["--table", str(run), "--split", "train"]) == 0
    assert "0.384" in capsys.readouterr().out
    assert report.main(["--run", str(run), "--split", "train"]) == 0
    page = (run / "report.html").read_text()
    assert "0.384" in page
    assert "a white a on a black a" in page
