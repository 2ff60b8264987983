import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features.errors import UserError
from pipeline import captions
from pipeline.captions import Caption, CaptionTable, Image, Source, check_file_name

DOG = Image(7, "dog.jpg", "train", (Caption("A dog's tail.", ("a", "dog", "'s", "tail")),))
CAT = Image(9, "cats/cat é.jpg", "val", (Caption("A cat", ("a", "cat")), Caption("Cat", ("cat",))))


def test_table_is_saved_in_coco_format_and_loads_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    images = tuple(replace(image, source="pets") for image in (DOG, CAT))
    table = CaptionTable("pets", tmp_path.parent.resolve(), images, (Source("pets", "pets"),))
    captions.save(table, path)
    assert captions.load(path) == table
    content = json.loads(path.read_text())
    assert content["info"] == {"dataset": "pets", "image_root": str(tmp_path.parent.resolve())}
    assert content["images"][0] == {"id": 7, "file_name": "dog.jpg", "split": "train"}
    assert content["annotations"][1] == {
        "id": 2,
        "image_id": 9,
        "caption": "A cat",
        "tokens": ["a", "cat"],
    }


def test_work_directory_that_holds_its_pictures_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    table = CaptionTable("pets", tmp_path / "old" / "images", (DOG,))
    captions.save(table, tmp_path / "old" / "captions.json")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = captions.load(tmp_path / "new" / "captions.json")
    assert moved.path(moved.images[0]) == tmp_path / "new" / "images" / "dog.jpg"


def test_error_for_a_missing_split_lists_the_existing_ones() -> None:
    table = CaptionTable("pets", Path(), (DOG, CAT))
    assert table.split("val") == [CAT]
    with pytest.raises(UserError, match=r"no split 'test'; it has train \(1\), val \(1\)"):
        table.split("test")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x.jpg",
        "a/../../x.jpg",
        "a\\..\\x.jpg",
        "",
        5,
        None,
        "a\nb",
        "\ud83d",
        "a\x1b[2J",
    ],
)
def test_invalid_file_name_or_one_outside_the_root_is_refused(name: object) -> None:
    with pytest.raises(UserError):
        check_file_name(name)


@pytest.mark.parametrize("name", ["a.jpg", "a/b.jpg", "a..b.jpg", "été (1)\u202f.png"])
def test_plain_file_name_is_accepted(name: str) -> None:
    assert check_file_name(name) == name


INVALID_IDS = (float("inf"), float("nan"), 1.0, True, -1, 2**63, 10**400, "1", None)


def table_with(**changes: Any) -> str:
    image = {"id": 1, "file_name": "a.jpg", "split": "train"} | changes.get("image", {})
    annotation = {"image_id": 1, "caption": "a", "tokens": ["a"]} | changes.get("annotation", {})
    content = {
        "info": changes.get("info", {"dataset": "d", "image_root": "."}),
        "images": [image] * changes.get("times", 1),
        "annotations": [annotation],
    }
    return json.dumps({key: content[key] for key in content if key != changes.get("without")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a caption table"),
        (table_with(without="images"), "lacks the key 'images'"),
        (table_with(without="info"), "lacks the key 'info'"),
        (table_with(image={"file_name": "../a.jpg"}), "leaves the image root"),
        (table_with(image={"split": "dev"}), r"unknown splits \['dev'\]"),
        (table_with(image={"id": "x"}), "is not a caption table"),
        (table_with(annotation={"image_id": 2}), "1 image ids have captions but no image: 2"),
        (table_with(times=2), "1 image ids occur twice: 1"),
        *((table_with(image={"id": value}), "expected an image id") for value in INVALID_IDS),
        *(
            (table_with(annotation={"image_id": value}), "expected an image id")
            for value in INVALID_IDS
        ),
        (table_with(annotation={"tokens": "dog"}), "expected a list of tokens, found 'dog'"),
        (table_with(annotation={"tokens": ["a", 5]}), "is not a caption table"),
        (table_with(annotation={"caption": ["a"]}), "expected a string"),
        (table_with(info={"dataset": "d", "image_root": "a\0"}), "expected a string"),
        (table_with(info={"dataset": "d", "image_root": 5}), "expected a string"),
        ('{"info":' * 100_000, "is not JSON"),
        ("9" * 5000, "is not JSON"),
        ("\udcff", "is not JSON"),
    ],
)
def test_error_for_a_damaged_table_names_the_file(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=message) as error:
        captions.load(path)
    assert "captions.json" in str(error.value)


def test_error_for_a_missing_table_names_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions\.json .*python -m pipeline\.prepare"):
        captions.load(tmp_path / "captions.json")


def test_lone_surrogate_is_replaced_so_that_the_table_can_be_saved_again(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(table_with(annotation={"caption": "a \ud83d dog 🐕"}))
    table = captions.load(tmp_path / "captions.json")
    assert table.images[0].captions[0].text == "a ? dog 🐕"
    captions.save(table, tmp_path / "captions.json")


def test_pipe_is_refused_instead_of_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "captions.json")
    with pytest.raises(UserError, match="not a file but a folder or a device"):
        captions.load(tmp_path / "captions.json")


def test_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """If root ran it with `--out /dev/null`, replacing would delete the machine's null device."""
    path = tmp_path / "captions.json"
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a file but a folder or a device"):
        captions.save(CaptionTable("pets", tmp_path, (DOG,)), path)
    assert path.is_fifo()
