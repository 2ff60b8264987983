"""Results by file name, as listings and shared predictions have them, through evaluation.score."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from decoder.captioning.listing import Listing, State
from evaluation.references import choose
from evaluation.results import Results, read_results
from evaluation.score import main
from evaluation.toolkit import score_tokens
from evaluation.validation import tokenize_without_java
from features.errors import UserError
from pipeline import captions
from pipeline.options import PrepareOptions
from pipeline.readers.flickr import read_flickr8k
from tests.conftest import FLICKR8K

PREDICTIONS = Path(__file__).parents[2] / "evaluation" / "predictions"


def named(written: dict[str, str], **more: object) -> list[dict[str, object]]:
    return [{"file_name": name, "caption": text, **more} for name, text in written.items()]


def chosen(work: Path, results: Path) -> dict[int, str]:
    """Return the captions by image id, as evaluation.score takes them."""
    return choose(work / "captions.json", read_results(results), None, partial=False).results


def move(work: Path, names: Callable[[int], str]) -> None:
    """Give the images of a work directory other file names."""
    table = json.loads((work / "captions.json").read_text())
    for image in table["images"]:
        image["file_name"] = names(image["id"])
    (work / "captions.json").write_text(json.dumps(table))


def test_results_by_file_name_are_scored_as_those_by_image_id(work, write_results, written):
    by_id = write_results(written)
    # Ids of another work directory, where other pictures come first, do not count.
    entries = [
        {"image_id": 13 - i, "file_name": f"{i}.jpg", "caption": text}
        for i, text in written.items()
    ]
    by_name = write_results(entries, "named.json")
    for results in (by_id, by_name):
        given = ["--captions", str(work / "captions.json"), "--results", str(results)]
        assert main([*given, "--bootstrap", "0", "--out", str(results.with_suffix(".out"))]) == 0
    one, other = (json.loads(r.with_suffix(".out").read_text()) for r in (by_id, by_name))
    for key in ("corpus", "per_image", "references", "diagnostics"):
        assert one[key] == other[key]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_what_decoder_caption_out_writes_is_scored(suffix, work, written, tmp_path, capsys):
    out = tmp_path / "elsewhere" / f"captions{suffix}"
    pictures = captions.load(work / "captions.json").root
    (pictures / "photo.jpg").touch()
    with Listing(out, "me") as listing:
        for number, text in written.items():
            values = {"caption": text, "unsure": False, "labels": ["a", "b"]}
            listing.add(pictures / f"{number}.jpg", State(1, 1), values)
        listing.add(pictures / "photo.jpg", State(1, 1), {"caption": None, "error": "no picture"})
    assert chosen(work, out) == written
    assert "1 pictures of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("{}.jpg", "../photos/{}.jpg"),
        ("sets/a/{}.jpg", "a/{}.jpg"),
        ("a/{}.jpg", "/data/sets/a/{}.jpg"),
        ("a/{}.jpg", "b/{}.jpg"),  # the pictures were copied to another folder
        ("a/{}.jpg", "../../a/{}.jpg"),
        ("Caf\u00e9 {}.JPG", "cafe\u0301 {}.jpg"),
        ("a/b {}.jpg", "a\\b%20{}.jpg"),
        ("a/{}.jpg", "{}"),
    ],
)
def test_a_picture_is_found_by_its_unique_name(there, here, work, write_results, written):
    move(work, there.format)
    results = write_results(named({here.format(i): text for i, text in written.items()}))
    assert chosen(work, results) == written


def test_of_pictures_with_the_same_base_name_the_folder_decides(work, write_results, written):
    move(work, lambda i: f"{'cats' if i % 2 else 'dogs'}/{(i + 1) // 2}.jpg")
    folder = ("dogs", "cats")
    paths = {f"../all/{folder[i % 2]}/{(i + 1) // 2}.jpg": text for i, text in written.items()}
    assert chosen(work, write_results(named(paths))) == written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (named({"1.jpg": "a", "dog.jpg": "b"}), "1 of 2 pictures are not in"),
        (named({"1.jpg": "a", "12.jpeg": "b"}), "did you mean '12.jpg' for '12.jpeg'?"),
        (named({"zebra.png": "a"}), "are they of another data set?"),
        (named({"zebra.png": "a"}, image_id=1), "Without file_name, image_id counts"),
        (named({"1.jpg": "a"}) * 2, "1 pictures have more than one caption, expected one: 1.jpg"),
        (named({"1.jpg": "a", "x/1.jpg": "b"}), "expected one: 1.jpg and x/1.jpg"),
        (named({"1.jpg": "a", "13.jpg": "b"}), "more than one split, val (1), test (1)"),
        (named({"2.jpg": "a"}), "have no caption: 1.jpg, 3.jpg, 4.jpg"),
        ([*named({"1.jpg": "a"}), {"image_id": 2, "caption": "b"}], "1 entries are not like"),
        (named({"1.jpg": 3}), "two texts: number 1; the first is {'file_name': '1.jpg'"),
    ],
)
def test_names_that_do_not_match_are_refused_by_name(content, message, work, write_results, capsys):
    path = write_results(content)
    assert main(["--captions", str(work / "captions.json"), "--results", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error


def test_a_name_that_may_mean_two_pictures_is_refused_with_both(work, write_results, capsys):
    move(work, lambda i: f"{'cats' if i % 2 else 'dogs'}/{(i + 1) // 2}.jpg")
    path = write_results(named({"cats/2.jpg": "a cat", "1.jpg": "a cat or a dog"}))
    assert main(["--captions", str(work / "captions.json"), "--results", str(path)]) == 2
    message = "1.jpg (cats/1.jpg, id 1, dogs/1.jpg, id 2)"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "1.jpg", "caption": "a"}\n{"path": ', "line 2: expected JSON"),
        ('{"name": "1.jpg", "caption": "a"}', "line 1: expected a picture as path, file_name"),
        ('{"path": "1.jpg", "caption": null}', "expected the caption of 1.jpg as a text"),
        ('{"path": "1.jpg", "caption": null, "error": "gone"}', "found none"),
    ],
)
def test_a_listing_that_is_damaged_is_refused_by_line(text, message, work, tmp_path, capsys):
    path = tmp_path / "captions.jsonl"
    path.write_text(text)
    assert main(["--captions", str(work / "captions.json"), "--results", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_names_are_found_in_coco_files_that_have_some(work, written):
    content = json.loads((work / "captions.json").read_text())
    del content["info"]
    for image in content["images"]:
        del image["split"]
    coco = work / "captions_val2014.json"
    coco.write_text(json.dumps(content))
    texts = {f"val2014/{i}.jpg": text for i, text in written.items()}
    found = choose(coco, Results(Path("r"), {}, texts), None, False)
    assert (found.results, found.images) == (written, 15)
    for image in content["images"]:
        del image["file_name"]
    coco.write_text(json.dumps(content))
    both = choose(coco, Results(Path("r"), written, texts), None, False)
    assert both.results == written
    with pytest.raises(UserError, match="needs the image_id"):
        choose(coco, Results(Path("r"), {}, texts), None, False)


@pytest.mark.parametrize("name", sorted(path.stem for path in PREDICTIONS.glob("*_val.json")))
def test_the_shipped_predictions_fit_their_data_set_and_score_as_stated(name, tmp_path):
    root = FLICKR8K.with_name("everyday") if "everyday" in name else FLICKR8K
    if not root.is_dir():
        pytest.skip(f"needs the data set in ../shared/{root.name}")
    if root == FLICKR8K:
        options = PrepareOptions(dataset="flickr8k", root=root, work=tmp_path)
        records = [r for r in read_flickr8k(root, options).records if r.split == "val"]
        pairs = [(r.file_name, text) for r in records for text in r.captions]
    else:
        with (root / "captions.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
        pairs = [(row["file_name"], row["caption"]) for row in rows]
    ids = {file: number for number, file in enumerate(dict.fromkeys(file for file, _ in pairs), 1)}
    content = {
        "images": [{"id": number, "file_name": file} for file, number in ids.items()],
        "annotations": [{"image_id": ids[file], "caption": text} for file, text in pairs],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    results = read_results(PREDICTIONS / f"{name}.json")
    found = choose(tmp_path / "captions.json", results, None, False)
    assert len(found.results) == found.images == len(ids)
    if name != "included_everyday_val":  # 1,000 photographs take two seconds
        return
    candidates = tokenize_without_java({i: [text] for i, text in found.results.items()})
    references = tokenize_without_java(found.captions)
    scores = score_tokens(references, {i: t[0] for i, t in candidates.items()}, ("CIDEr",))
    assert scores.corpus["CIDEr"] == pytest.approx(0.860, abs=0.005)  # the README's
