"""Each data set's formats, read through the stage's command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# Flickr8k


def make_flickr8k(
    root: Path, text: str = "Flickr8k_text", images: str = "Flicker8k_Dataset"
) -> None:
    """The official layout with the pictures 1 to 5; picture 4 is in no split, 5 has no caption."""
    touch(*(root / images / f"{i}.jpg" for i in range(1, 6)))
    lines = [f"{i}.jpg#{n}\tA dog , number {n} , runs .\n" for i in range(4, 0, -1) for n in (0, 1)]
    (root / text).mkdir(exist_ok=True)
    (root / text / "Flickr8k.token.txt").write_text("".join(lines))
    (root / text / "Flickr_8k.trainImages.txt").write_text("3.jpg\n1.jpg\n5.jpg\n\n")
    (root / text / "Flickr_8k.devImages.txt").write_text("2.jpg\n")


@pytest.mark.parametrize("text", ["Flickr8k_text", "."])
@pytest.mark.parametrize("images", ["Flicker8k_Dataset", "Flickr8k_Dataset", "all/Images"])
def test_flickr8k_is_read_in_its_usual_layouts_and_without_a_test_list(
    prepare: Callable, root: Path, text: str, images: str
) -> None:
    make_flickr8k(root, text, images)
    outcome = prepare("flickr8k")
    assert outcome.splits == {"1.jpg": "train", "2.jpg": "val", "3.jpg": "train"}
    assert [image.id for image in outcome.table.images] == [1, 2, 3]
    assert outcome.texts["1.jpg"] == ["A dog , number 0 , runs .", "A dog , number 1 , runs ."]
    assert outcome.table.root == (root / images).resolve()
    assert "1 images are in no split, left out" in outcome.out
    assert "1 images have no caption, left out: 5.jpg" in outcome.out


def test_flickr8k_captions_of_a_picture_that_does_not_exist_are_ignored(
    prepare: Callable, root: Path
) -> None:
    make_flickr8k(root)
    for line, file in (
        ("2258277193_586949ec62.jpg.1#0\tA man\n", "Flickr8k.token.txt"),
        ("2258277193_586949ec62.jpg.1\n", "Flickr_8k.trainImages.txt"),
    ):
        with (root / "Flickr8k_text" / file).open("a") as output:
            output.write(line)
    assert set(prepare("flickr8k").splits) == {"1.jpg", "2.jpg", "3.jpg"}


def test_flickr8k_from_kaggle_is_split_by_file_name(prepare: Callable, root: Path) -> None:
    touch(*(root / "Images" / f"{i}.jpg" for i in range(30)))
    rows = [f'{i}.jpg,"A dog , with ""a"" tail"\n{i}.jpg,A dog , unquoted\n' for i in range(30)]
    (root / "captions.txt").write_text("image,caption\n" + "".join(rows))
    outcome = prepare("flickr8k")
    assert outcome.texts["7.jpg"] == ['A dog , with "a" tail', "A dog , unquoted"]
    assert {"train", "val"} <= set(outcome.splits.values())
    assert "no split lists: split by file name 80:10:10 with --seed 1" in outcome.out


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Flickr8k.token.txt", "1.jpg#0\tA dog\n1.jpg A dog\n", "line 2: expected FILE#NUMBER"),
        ("Flickr_8k.devImages.txt", "1.jpg\n", "1.jpg is also in the split train"),
        ("Flickr_8k.devImages.txt", "9.jpg\n", "1 of 4 pictures are missing: 9.jpg"),
    ],
)
def test_damaged_flickr8k_file_is_refused(
    prepare: Callable, root: Path, file: str, content: str, message: str
) -> None:
    make_flickr8k(root)
    (root / "Flickr8k_text" / file).write_text(content)
    outcome = prepare("flickr8k")
    assert outcome.status == 2
    assert message in outcome.err


@pytest.mark.parametrize(
    "rows", [f"1.jpg,{'A' * 200_000}\n", "1.jpg,A dog\rruns\n"], ids=["long", "return"]
)
def test_flickr8k_from_kaggle_with_invalid_csv_is_refused(
    prepare: Callable, root: Path, rows: str
) -> None:
    touch(root / "Images" / "1.jpg")
    (root / "captions.txt").write_bytes(b"image,caption\n1.jpg,A dog\n" + rows.encode())
    outcome = prepare("flickr8k")
    assert outcome.status == 2
    assert "captions.txt, line 3: " in outcome.err


@pytest.mark.parametrize("gone", ["Flicker8k_Dataset", "Flickr8k_text"])
def test_flickr8k_says_what_it_expects(prepare: Callable, root: Path, gone: str) -> None:
    make_flickr8k(root)
    shutil.rmtree(root / gone)
    outcome = prepare("flickr8k")
    assert outcome.status == 2
    expected = {"Flicker8k_Dataset": "Flickr8k_Dataset, Images", "Flickr8k_text": "captions.txt"}
    assert expected[gone] in outcome.err


def test_real_flickr8k_has_its_published_sizes(prepare: Callable, flickr8k: Path) -> None:
    outcome = prepare("flickr8k", "--min-count", "5", root=flickr8k)
    table = outcome.table
    assert (len(table.split("train")), len(table.split("val"))) == (6000, 1000)
    assert {len(image.captions) for image in table.images} == {5}
    assert [image.id for image in table.images] == list(range(1, 7001))
    assert 2500 < len(outcome.vocabulary) < 2600


# Karpathy's format


def karpathy_image(name: str, split: str, **more: Any) -> dict[str, Any]:
    raw = [{"raw": f"A dog in {name}.", "tokens": ["unused"]}, {"raw": "Dogs"}]
    return {"filename": name, "split": split, "sentences": raw, "imgid": 0} | more


def make_karpathy(root: Path, name: str, *images: dict[str, Any], folder: str = ".") -> None:
    for image in images:
        touch(root / folder / image.get("filepath", ".") / image["filename"])
    (root / name).write_text(json.dumps({"dataset": "x", "images": images}))


def test_karpathy_restval_is_training_and_ids_and_folders_are_kept(
    prepare: Callable, root: Path
) -> None:
    make_karpathy(
        root,
        "dataset_any.json",
        karpathy_image("b.jpg", "restval", cocoid=7, filepath="val2014"),
        karpathy_image("a.jpg", "val", cocoid=391895, filepath="val2014"),
        karpathy_image("c.jpg", "test", cocoid=9, filepath="train2014"),
    )
    outcome = prepare("karpathy")
    assert [(image.id, image.file_name, image.split) for image in outcome.table.images] == [
        (7, "val2014/b.jpg", "train"),
        (9, "train2014/c.jpg", "test"),
        (391895, "val2014/a.jpg", "val"),
    ]
    assert outcome.texts["val2014/b.jpg"] == ["A dog in b.jpg.", "Dogs"]


def test_one_of_two_karpathy_files_is_chosen_with_an_option(prepare: Callable, root: Path) -> None:
    make_karpathy(root, "dataset_one.json", karpathy_image("a.jpg", "train"))
    make_karpathy(root, "dataset_two.json", karpathy_image("b.jpg", "train"))
    outcome = prepare("karpathy")
    assert outcome.status == 2
    assert "found dataset_one.json, dataset_two.json; name it with --captions" in outcome.err
    chosen = prepare("karpathy", "--captions", "dataset_two.json")
    assert chosen.splits == {"b.jpg": "train"}
    assert "no image is in the split val, which decoder.train needs" in chosen.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "dataset_x.json: expected JSON"),
        ("[" * 100_000, "dataset_x.json: expected JSON"),
        ("[]", 'expected an object with a list "images"'),
        ('{"images": {}}', 'expected an object with a list "images"'),
        ('{"images": [5]}', "image 0 is not in Karpathy's format"),
        ('{"images": [{"filename": "a.jpg"}]}', "image 0 lacks the key 'split'"),
        (
            '{"images": [{"filename": "a.jpg", "split": "dev2", "sentences": []}]}',
            "image 0: unknown split 'dev2'",
        ),
        (
            json.dumps({"images": [karpathy_image("a.jpg", "train", cocoid=3)] * 2}),
            "1 images are listed twice: a.jpg",
        ),
        (
            json.dumps({"images": [karpathy_image(n, "train", cocoid=3) for n in ("a", "b")]}),
            "1 image ids occur twice: 3",
        ),
        (
            json.dumps({"images": [karpathy_image("a.jpg", "train", cocoid="3")]}),
            "expected a non-negative integer as the id of a.jpg, found '3'",
        ),
        (
            json.dumps({"images": [karpathy_image("A.jpg", "train", cocoid=[3])]}),
            "expected a non-negative integer as the id of A.jpg, found [3]",
        ),
        (
            json.dumps({"images": [karpathy_image("../z.jpg", "train")]}),
            "1 of 1 leave it: '../z.jpg'",
        ),
        (
            '{"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": 5}]}]}',
            "a.jpg: expected a string as caption, found 5",
        ),
    ],
)
def test_damaged_karpathy_file_is_refused(
    prepare: Callable, root: Path, content: str, message: str
) -> None:
    touch(root / "a.jpg")
    (root / "dataset_x.json").write_text(content)
    outcome = prepare("karpathy")
    assert outcome.status == 2
    assert message in outcome.err


# Flickr30k


def test_flickr30k_takes_captions_and_splits_from_karpathys_file(
    prepare: Callable, root: Path
) -> None:
    make_karpathy(
        root,
        "dataset_flickr30k.json",
        karpathy_image("2.jpg", "train"),
        karpathy_image("1.jpg", "val"),
        folder="flickr30k-images",
    )
    outcome = prepare("flickr30k")
    assert [(image.id, image.file_name) for image in outcome.table.images] == [
        (1, "1.jpg"),
        (2, "2.jpg"),
    ]


def test_flickr30k_without_splits_is_split_by_hash_with_a_remark(
    prepare: Callable, root: Path
) -> None:
    touch(*(root / "flickr30k-images" / f"{i}.jpg" for i in range(20)))
    lines = [f"{i}.jpg#0\tA dog .\n" for i in range(20)]
    (root / "results_20130124.token").write_text("".join(lines))
    outcome = prepare("flickr30k")
    assert len(outcome.table.images) == 20
    assert "for the published split, add dataset_flickr30k.json" in outcome.out


def test_error_for_missing_flickr30k_captions_names_the_expected_files(
    prepare: Callable, root: Path
) -> None:
    (root / "flickr30k-images").mkdir()
    outcome = prepare("flickr30k")
    assert outcome.status == 2
    assert (
        "results_20130124.token or results.csv or captions.txt or dataset_flickr30k.json"
        in outcome.err
    )


# COCO


def official(split: str, year: str, ids: list[int], **changes: Any) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i:012}.jpg"} for i in ids]
    annotations = [{"id": 10 * i, "image_id": i, "caption": f"A {split} dog"} for i in ids]
    return {"info": {}, "images": images, "annotations": annotations} | changes


def make_coco(root: Path, year: str, train: dict[str, Any], pictures: str = ".") -> None:
    val = official("val", year, [5])
    (root / "annotations").mkdir(exist_ok=True)
    for split, content in (("train", train), ("val", val)):
        path = root / "annotations" / f"captions_{split}{year}.json"
        path.write_text(json.dumps(content))
        for image in content.get("images", ()):
            touch(root / pictures / f"{split}{year}" / image["file_name"])


@pytest.mark.parametrize("year", ["2014", "2017"])
@pytest.mark.parametrize("pictures", [".", "images"])
def test_coco_is_read_with_the_official_splits(
    prepare: Callable, root: Path, year: str, pictures: str
) -> None:
    make_coco(root, year, official("train", year, [9, 3]), pictures)
    outcome = prepare("coco")
    assert [(image.id, image.file_name, image.split) for image in outcome.table.images] == [
        (3, f"train{year}/000000000003.jpg", "train"),
        (5, f"val{year}/000000000005.jpg", "val"),
        (9, f"train{year}/000000000009.jpg", "train"),
    ]
    assert f"captions_train{year}.json" in outcome.out


def test_coco_prefers_karpathy_then_2014_then_2017(prepare: Callable, root: Path) -> None:
    for year in ("2017", "2014"):
        make_coco(root, year, official("train", year, [3]))
        assert "train" + year in next(iter(prepare("coco").splits))
    images = [
        karpathy_image("1.jpg", "restval", cocoid=1, filepath="val2014"),
        karpathy_image("2.jpg", "test", cocoid=2, filepath="val2014"),
    ]
    make_karpathy(root, "dataset_coco.json", *images)
    outcome = prepare("coco")
    assert outcome.splits == {"val2014/1.jpg": "train", "val2014/2.jpg": "test"}
    assert "also present: 2014, 2017 (choose with --release)" in outcome.out
    assert "train2017/000000000003.jpg" in prepare("coco", "--release", "2017").splits


def test_error_for_missing_coco_files_names_the_expected_ones(
    prepare: Callable, root: Path
) -> None:
    everything = prepare("coco")
    assert everything.status == 2
    assert "dataset_coco.json or annotations/captions_train2014.json or" in everything.err
    one = prepare("coco", "--release", "2017")
    assert "expected annotations/captions_train2017.json, found none" in one.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 3}]}, "lacks the key 'file_name'"),
        ({"images": [{"file_name": "3.jpg"}]}, "lacks the key 'id'"),
        ({"annotations": [{"image_id": 3}]}, "lacks the key 'caption'"),
        ({"annotations": 5}, "is not in COCO's caption format"),
        ({"images": [{"id": 3, "file_name": "a.jpg"}] * 2}, "1 images are listed twice"),
        ({"images": [{"id": 3, "file_name": "A.jpg"}] * 2}, "1 images are listed twice"),
        (
            {"images": [{"id": 3, "file_name": f"{n}.jpg"} for n in "ab"]},
            "1 image ids occur twice: 3",
        ),
        (
            {"annotations": [{"image_id": i, "caption": "x"} for i in range(100, 109)]},
            "9 image ids have captions but no image: 100, 101, 102, 103, 104 and 4 more",
        ),
    ],
)
def test_damaged_coco_file_is_refused(
    prepare: Callable, root: Path, changes: dict[str, Any], message: str
) -> None:
    make_coco(root, "2014", official("train", "2014", [3]))
    path = root / "annotations" / "captions_train2014.json"
    path.write_text(json.dumps(official("train", "2014", [3]) | changes))
    for name in "ab":
        touch(root / "train2014" / f"{name}.jpg")
    outcome = prepare("coco")
    assert outcome.status == 2
    assert message in outcome.err


def test_coco_file_without_a_key_is_refused(prepare: Callable, root: Path) -> None:
    make_coco(root, "2014", {"images": []})
    outcome = prepare("coco")
    assert outcome.status == 2
    assert "captions_train2014.json" in outcome.err
    assert "lacks the key 'annotations'" in outcome.err


def test_coco_captions_without_image_are_left_out_on_request(prepare: Callable, root: Path) -> None:
    make_coco(root, "2014", official("train", "2014", [3]))
    more = official("train", "2014", [3])
    more["annotations"].append({"id": 1, "image_id": 77, "caption": "nobody's"})
    (root / "annotations" / "captions_train2014.json").write_text(json.dumps(more))
    outcome = prepare("coco", "--skip-missing")
    assert len(outcome.table.images) == 2
    assert "1 image ids have captions but no image: 77" in outcome.out


# Your own pictures


CSV = "file_name,caption\na.jpg,A dog\nb/c.jpg,A cat\nb/c.jpg,Cats\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("x.csv", CSV),
        ("x.csv", CSV.replace(",", ";")),
        ("x.csv", CSV.replace(",", "\t").replace("\n", "\r\n")),
        ("x.csv", "\ufeff" + CSV.replace("file_name", "Image")),
        ("x.csv", CSV.replace("file_name", "path").replace("a.jpg", "./a.jpg")),
        ("x.csv", 'caption,file\nA dog,a.jpg\nA cat,b/c.jpg\n"Cats","b/c.jpg"\n'),
        (
            "x.jsonl",
            '{"file_name": "a.jpg", "caption": "A dog"}\n\n'
            '{"image": "b/c.jpg", "captions": ["A cat", "Cats"]}\n',
        ),
    ],
)
def test_folder_reads_csv_and_jsonl(prepare: Callable, root: Path, file: str, content: str) -> None:
    touch(root / "a.jpg", root / "b" / "c.jpg")
    for encoding in ("utf-8", "utf-16"):  # the latter is what Excel calls Unicode text
        (root / file).write_bytes(content.removeprefix("\ufeff").encode(encoding))
        assert prepare("folder").texts == {"a.jpg": ["A dog"], "b/c.jpg": ["A cat", "Cats"]}
    (root / file).write_bytes(content.encode())
    assert prepare("folder").texts == {"a.jpg": ["A dog"], "b/c.jpg": ["A cat", "Cats"]}


def test_quoted_caption_may_contain_separators_quotes_and_newlines(
    prepare: Callable, root: Path
) -> None:
    touch(root / "a.jpg", root / "b.jpg")
    text = 'file_name,caption\na.jpg,"A dog; a ""big"" one,\nit says"\nb.jpg,A cat; asleep\n'
    (root / "x.csv").write_text(text)
    assert prepare("folder").texts == {
        "a.jpg": ['A dog; a "big" one, it says'],
        "b.jpg": ["A cat; asleep"],
    }


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.csv", "a.jpg,A dog\n", "line 1: expected the names of the columns"),
        ("x.csv", "file_name,words\na.jpg,A dog\n", "line 2: expected caption or captions"),
        ("x.csv", "name,caption\na.jpg,A dog\n", "line 2: expected file_name or image or file"),
        ("x.csv", "file_name,caption\na.jpg\n", "line 2: expected caption or captions, found only"),
        ("x.csv", "file_name,caption\na.jpg,A dog, big\n", "expected 2 columns, found 3; put"),
        ("x.csv", 'file_name,caption\na.jpg,"A dog\n', "line 2: unexpected end of data"),
        ("x.csv", 'file_name,"caption\n', "line 1: unexpected end of data"),
        ("x.csv", f"file_name,caption\na.jpg,{'A' * 200_000}\n", "line 2: field larger than"),
        ("x.csv", "file_name,caption\n,A dog\n", "line 2: expected the file name of a picture"),
        ("x.jsonl", '{"file_name": "a.jpg", "caption": 5}\n' * 2, "line 1: expected a string"),
        (
            "x.jsonl",
            '{"file_name": ["a"], "caption": "A dog"}\n',
            "line 1: expected the file name of",
        ),
        ("x.jsonl", "\nA dog\n", "line 2: expected JSON"),
        ("x.jsonl", '["a.jpg", "A dog"]\n', "line 1: expected a JSON object"),
        ("x.jsonl", '{"file_name": "a.jpg", "caption": "A", "split": 1}\n', "line 1"),
        (
            "x.json",
            '{"images": [{"id": 1, "file_name": ""}], "annotations": []}',
            "expected a file name, found ''",
        ),
        ("x.txt", "", "expected one *.csv or *.jsonl, or a .txt beside each picture, found x.txt"),
    ],
)
def test_damaged_folder_file_is_refused(
    prepare: Callable, root: Path, file: str, content: str, message: str
) -> None:
    touch(root / "a.jpg")
    (root / file).write_text(content)
    outcome = prepare("folder")
    assert outcome.status == 2
    assert message in outcome.err
    assert file in outcome.err or file == "x.txt"


def test_folder_captions_file_may_be_outside_the_root(
    prepare: Callable, root: Path, tmp_path: Path
) -> None:
    touch(root / "a.jpg", root / "b" / "c.jpg")
    elsewhere = tmp_path / "mine.csv"
    elsewhere.write_text(CSV)
    assert len(prepare("folder", "--captions", str(elsewhere)).table.images) == 2
    elsewhere.write_text(CSV.replace("Cats", "Cows"))
    assert "unchanged" not in prepare("folder", "--captions", str(elsewhere)).out
    missing = prepare("folder", "--captions", "nowhere.csv")
    assert missing.status == 2
    assert "nowhere.csv: No such file" in missing.err


def make_pictures(root: Path, count: int) -> None:
    touch(*(root / f"{i}.jpg" for i in range(count)))
    rows = "".join(f"{i}.jpg,A dog\n" for i in range(count))
    (root / "x.csv").write_text("file_name,caption\n" + rows)


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_few_pictures_are_split_into_at_least_train_and_val(
    prepare: Callable, root: Path, count: int, seed: int
) -> None:
    make_pictures(root, count)
    splits = prepare("folder", "--seed", str(seed)).splits
    assert {"train", "val"} <= set(splits.values())


def test_split_by_hash_is_80_10_10_and_a_picture_keeps_its_split(
    prepare: Callable, root: Path
) -> None:
    make_pictures(root, 1000)
    splits = prepare("folder").splits
    counts = [list(splits.values()).count(split) for split in ("train", "val", "test")]
    # Five standard deviations of a binomial with n = 1000.
    assert abs(counts[0] - 800) < 64
    assert abs(counts[1] - 100) < 48
    assert abs(counts[2] - 100) < 48
    assert prepare("folder", "--seed", "2").splits != splits
    make_pictures(root, 1100)
    more = prepare("folder").splits
    assert {name: more[name] for name in splits} == splits
