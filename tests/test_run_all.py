"""run_all.sh from installation to report, on a few drawn scenes."""

import json
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
SCORES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


def run_all(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROJECT / "run_all.sh", *options], capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.timeout(600)
def test_run_all_ends_with_scores_and_a_report_and_skips_finished_stages(tmp_path):
    options = ["shapes", "--images", "30", "--work", str(tmp_path / "work folder")]
    training = ["--", "--hidden", "16", "--xe.epochs", "1", "--rl.epochs", "1"]
    first = run_all(*options, *training)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "work folder" / "runs" / "shapes"
    scores = json.loads((run / "scores_test.json").read_text())
    assert tuple(scores["corpus"]) == SCORES
    assert tuple(scores["intervals"]) == SCORES
    assert (run / "scores_test_xe.json").is_file()
    for name in SCORES:
        assert name in first.stdout
    assert str(run / "report.html") in first.stdout

    second = run_all(*options, *training)
    assert second.returncode == 0, second.stderr
    skipped = [line for line in second.stdout.splitlines() if "unchanged, skipped" in line]
    stages = second.stdout.count("\n== ")
    assert len(skipped) == stages == 8
    assert "CIDEr" in second.stdout, "the table of scores is printed again"

    changed = run_all(*options, *training[:-1], "2")
    assert changed.returncode == 0, changed.stderr
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["xe", "rl", "rl"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["shaps"], "did you mean shapes?"),
        (["flickr8k"], "needs --root"),
        (["--wrok", "x"], "unknown option --wrok"),
        (["coco", "--preset", "cocoa"], "unknown --preset cocoa; expected shapes, flickr8k"),
        (["shapes", "--backbone"], "--backbone needs a value"),
        (["flickr8k", "--root", "/nowhere"], "/nowhere"),
    ],
)
def test_invalid_options_end_run_all_with_status_2(options, expected, tmp_path):
    result = (
        run_all("--work", str(tmp_path), *options)
        if options[0] == "--wrok"
        else run_all(options[0], "--work", str(tmp_path), *options[1:])
    )
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
