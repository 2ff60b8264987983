"""`python -m evaluation.report`, through its command line."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from evaluation.charts import chart
from evaluation.gallery import best_middle_worst, evenly_spaced
from evaluation.report import main

EVIL = "<script>alert('dog')</script> & \"quotes\""


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def finished(work, write_results, written):
    """A complete run: both phases, captions before and after REINFORCE, scores and attention."""
    run = write_results(written | {7: EVIL}).parent
    write_results(dict.fromkeys(written, "a thing"), "captions_val_xe.json")
    config = {
        "options": {"decoder": {"model": "updown", "cell": "lstm"}, "xe": {"epochs": 3}},
        "seed": 7,
        "versions": {"torch": "2.5.1"},
        "features": {"backbone": "efficientnet_lite0", "grid": [2, 3]},
        "fingerprint": "abc123",
        "parameters": 1234567,
    }
    (run / "config.json").write_text(json.dumps(config))
    lines = []
    for epoch in range(1, 6):
        phase = "xe" if epoch <= 3 else "rl"
        line = {"phase": phase, "epoch": epoch, "loss": 3.0 / epoch, "seconds": 60.0}
        line["reward"] = None if phase == "xe" else 0.5 + epoch / 100
        line["val"] = {"CIDEr": epoch / 10, "greedy_CIDEr": epoch / 11, "Bleu_4": 0.1}
        lines.append(json.dumps(line))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for name, gain in (("scores_val.json", 0.0), ("scores_val_xe.json", -0.1)):
        by_image = {str(image): image / 10 for image in written}
        scores = {  # as version 0.1 wrote it
            "split": "val",
            "images": len(written),
            "left_out": 0,
            "corpus": {"Bleu_1": 0.7 + gain, "CIDEr": 1.234 + gain, "METEOR": None},
            "intervals": {"Bleu_1": [0.65, 0.75], "CIDEr": [1.1, 1.3], "METEOR": [None, None]},
            "confidence": 0.95,
            "per_image": dict.fromkeys(("Bleu_1", "CIDEr", "METEOR"), by_image),
            "diagnostics": {
                "bad_endings": 0.125,
                "distinct_words": 1500,
                "distinct_captions": 0.9,
                "mean_length": 9.5,
            },
            "toolkit": {"pycocoevalcap": "1.2"},
        }
        (run / name).write_text(json.dumps(scores))
    save_attention(run, np.random.default_rng(0).random((8, 3, 2, 3), dtype=np.float32))
    return run


def save_attention(run: Path, weights: np.ndarray) -> None:
    words = np.array([["a", "dog", ""]] * len(weights))
    images = np.arange(1, len(weights) + 1)
    np.savez(run / "attention_val.npz", image_id=images, words=words, weights=weights)


def test_the_page_shows_the_run_and_needs_nothing_but_itself(finished, capsys):
    assert main(["--run", str(finished)]) == 0
    assert str(finished / "report.html") in capsys.readouterr().out
    page = Page(finished / "report.html")
    assert "Up-Down on drawn" in page.text
    assert "1.234 1.100 to 1.300 1.134 before REINFORCE" in page.text
    assert "12.5% of the captions end in mid-air" in page.text
    assert "3 epochs of cross-entropy and 2 of REINFORCE in 5 minutes" in page.text
    assert "Before REINFORCE: “a thing”" in page.text
    assert "1,234,567" in page.text
    assert "efficientnet_lite0" in page.text
    assert "abc123" in page.text
    # Nothing is loaded from elsewhere: every picture is inside, there is no script and no link.
    pictures = [image["src"] for image in page.all("img")]
    assert all(source.startswith(("data:image/jpeg;", "data:image/png;")) for source in pictures)
    assert not page.all("script")
    assert not page.all("link")
    assert "http" not in page.source
    assert all("alt" in image for image in page.all("img"))
    assert len(page.all("svg")) == 4
    assert all(svg["aria-label"] for svg in page.all("svg"))


def test_reranked_captions_are_shown_beside_the_others(finished, write_results, written, capsys):
    assert main(["--run", str(finished)]) == 0
    assert "eranked" not in Page(finished / "report.html").text
    write_results(written | {7: "a better dog"}, "captions_val_reranked.json")
    scores = json.loads((finished / "scores_val.json").read_text())
    scores["corpus"]["CIDEr"] = 1.345
    (finished / "scores_val_reranked.json").write_text(json.dumps(scores))
    assert main(["--run", str(finished)]) == 0
    assert "unchanged" not in capsys.readouterr().out
    page = Page(finished / "report.html")
    assert "1.134 before REINFORCE 1.345 reranked" in page.text
    assert "Reranked: “a better dog”" in page.text
    assert "Unchanged by reranking" in page.text


def test_the_page_has_the_commands_that_repeat_the_run(finished):
    config = json.loads((finished / "config.json").read_text())
    config |= {
        "options": {
            "decoder": {"model": "updown", "cell": "lstm"},
            "xe": {"epochs": 3, "label_smoothing": 0.0},
            "seed": 7,
        },
        "vocabulary": "0a1b",
        "captions": {"train": "2c3d"},
        "machine": {"threads": 2},
        "reward": "CIDEr-D, n 1-4",
    }
    (finished / "config.json").write_text(json.dumps(config))
    stamps = {
        finished.parents[1]: {
            "prepare": {"dataset": "drawn set", "work": ".", "root": "/home/me", "min_count": 5},
            "extract": {"work": ".", "grid": 7, "verify": False, "workers": None},
        },
        finished: {
            "caption-val": {
                "run": [".", "../other"],
                "pictures": [],
                "generate": {"beam": 5},
                "split": "val",
            },
            "scores_val": {"captions": "/home/me/w", "results": "captions_val.json", "spice": True},
        },
    }
    for folder, of_stage in stamps.items():
        (folder / ".done").mkdir()
        for stage, options in of_stage.items():
            (folder / ".done" / f"{stage}.json").write_text(json.dumps({"options": options}))
    assert main(["--run", str(finished)]) == 0
    page = Page(finished / "report.html")
    lines = [" ".join(line.split()) for text in page.texts for line in text.splitlines()]
    assert [line for line in lines if line.startswith("python -m")][:5] == [
        "python -m pipeline.prepare --work WORK --root DIR --dataset 'drawn set' --min-count 5",
        "python -m pipeline.extract --work WORK --grid 7",
        "python -m decoder.train --work WORK --run first --model updown --cell lstm --xe.epochs 3 "
        "--xe.label-smoothing 0.0 --seed 7",
        "python -m decoder.caption --run WORK/runs/first --run WORK/runs/other "
        "--beam 5 --split val",
        "python -m evaluation.score --captions WORK/captions.json "
        "--results WORK/runs/first/captions_val.json --spice",
    ]
    assert "/home/me" not in page.source
    for fact in ("0a1b", "2c3d", "threads 2", "version.torch 2.5.1", "CIDEr-D, n 1-4", "seed 7"):
        assert fact in page.text

    (finished / ".done" / "caption-val.json").write_text("[]")
    assert main(["--run", str(finished), "--force"]) == 0
    assert "decoder.caption --run" not in Page(finished / "report.html").text


def test_captions_and_references_are_escaped(finished):
    table = json.loads((finished.parents[1] / "captions.json").read_text())
    table["annotations"][0]["caption"] = "<img src=x onerror=alert(1)>"
    (finished.parents[1] / "captions.json").write_text(json.dumps(table))
    assert main(["--run", str(finished)]) == 0
    page = Page(finished / "report.html")
    assert EVIL in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    assert all(image["src"] != "x" for image in page.all("img"))
    assert any(image["alt"] == EVIL for image in page.all("img"))


def test_the_gallery_has_the_best_the_middle_and_the_worst_by_cider(finished):
    assert main(["--run", str(finished), "--images", "6"]) == 0
    page = Page(finished / "report.html")
    titles = [image["title"] for image in page.all("img") if "title" in image]
    # The CIDEr of image n is n / 10, and there are twelve.
    assert titles == ["12.jpg", "11.jpg", "7.jpg", "6.jpg", "2.jpg", "1.jpg"]
    for title in ("The best", "The middle", "The worst"):
        assert f"{title} 2 of 12" in page.text


def test_attention_has_a_picture_for_each_word_but_not_for_padding(finished):
    assert main(["--run", str(finished), "--images", "8"]) == 0
    page = Page(finished / "report.html")
    alts = [image["alt"] for image in page.all("img") if image["src"].startswith("data:image/png")]
    assert alts == ["attention at “a”", "attention at “dog”"] * 2
    assert "Shown: 2 of the 8 images with saved attention, evenly spaced from the best" in page.text


def test_an_unchanged_report_is_skipped_and_a_changed_one_is_written(finished, capsys):
    assert main(["--run", str(finished)]) == 0
    assert main(["--run", str(finished)]) == 0
    assert "report: unchanged, skipped" in capsys.readouterr().out
    (finished / "scores_val.json").unlink()
    assert main(["--run", str(finished)]) == 0
    assert "skipped" not in capsys.readouterr().out


def test_what_a_run_does_not_have_is_left_out_or_reported_as_missing(finished):
    for name in ("scores_val", "scores_val_xe", "captions_val_xe"):
        (finished / f"{name}.json").unlink()
    (finished / "metrics.jsonl").unlink()
    (finished / "attention_val.npz").unlink()
    assert main(["--run", str(finished), "--images", "3"]) == 0
    page = Page(finished / "report.html")
    assert "These captions have not been scored yet" in page.text
    assert "The run has no metrics.jsonl" in page.text
    assert "There are no captions from before REINFORCE" in page.text
    assert "Where it looked" not in page.text
    titles = [image["title"] for image in page.all("img") if "title" in image]
    assert titles == ["1.jpg", "6.jpg", "12.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"[]", "expected an object with the object 'options'"),
        ("config.json", b"{", "is not JSON"),
        ("metrics.jsonl", b'{"phase": "xe", "val": {}}\n{"pha', "line 2: expected an epoch"),
        ("metrics.jsonl", b'{"phase": "??", "val": {}}', "line 1: expected the phase xe or rl"),
        ("metrics.jsonl", b"7\xff", "line 1: expected an epoch"),
        ("captions_val.json", b"{}", "expected a list"),
        ("captions_val_xe.json", b"[{}]", "1 entries are not like"),
        (
            "scores_val.json",
            b'{"per_image": {"CIDEr": {"1": "high"}}}',
            "be a finite number, found 'high'",
        ),
        ("scores_val_xe.json", b"[]", "is not a scores file: expected an object, found []"),
        ("attention_val.npz", b"PK\x03\x04 cut off", "is not an attention file"),
        ("attention_val.npz", b"", "is not an attention file"),
    ],
)
def test_a_broken_file_is_named(name, content, message, finished, capsys):
    (finished / name).write_bytes(content)
    assert main(["--run", str(finished)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(finished / name) in error
    assert not (finished / "report.html").exists()


@pytest.mark.parametrize(
    "weights", [np.zeros((8, 2, 2, 3), np.float32), np.full((8, 3, 2, 3), np.nan, np.float32)]
)
def test_attention_of_the_wrong_shape_or_without_numbers_is_refused(weights, finished, capsys):
    save_attention(finished, weights)
    assert main(["--run", str(finished)]) == 2
    assert "expected image_id [n], words [n, T], finite weights" in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_is_named(finished, capsys):
    (finished.parents[2] / "pictures" / "12.jpg").write_bytes(b"\xff\xd8 no picture")
    assert main(["--run", str(finished)]) == 2
    error = capsys.readouterr().err
    assert "12.jpg" in error
    assert "if the data set was moved, run python -m pipeline.prepare" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "captions_test.json is not there; create it with python -m"),
        (["--split", "vla"], "unknown split 'vla': did you mean val?"),
        (["--images", "0"], "--images must be at least 1"),
    ],
)
def test_options_are_checked(options, message, finished, capsys):
    assert main(["--run", str(finished), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_a_run_or_has_no_captions_is_refused(finished, tmp_path, capsys):
    assert main(["--run", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
    (finished / "captions_val.json").unlink()
    assert main(["--run", str(finished)]) == 2
    assert "has no captions yet" in capsys.readouterr().err


@pytest.mark.parametrize("images", range(1, 12))
@pytest.mark.parametrize("count", range(1, 10))
def test_no_image_is_shown_twice_and_both_ends_are_always_shown(images, count):
    ranked = list(range(images))
    shown = [image for group in best_middle_worst(ranked, count) for image in group]
    assert shown == sorted(set(shown))
    assert len(shown) == min(images, count)
    assert shown[0] == 0
    assert count < 3 or shown[-1] == images - 1
    spaced = evenly_spaced(ranked, count)
    assert spaced == sorted(set(spaced))
    assert len(spaced) == min(images, count)


def test_a_chart_marks_where_reinforce_starts_and_accepts_one_point_or_none():
    drawn = chart("CIDEr", {"beam": [(1, 0.1), (2, 0.4), (3, 0.5)], "none": []}, reinforce_from=3)
    assert [line.name for line in drawn.lines] == ["beam"]
    xs = [float(point.split(",")[0]) for point in drawn.lines[0].points.split()]
    ys = [float(point.split(",")[1]) for point in drawn.lines[0].points.split()]
    assert xs[1] < drawn.boundary < xs[2]
    assert ys == sorted(ys, reverse=True)
    assert drawn.left <= min(xs) <= max(xs) <= drawn.right
    assert chart("reward", {"reward": [(4, 0.5)]}, reinforce_from=4).boundary is None
    assert chart("loss", {"loss": []}) is None
