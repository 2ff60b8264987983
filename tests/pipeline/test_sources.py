"""Several data sets in one work directory, and data sets without training pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import captions, vocabulary
from pipeline.options import PrepareOptions
from pipeline.prepare import build_vocabulary, main
from pipeline.sources import load_tables, repeated_as_also
from tests.pipeline.test_prepare import HEADER, make_folder

ROWS = "a.jpg,A cow,train\nb.jpg,Two cows,val\nc.jpg,Grass,test\n"


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """The command line that prepares two folders whose pictures have the same names."""
    command = ["--work", str(tmp_path / "work")]
    for name, rows in (("one", None), ("two", ROWS)):
        root = tmp_path / name
        root.mkdir()
        make_folder(root, "abc", rows)
        for picture in root.glob("*.jpg"):
            picture.write_bytes(f"\xff\xd8{name} {picture.name}".encode("latin-1"))
        command += ["--dataset", "folder", f"--root={root}", "--name", name]
    return [*command, "--terms", "CC BY 4.0"]


def test_two_data_sets_become_one_without_collisions(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(two) == 0
    printed = capsys.readouterr().out
    table = captions.load(tmp_path / "work" / "captions.json")
    assert [(i.id, i.file_name, i.split, i.source) for i in table.images] == [
        (1, "one/a.jpg", "train", "one"),
        (2, "one/b.jpg", "val", "one"),
        (3, "one/c.jpg", "test", "one"),
        (4, "two/a.jpg", "train", "two"),
        (5, "two/b.jpg", "val", "two"),
        (6, "two/c.jpg", "test", "two"),
    ]
    assert table.root == tmp_path
    assert all(table.path(image).is_file() for image in table.images)
    words = vocabulary.load(tmp_path / "work" / "vocabulary.json").words
    assert {"dog", "cow"} <= set(words)
    assert [(s.name, s.dataset, s.terms) for s in table.sources] == [
        ("one", "folder", None),
        ("two", "folder", "CC BY 4.0"),
    ]
    assert "2 train, 2 val, 2 test images of one+two" in printed
    assert "1 train, 1 val, 1 test images of two" in printed
    assert "pictures are in two data sets" not in printed

    assert main(two) == 0
    assert "unchanged, skipped" in capsys.readouterr().out
    (tmp_path / "two" / "captions.csv").write_text(HEADER + ROWS.replace("cow", "hen"))
    assert main(two) == 0
    assert "unchanged, skipped" not in capsys.readouterr().out


def test_ids_stay_when_a_data_set_is_added_or_given_twice(two: list[str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert main(two[: two.index("--name") + 2]) == 0
    (work / "features.h5").touch()  # its rows have these ids
    assert main(two) == 0
    images = captions.load(work / "captions.json").images
    assert [(i.id, i.file_name) for i in images][2:4] == [(3, "one/c.jpg"), (4, "two/a.jpg")]
    again = [f"--root={tmp_path / 'one'}" if "=" in part else part for part in two]
    (work / "features.h5").unlink()
    assert main(again) == 0
    assert len({i.id for i in captions.load(work / "captions.json").images}) == 6


def test_the_order_of_images_does_not_depend_on_what_is_known(
    two: list[str], tmp_path: Path
) -> None:
    for name, first in (("one", 50), ("two", 7)):
        images = [
            {"id": first + n, "file_name": f"{letter}.jpg", "split": split}
            for n, (letter, split) in enumerate(zip("abc", ("train", "val", "test"), strict=True))
        ]
        texts = [{"image_id": one["id"], "id": one["id"], "caption": "A cow"} for one in images]
        content = {"images": images, "annotations": texts}
        (tmp_path / name / "captions.csv").unlink()
        (tmp_path / name / "captions.json").write_text(json.dumps(content))
    assert main(two) == 0
    table = tmp_path / "work" / "captions.json"
    assert [image.id for image in captions.load(table).images] == [7, 8, 9, 50, 51, 52]
    written = table.read_bytes()
    assert main([*two, "--force"]) == 0
    assert table.read_bytes() == written


def test_a_picture_of_two_data_sets_is_reported(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two" / "c.jpg").write_bytes((tmp_path / "one" / "a.jpg").read_bytes())
    assert main(two) == 0
    expected = "one/a.jpg (one train) = two/c.jpg (two test); remove them from one of the splits"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--name", "two", "one"), "2 data sets are called 'one'; give each a name"),
        (("--name", "two", "a=b"), "--name: expected letters, digits"),
    ],
)
def test_names_that_do_not_tell_sources_apart_are_refused(
    two: list[str],
    changed: tuple[str, str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    option, old, new = changed
    place = len(two) - 1 - two[::-1].index(option)
    assert two[place + 1] == old
    two[place + 1] = new
    assert main(two) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--root", "elsewhere"], "--root is given twice for one data set"),
        (["--also", "--dataset shapes --min_count 3"], "--min-count applies to all data sets"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(
    two: list[str], further: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*two, *further]) == 2
    assert message in capsys.readouterr().err


def test_images_of_a_coco_file_keep_their_own_splits(prepare: Callable, root: Path) -> None:
    make_folder(root)
    work = prepare("folder").work
    (root / "captions.csv").unlink()
    (work / "captions.json").rename(root / "captions.json")
    splits = {"a.jpg": "train", "b.jpg": "val", "c.jpg": "test"}
    assert prepare("folder", "--force").splits == splits
    (root / "captions.json").write_text(
        (root / "captions.json").read_text().replace('"val"', '"spare"')
    )
    assert "unknown split 'spare'" in prepare("folder").err


def test_options_belong_to_the_data_set_before_them() -> None:
    first = ["--root", "A", "--dataset", "flickr8k"]
    second = ["--dataset=coco", "--root", "B", "--download", "--name=mine"]
    shared = ["--min-count", "2", "--force"]
    for given in ([*first, *second, *shared], [*first, *shared, *second]):
        also = "--also=--dataset=coco --root B --download --name=mine"
        assert repeated_as_also(given) == [*first, *shared, also]
    single = ["--dataset", "folder", "--root", "A", "--work", "w", "--force"]
    assert repeated_as_also(single) == single


def test_one_data_set_is_written_as_before_unless_it_has_a_name(
    prepare: Callable, root: Path
) -> None:
    make_folder(root)
    content = json.loads((prepare("folder").work / "captions.json").read_text())
    assert content["info"] == {"dataset": "folder", "image_root": str(root)}
    assert content["images"][0] == {"id": 1, "file_name": "a.jpg", "split": "train"}
    named = prepare("folder", "--name", "mine").table
    assert {image.source for image in named.images} == {"mine"}


def test_pictures_to_score_alone_need_no_vocabulary(prepare: Callable, root: Path) -> None:
    make_folder(root)
    assert (prepare("folder").work / "vocabulary.json").exists()
    make_folder(root, "ab", "a.jpg,A dog,val\nb.jpg,A cat,test\n")
    outcome = prepare("folder")
    assert outcome.splits == {"a.jpg": "val", "b.jpg": "test"}
    assert "nothing to train on; a run trained elsewhere can caption" in outcome.out
    assert not (outcome.work / "vocabulary.json").exists()


@pytest.mark.parametrize(("count", "expected"), [(300, 1), (1100, 2), (5200, 5)])
def test_the_smaller_the_data_the_rarer_the_words_that_are_kept(
    root: Path, tmp_path: Path, count: int, expected: int
) -> None:
    root.mkdir()
    rows = "".join(f"a.jpg,{'rare' if n < 3 else 'dog'} x{n},train\n" for n in range(count))
    make_folder(root, "ab", rows + "b.jpg,A cat,val\n")
    table, _ = load_tables(PrepareOptions("folder", tmp_path / "work", root))
    words, remarks = build_vocabulary(table, None, 20)
    assert words is not None
    assert words.min_count == expected
    assert ("rare" in words.words) == (expected < 5)
    assert any("are kept, because" in remark for remark in remarks) == (expected < 5)


def test_the_options_of_also_may_stand_apart_and_their_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["--dataset", "shapes", "--work", str(tmp_path / "work")]
    assert repeated_as_also([*first, "--also", "--dataset coco --root B"]) == [
        *first,
        "--also=--dataset coco --root B",
    ]
    for further in (["--also", "--dataset coco --rot B"], ["--dataset", "coco", "--rot", "B"]):
        assert main([*first, *further]) == 2
        assert "unknown option --rot: did you mean --root?" in capsys.readouterr().err
