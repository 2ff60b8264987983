"""`python -m evaluation.score --table`, which compares runs."""

import json
import random
import re
import shutil
import statistics
from pathlib import Path

import pytest

from evaluation.score import main
from pipeline import captions
from pipeline.captions import Caption, CaptionTable, Image

IMAGES = range(1, 13)
NAMES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
FIGURES = ["distinct words", "not in training", "bad endings", "repeated phrase", "mean length"]
COLOURS = ("red", "green", "blue", "yellow")


def references(number: int) -> tuple[str, str]:
    thing = ("dog", "ball", "cat")[number % 3]
    return (
        f"a {COLOURS[number % 4]} {thing} on the grass",
        f"the {thing} number {number} lies there",
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """Runs scored by the toolkit: "good", and "worse", whose captions end in other words."""
    work = tmp_path_factory.mktemp("table")
    images = []
    for number in (*IMAGES, 13):
        made = tuple(Caption(text, tuple(text.split())) for text in references(number))
        images.append(Image(number, f"{number}.jpg", "val" if number < 13 else "train", made))
    captions.save(CaptionTable("drawn", work, tuple(images)), work / "captions.json")
    # Their quality varies from image to image, so that the intervals are wide.
    good = {n: references(n)[0] if n % 2 else f"A {COLOURS[n % 4]} ball and grass" for n in IMAGES}
    worse = {n: re.sub(r"\w+$", "in the", text) for n, text in good.items()}
    good[7] = references(13)[0].upper()  # a training caption in capitals; image 1 has one too
    for name, written in {"good": good, "worse": worse}.items():
        run = work / "runs" / name
        run.mkdir(parents=True)
        results = [{"image_id": n, "caption": text} for n, text in written.items()]
        (run / "captions_val.json").write_text(json.dumps(results))
        given = ["--captions", str(work / "captions.json"), "--bootstrap", "300"]
        assert main([*given, "--results", str(run / "captions_val.json")]) == 0
    return work / "runs"


@pytest.fixture
def runs(scored, tmp_path, monkeypatch) -> Path:
    """A test's own copy of the scored runs, in the current folder."""
    shutil.copytree(scored, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def change(run: Path, scale: float = 1.0, **values: object) -> Path:
    """Change entries of a scores file, and multiply every CIDEr."""
    path = run / "scores_val.json"
    content = json.loads(path.read_text())
    content["corpus"]["CIDEr"] *= scale
    content["per_image"]["CIDEr"] = {i: x * scale for i, x in content["per_image"]["CIDEr"].items()}
    path.write_text(json.dumps(content | values))
    return path


def table(capsys, *options: str) -> dict[str, list[str]]:
    """Return the cells of the printed table by the name of their row."""
    capsys.readouterr()
    assert main(["--table", *options]) == 0
    rows = [re.split(r" {3,}", line) for line in capsys.readouterr().out.splitlines()[2:]]
    rows = rows[: rows.index([""])]
    return {row[0]: row[1:] for row in rows}


def test_a_table_has_every_score_with_its_interval_and_the_diagnostics(runs, capsys):
    cells = table(capsys, "good", "worse", "--bootstrap", "300")
    assert list(cells) == ["", *NAMES, *FIGURES]
    assert cells[""] == ["good", "worse"]
    for column, run in enumerate(("good", "worse")):
        record = json.loads((runs / run / "scores_val.json").read_text())
        for label, (name, value) in zip(NAMES, record["corpus"].items(), strict=True):
            low, high = record["intervals"][name]
            assert cells[label][column].removesuffix(" *") == f"{value:.3f} ({low:.3f}-{high:.3f})"
    assert cells["bad endings"] == ["0.0%", "100.0%"]
    assert cells["not in training"] == ["83.3%", "100.0%"]  # images 1 and 7
    assert cells["repeated phrase"] == ["0.0%", "0.0%"]


def test_differences_are_marked_by_a_paired_bootstrap(runs, capsys):
    shutil.copytree("good", "equal")
    shutil.copytree("good", "shifted")
    change(runs / "shifted", 0.97)
    cells = table(capsys, "good", "worse", "equal", "shifted")
    for label in NAMES:
        good, worse, equal, shifted = cells[label]
        assert "*" not in good
        assert equal == good
        assert worse.endswith("*")
        # The difference is far smaller than the intervals, but the same in every resample.
        assert shifted.endswith("*") is (label == "CIDEr")
    assert "differs from good: the 95% interval of the paired difference" in printed(capsys, "good")

    # Better on half of the images and worse on the others: not significant.
    record = json.loads((runs / "equal" / "scores_val.json").read_text())
    of_image = record["per_image"]["CIDEr"]
    mixed = {i: x + (0.5 if int(i) % 4 < 2 else -0.4) for i, x in of_image.items()}
    record["per_image"]["CIDEr"] = mixed
    change(runs / "equal", per_image=record["per_image"])
    differences = [mixed[i] - x for i, x in of_image.items()]
    draw = random.Random(1)
    drawn = sorted(statistics.fmean(draw.choices(differences, k=12)) for _ in range(2000))
    assert drawn[50] < 0 < drawn[1950]
    assert not table(capsys, "good", "equal")["CIDEr"][1].endswith("*")


def printed(capsys, *options: str) -> str:
    assert main(["--table", *options, "worse"]) == 0
    return capsys.readouterr().out


def test_the_order_of_images_in_a_file_does_not_matter(runs, capsys):
    expected = table(capsys, "good", "worse")
    record = json.loads((runs / "worse" / "scores_val.json").read_text())
    for key in ("per_image", "statistics"):
        record[key] = {n: dict(reversed(rows.items())) for n, rows in record[key].items()}
    (runs / "worse" / "scores_val.json").write_text(json.dumps(record))
    assert table(capsys, "good", "worse") == expected


def test_runs_with_different_seeds_are_shown_as_mean_and_standard_deviation(runs, capsys):
    for seed, scale in ((1, 1.0), (2, 1.1), (3, 1.2)):
        shutil.copytree("good", f"seed-{seed}")
        change(runs / f"seed-{seed}", scale)
    shutil.copytree("worse", "seed-3.old")  # moved aside by a new training
    cider = json.loads((runs / "good" / "scores_val.json").read_text())["corpus"]["CIDEr"]
    of_seeds = [cider, 1.1 * cider, 1.2 * cider]
    expected = f"{statistics.fmean(of_seeds):.3f} ± {statistics.stdev(of_seeds):.3f}"
    listed = table(capsys, "good", "mine=seed-1,seed-2,seed-3")
    assert listed[""] == ["good", "mine (3 runs)"]
    assert listed["CIDEr"][1].startswith(f"{expected} (")
    assert listed["CIDEr"][1].endswith(" *")
    assert listed["METEOR"][1].split(" (")[0].endswith("± 0.000")
    assert table(capsys, "good", "mine=seed-*") == listed
    assert table(capsys, "good", f"mine={runs}/seed-*") == listed
    assert table(capsys, "seed-*")[""] == ["seed-1", "seed-2", "seed-3"]


def test_markdown_has_a_row_for_each_run(runs, capsys):
    cells = table(capsys, "good", "worse")
    assert main(["--table", "good", "worse", "--markdown"]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("|")]
    rows = [line.strip("|").split("|") for line in lines]
    assert [cell.strip() for cell in rows[0]] == ["run", *NAMES, *FIGURES]
    assert len(lines) == 4
    for column, row in enumerate(rows[2:]):
        shown = [cell.strip().replace("\\*", "*") for cell in row]
        assert shown == [of_row[column] for of_row in cells.values()]


def test_without_resamples_there_are_neither_intervals_nor_marks(runs, capsys):
    cells = table(capsys, "good", "worse", "--bootstrap", "0")
    assert all(re.fullmatch(r"\d\.\d{3}", cell) for name in NAMES for cell in cells[name])


def test_a_score_that_does_not_exist_is_shown_as_none(runs, capsys):
    record = json.loads((runs / "worse" / "scores_val.json").read_text())
    record["corpus"]["CIDEr"] = None
    record["per_image"]["CIDEr"] = dict.fromkeys(record["per_image"]["CIDEr"])
    record["diagnostics"]["new_captions"] = None  # the data set has no training images
    (runs / "worse" / "scores_val.json").write_text(json.dumps(record))
    cells = table(capsys, "good", "worse")
    assert cells["CIDEr"][1] == cells["not in training"][1] == "none"


def test_scores_of_other_images_or_references_are_not_compared(runs, capsys):
    change(runs / "worse", references="other")
    assert main(["--table", "good", "worse"]) == 2
    assert "scored against different reference captions" in capsys.readouterr().err
    record = json.loads((runs / "worse" / "scores_val.json").read_text())
    for key in ("per_image", "statistics"):
        for rows in record[key].values():
            del rows["5"]
    record["images"] -= 1
    (runs / "worse" / "scores_val.json").write_text(json.dumps(record))
    assert main(["--table", "good", "worse"]) == 2
    assert "1 are in only one of them: 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("statistics", {"Bleu": {}, "METEOR": {}}, "statistics of Bleu for image 1, found nothing"),
        ("statistics", [], "expected statistics to be an object, found []"),
        ("statistics", {"Bleu": {str(n): [1] for n in IMAGES}}, "10 statistics of Bleu for image"),
        ("per_image", {}, "no scores of single images for ['Bleu_1'"),
        ("per_image", {"CIDEr": {"1": "high"}}, "to be a finite number, found 'high'"),
        ("per_image", {"CIDEr": {"1": True}}, "to be a finite number, found True"),
        ("per_image", {"CIDEr": {"dog": 1}}, "'dog'"),
        ("intervals", {"CIDEr": [0.1, None]}, "a bound of CIDEr to be a finite number"),
        ("images", 13, "expected images to be 12, the number of images with a score, found 13"),
        ("diagnostics", {"bad_endings": 0.5}, "the diagnostics ['distinct_words'"),
        ("corpus", {"SPICE": 0.2}, "no scores of single images for ['SPICE']"),
    ],
)
def test_a_broken_file_is_named(name, value, message, runs, capsys):
    path = change(runs / "worse", **{name: value})
    assert main(["--table", "good", "worse"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert f"{path.relative_to(runs)} is not a scores file: " in error
    assert "score again with python -m evaluation.score --force" in error


def test_a_file_of_version_0_1_cannot_be_compared_and_says_what_to_do(runs, capsys):
    record = json.loads((runs / "worse" / "scores_val.json").read_text())
    del record["statistics"]
    (runs / "worse" / "scores_val.json").write_text(json.dumps(record))
    assert main(["--table", "good", "worse/scores_val.json"]) == 2
    assert "older version; score again with python -m evaluation.score --force" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "good", "good"], "two columns are called good; choose other names"),
        (["--table", "good", "--split", "test"], "good has no scores of test"),
        (["--table", "absent"], "absent is not there"),
        (["--table", "good", "--results", "x"], "leave out --captions, --results and --out"),
        (["--markdown", "--captions", "x", "--results", "y"], "--markdown needs --table"),
        ([], "expected --captions and --results, or --table"),
    ],
)
def test_options_are_checked(options, message, runs, capsys):
    assert main(options) == 2
    assert message in capsys.readouterr().err
