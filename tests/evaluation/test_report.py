"""`python -m evaluation.report`, through its command line."""

import importlib.util
import json
import shutil
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from evaluation import baselines
from evaluation.charts import chart, ticks
from evaluation.gallery import best_middle_worst
from evaluation.recorded_commands import recorded_commands
from evaluation.report import main
from evaluation.toolkit import score_tokens
from evaluation.validation import tokenize_without_java
from features.parts import PartWriter
from features.row_format import RowFormat
from features.sampling import evenly_spaced
from features.store import FeatureStore
from features.store_writing import begin, merge, only_writer
from pipeline.work import RunFolder

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
            "init": "/home/me/captioner",
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
            "prepare": {
                "dataset": "drawn set",
                "work": ".",
                "root": "/home/me",
                "also": ["--dataset folder --root '/home/me/B C' --captions=/home/me/c.csv"],
                "min_count": 5,
            },
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
        "python -m pipeline.prepare --work WORK --root DIR --also '--dataset folder --root DIR "
        "--captions=FILE' --dataset 'drawn set' --min-count 5",
        "python -m pipeline.extract --work WORK --grid 7",
        "python -m decoder.train --init DIR --work WORK --run first --model updown --cell lstm "
        "--xe.epochs 3 --xe.label-smoothing 0.0 --seed 7",
        "python -m decoder.caption --run WORK/runs/first --run WORK/runs/other "
        "--beam 5 --split val",
        "python -m evaluation.score --captions WORK/captions.json "
        "--results WORK/runs/first/captions_val.json --spice",
    ]
    assert "/home/me" not in page.source
    for fact in ("0a1b", "2c3d", "threads 2", "version.torch 2.5.1", "CIDEr-D, n 1-4", "seed 7"):
        assert fact in page.text

    (finished.parents[1] / "captions.db").touch()  # of shards
    assert "WORK/captions.db" in recorded_commands(RunFolder(finished), "val", {})[-1]
    (finished.parents[1] / "captions.db").unlink()

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


def test_scores_of_earlier_captions_are_left_out(finished, capsys):
    record = finished / ".done" / "scores_val.json"
    record.parent.mkdir(exist_ok=True)
    inputs = {"captions_val.json": "of earlier captions"}
    record.write_text(json.dumps({"options": {}, "inputs": inputs, "outputs": {}}))
    assert main(["--run", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "scores_val.json, because captions_val.json changed since; score it again" in said


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
    assert titles == ["1.jpg", "7.jpg", "12.jpg"]


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
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert main(["--run", str(tmp_path / "loop")]) == 2
    assert "a link leads to itself" in capsys.readouterr().err
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


@pytest.mark.parametrize(
    ("low", "high", "most", "least_step", "expected"),
    [
        (0.11, 0.48, 5, 0, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (1, 9, 8, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (1, 100, 8, 1, [0, 20, 40, 60, 80, 100]),
        (1, 2, 8, 1, [1, 2]),
        (-3, 7, 5, 0, [-5, -2.5, 0, 2.5, 5, 7.5]),
        (0, 0, 5, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, most, least_step, expected):
    assert ticks(low, high, most, least_step) == expected


def test_ticks_of_values_that_hardly_differ_are_distinct():
    values = ticks(0.5, 0.5000000000000001, 5)
    assert values == sorted(set(values))
    assert values[0] < 0.5 < values[-1]


def store_features(work: Path, pooled: dict[int, list[float]]) -> None:
    """Write a store with the pooled features of images."""
    kind = RowFormat(
        {"backbone": "small", "grid": [1, 1], "channels": 2, "dtype": "float16"}, ("whole",), "none"
    )
    path = work / "features.h5"
    rows = np.array(list(pooled.values()), np.float32)[:, None]
    with only_writer(path):
        with closing(PartWriter(begin(path, kind, None), kind)) as writer:
            writer.put(list(pooled), rows[:, :, None], rows)
        merge(path, kind, None, list(pooled), {})


@pytest.fixture
def compared(finished, monkeypatch):
    """The run, with five captions for each image of val, two training pictures, and features."""
    monkeypatch.setattr(baselines, "METRICS", ("Bleu", "ROUGE_L"))  # METEOR takes ten seconds
    path = finished.parents[1] / "captions.json"
    table = json.loads(path.read_text())
    extra = [a for a in table["annotations"] if a["image_id"] <= 12]
    for number, entry in enumerate(extra):
        text = f"a picture of thing {number % 7} near a dog"
        table["annotations"] += [{**entry, "id": 1000 + number, "caption": text}]
    for image in table["images"]:
        image["split"] = "train" if image["id"] >= 14 else "val" if image["id"] <= 12 else "test"
    path.write_text(json.dumps(table))
    # Training pictures: 14 lies in the direction (1, 0), 15 in the direction (0, 1).
    val = {image: [float(image), 6.0] for image in range(1, 13)}
    store_features(finished.parents[1], val | {14: [2.0, 0.1], 15: [0.1, 9.0]})
    return finished


def test_baselines_are_scored_by_the_toolkit_and_only_once(compared, capsys, monkeypatch):
    assert main(["--run", str(compared)]) == 0
    assert "scoring the baselines of the val split" in capsys.readouterr().out
    work = compared.parents[1]
    record = json.loads((work / "baselines_val.json").read_text())

    table = json.loads((work / "captions.json").read_text())
    texts: dict[int, list[str]] = {}
    for entry in table["annotations"]:
        texts.setdefault(entry["image_id"], []).append(entry["caption"])
    tokens = tokenize_without_java(texts)
    val = {image: tokens[image] for image in range(1, 13)}
    copied = {image: tokens[14 if image >= 6 else 15][0] for image in val}
    metrics = ("Bleu", "ROUGE_L", "CIDEr")
    expected = score_tokens(val, copied, metrics).corpus
    for name, value in expected.items():
        assert record["nearest"]["scores"][name] == pytest.approx(value), name
    five = [
        score_tokens(
            {i: c[:n] + c[n + 1 : 5] for i, c in val.items()},
            {i: c[n] for i, c in val.items()},
            metrics,
        ).corpus
        for n in range(5)
    ]
    for name in expected:
        mean = sum(scores[name] for scores in five) / 5
        assert record["people"]["scores"][name] == pytest.approx(mean), name
    assert record["people"]["images"] == 12

    page = Page(compared / "report.html")
    assert f"{record['nearest']['scores']['CIDEr']:.3f}" in page.text
    assert "This is how far people agree with one another" in page.text

    def no_java(*_: object) -> None:
        raise AssertionError("the baselines are scored again")

    monkeypatch.setattr(baselines, "tokenize_together", no_java)
    assert main(["--run", str(compared), "--force"]) == 0
    assert f"{record['people']['scores']['CIDEr']:.3f}" in Page(compared / "report.html").text


def test_a_picture_is_not_its_own_nearest(tmp_path):
    (tmp_path / "captions.json").write_text("{}")
    store_features(tmp_path, {1: [1.0, 0.0], 2: [1.0, 0.2], 3: [0.0, 1.0]})
    store = FeatureStore(tmp_path / "features.h5")
    train = store.rows([1, 2])
    nearest = baselines.nearest_rows(store.rows([1, 2, 3]), store, train)
    assert nearest.tolist() == [train[1], train[0], train[1]]
    assert baselines.nearest_rows(train[:1], store, train[:1]).tolist() == [-1]


def test_without_java_or_features_the_report_is_written_without_baselines(
    compared, fake_java, capsys
):
    fake_java("echo broken >&2; exit 1")
    assert main(["--run", str(compared)]) == 0
    assert "report: without a baseline:" in capsys.readouterr().out
    assert "Nearest training picture" not in Page(compared / "report.html").text
    (compared.parents[1] / "features.h5").unlink()
    assert main(["--run", str(compared), "--force"]) == 0
    assert "features.h5 is not there" in capsys.readouterr().out


def test_bad_news_is_said_before_everything_else(finished):
    assert main(["--run", str(finished)]) == 0
    assert "12% of the captions end in mid-air" in Page(finished / "report.html").text
    scores = json.loads((finished / "scores_val.json").read_text())
    scores["diagnostics"]["bad_endings"] = 0.01
    (finished / "scores_val.json").write_text(json.dumps(scores))
    assert main(["--run", str(finished)]) == 0
    assert "What is wrong with this run" not in Page(finished / "report.html").text

    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["val"]["CIDEr"] = 0.5 if line["phase"] == "xe" else 0.4
    (finished / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scores["corpus"]["CIDEr"] = 0.9  # 1.134 before REINFORCE
    (finished / "scores_val.json").write_text(json.dumps(scores))
    assert main(["--run", str(finished)]) == 0
    text = Page(finished / "report.html").text
    place = text.index("What is wrong with this run REINFORCE only made the captions worse")
    worse = text.index("On this split the captions were better before")
    assert place < worse < text.index("CIDEr 0.900")


def test_each_source_has_its_scores_beside_the_whole(finished):
    path = finished.parents[1] / "captions.json"
    table = json.loads(path.read_text())
    for image in table["images"]:
        image["source"] = "shapes" if image["id"] <= 4 else "album"
    path.write_text(json.dumps(table))
    assert main(["--run", str(finished)]) == 0
    page = Page(finished / "report.html")
    # The CIDEr of image n is n / 10.
    assert "album 8 0.850" in page.text
    assert "shapes 4 0.250" in page.text
    assert "All 12 1.234" in page.text
    assert "People wrote" in page.text
    assert "Generated with the picture" in page.text


def test_references_that_were_generated_are_not_called_written_by_people(finished):
    path = finished.parents[1] / "captions.json"
    table = json.loads(path.read_text())
    table["info"]["dataset"] = "shapes"
    path.write_text(json.dumps(table))
    assert main(["--run", str(finished)]) == 0
    page = Page(finished / "report.html")
    assert "Generated with the picture" in page.text
    assert "People" not in page.text
    assert "By source" not in page.text


def test_mistakes_times_and_the_meaning_of_scores_are_shown(finished, write_results, written):
    write_results(written | {6: "a green dog on the grass"})  # it is red
    config = json.loads((finished / "config.json").read_text())
    config["machine"] = {"device": "cpu", "threads": 2, "processes": 1, "processor": "x86_64"}
    (finished / "config.json").write_text(json.dumps(config))
    figures = {"seconds": 7.5, "images_per_second": 2.0, "tried_in_this_run": 15}
    (finished.parents[1] / "extract.json").write_text(json.dumps(figures))
    assert main(["--run", str(finished)]) == 0
    page = Page(finished / "report.html")
    assert "green where references say red" in page.text
    assert "Never used" in page.text
    assert "Extraction of features 8 s 15 pictures 2.0 pictures/s" in page.text
    assert "Cross-entropy 3 min 3 epochs 0.300 after epoch 3" in page.text
    assert "Trained on x86_64, 2 threads, 1 process." in page.text
    assert "words that are rare in them count most" in page.text
    targets = {link["href"] for link in page.all("a")}
    assert targets == {"#scores", "#gallery", "#mistakes", "#attention", "#training", "#setup"}
    assert targets <= {f"#{tag.get('id')}" for tag in page.all("h2")}


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver"))
    or not all(map(importlib.util.find_spec, ("selenium", "axe_core_python"))),
    reason="needs Debian's chromium and chromium-driver, and the extra test",
)
def test_the_page_is_accessible_and_fits_in_both_widths_and_themes(compared, tmp_path):
    from axe_core_python import base
    from selenium import webdriver

    axe = Path(base.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    path = compared.parents[1] / "captions.json"
    table = json.loads(path.read_text())
    for image in table["images"]:
        image["source"] = "one" if image["id"] <= 4 else "other"
    path.write_text(json.dumps(table))
    assert main(["--run", str(compared)]) == 0
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.set_script_timeout(60)
        browser.get((compared / "report.html").as_uri())
        browser.execute_script(axe)
        for theme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": theme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            for width in (1280, 390):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                found = browser.execute_async_script(
                    "axe.run().then(arguments[arguments.length - 1])"
                )
                violations = [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]]
                assert violations == [], (theme, width)
                assert browser.execute_script("return document.body.scrollWidth") <= width
