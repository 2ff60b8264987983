"""Tables of captions as people have them: read to the last caption, or refused by line."""

import csv
import hashlib
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from decoder.captioning.listing import COLUMNS
from decoder.captioning.review import Row
from decoder.captioning.writer import Caption

JPEG = b"\xff\xd8\xff\xe0"
HEADER = "file_name,caption\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0"


def write(root: Path, files: dict[str, str | bytes], pictures: str = "a.jpg b.jpg") -> None:
    everything = {**dict.fromkeys(pictures.split(), JPEG), **files}
    for name, content in everything.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


TWO = {"a.jpg": ["A dog runs.", "Dogs"], "b.jpg": ["A cat"]}


@pytest.mark.parametrize(
    "table",
    [
        "file_name,caption,caption_2,caption_3\na.jpg,A dog runs.,Dogs,\nb.jpg,A cat,nan,NULL\n",
        "Image Path;Caption1;Caption2\na.jpg;A dog runs.;Dogs\nb.jpg;A cat\n",
        "image,caption,caption\na.jpg,A dog runs.,Dogs\nb.jpg,A cat,N/A\n",
        "image,caption,caption.1\na.jpg,A dog runs.,Dogs\nb.jpg,None,A cat\n",
        'filename,raw,sentids\na.jpg,"[""A dog runs."", ""Dogs""]","[0, 1]"\n'
        'b.jpg,"[""A cat""]",[2]\n',
        "file_name,captions\na.jpg,\"['A dog runs.', 'Dogs']\"\nb.jpg,['A cat']\n",
        "file_name,captions\na.jpg,\"['A dog runs.'\n 'Dogs']\"\nb.jpg,\"('A cat',)\"\n",
        "sep=;\nfile_name;caption\na.jpg;A dog runs.\na.jpg;Dogs\nb.jpg;A cat\n",
        "file_name|caption\r\na.jpg|A dog runs.\r\na.jpg|Dogs\r\n\r\nb.jpg|A cat\r\n",
        "file_name,caption\ra.jpg,A dog runs.\ra.jpg,Dogs\rb.jpg,A cat\r",
        "\n\ufefffile_name,caption\na.jpg,A dog runs.\n"
        "\ufefffile_name,caption\na.jpg,Dogs\nb.jpg,A cat\n,\n",
        'file_name,caption\na.jpg, "A dog runs."\na.jpg,Dogs,,\nb.jpg,A cat\n',
        "file_name,caption,width,license\na.jpg,A dog runs.,3,Not for any sale\n"
        "a.jpg,Dogs,3,\nb.jpg,A cat,,\n",
        "file_name,captions\na.jpg,\"array(['A dog runs.', 'Dogs'], dtype=object)\"\n"
        "b.jpg,\"{'A cat'}\"\nb.jpg,#NAME?\n",
    ],
)
def test_every_caption_of_a_table_is_read(prepare: Callable, root: Path, table: str) -> None:
    write(root, {"x.csv": table})
    for encoding in ("utf-8", "utf-16-le", "utf-32"):
        (root / "x.csv").write_bytes(table.encode(encoding))
        assert prepare("folder").texts == TWO


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("x.json", [{"image": "a.jpg", "caption": ["A dog runs.", "Dogs"]}]),
        ("x.json", {"a.jpg": ["A dog runs.", "Dogs"]}),
        ("x.json", [{"image": "a.jpg", "caption": text} for text in ("A dog runs.", "Dogs")]),
        ("x.json", {"version": 1, "data": [{"img": "a.jpg", "text": ["A dog runs.", "Dogs"]}]}),
        (
            "x.jsonl",
            [{"filename": "a.jpg", "sentences": [{"raw": "A dog runs."}, {"raw": "Dogs"}]}],
        ),
        (
            "x.json",
            {
                "images": [{"id": "n1", "file_name": "a.jpg"}],
                "annotations": [
                    {"image_id": "n1", "caption": text}
                    for text in ("A dog runs.", "Dogs", "Dogs", None, None)
                ],
            },
        ),
    ],
)
def test_every_caption_of_json_is_read(
    prepare: Callable, root: Path, file: str, content: object
) -> None:
    text = json.dumps(content)
    if isinstance(content, list) and (file == "x.jsonl" or len(content) > 1):
        text = "\n".join(map(json.dumps, content))
    suffix = Path(file).suffix
    write(root, {f"train{suffix}": text, f"val{suffix}": text.replace("a.jpg", "b.jpg")})
    outcome = prepare("folder")
    assert outcome.texts == {name: ["A dog runs.", "Dogs"] for name in ("a.jpg", "b.jpg")}
    assert outcome.splits == {"a.jpg": "train", "b.jpg": "val"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('a.jpg,"A dog\nb.jpg,A cat\na.jpg,Dogs"\n', "line 2: a quote that opens in this row is"),
        ('a.jpg,A dog\nb.jpg,"A cat\na.jpg,Dogs\n', "line 3: unexpected end of data: a quote"),
        ("a.jpg,'A dog, big'\n", "line 2: expected 2 columns, found 3; CSV allows no other quotes"),
        ('a.jpg,A "dog, big"\n', "the quotes must enclose the complete cell"),
        ("a.jpg,\"['A', 'B']\"\nb.jpg,\"['A dog, 'B']\"\n", "line 3: expected a list of captions"),
        (
            "a.jpg,\"['a', 'dog', 'runs']\"\n",
            "line 2: expected a list of captions, found a list of",
        ),
        ("a.jpg,A dog\ncaption,file_name\nA cat,b.jpg\n", "line 3: expected the columns in the"),
        ("a.jpg,A dog\nimage,text\nb.jpg,A cat\n", "line 3: expected a row, found a second header"),
        ("a.jpg,A dog runs. | Two dogs\n", "line 2: expected one caption, found several joined by"),
        ("a.jpg,A dog runs.###Two dogs\n", "line 2: expected one caption, found several joined by"),
        ("https://example.org/a.jpg,A dog\n", "line 2: expected the file name of a picture, found"),
        ("nan,A dog\n", "line 2: expected the file name of a picture, found 'nan'"),
        ("//example.org/a.jpg,A dog\n", "line 2: expected the file name of a picture, found"),
        ("a.jpg,A dog\nb.jpg\n", "line 3: expected caption, found only file_name\n"),
        ('a.jpg,"[A dog, A cat]"\n', "line 2: expected a list of captions in Python or JSON"),
        ("a.jpg,\"[array(['A dog'])]\"\n", "line 2: expected a list of captions in Python or JSON"),
    ],
)
def test_a_table_that_is_not_understood_is_refused_by_line(
    prepare: Callable, root: Path, table: str, message: str
) -> None:
    write(root, {"x.csv": HEADER + table})
    outcome = prepare("folder")
    assert outcome.status == 2
    assert message in outcome.err
    assert not (outcome.work / "captions.json").exists()


def test_a_table_without_quoting_may_have_quotes_in_captions(prepare: Callable, root: Path) -> None:
    write(root, {"x.tsv": 'file_name\tcaption\na.jpg\t"Hi" he says\nb.jpg\t"A cat\n'})
    assert prepare("folder").texts == {"a.jpg": ['"Hi" he says'], "b.jpg": ['"A cat']}


def test_quotes_escaped_by_backslashes_are_read(prepare: Callable, root: Path) -> None:
    write(root, {"x.csv": HEADER + 'a.jpg,"A \\"big\\" dog, ""old"""\nb.jpg,A cat\n'})
    assert prepare("folder").texts["a.jpg"] == ['A "big" dog, "old"']


def test_the_account_names_rows_captions_columns_and_what_is_left_out(
    prepare: Callable, root: Path
) -> None:
    rows = "a.jpg,Tom &amp; Jerry&#39;s dog,nan,4\na.jpg,,NULL,4\nb.jpg,A <b>cat</b>,A cat,\n,,,\n"
    write(root, {"x.csv": "file_name,caption,caption_2,width\n" + rows + "b.jpg,A cat,A cow,\n"})
    outcome = prepare("folder")
    assert outcome.texts == {
        "a.jpg": ["Tom & Jerry's dog"],
        "b.jpg": ["A cat", "A cat", "A cow"],
    }
    for line in (
        "x.csv: 4 rows, 8 captions in caption, caption_2; columns not used: width",
        "x.csv: 1 rows are blank",
        "x.csv: 1 captions of a picture are repeated, counted once",
        "2 captions had HTML entities or tags, which became plain text",
        "3 captions are empty or have no word, left out: 1 are 'nan', 1 are 'NULL'",
    ):
        assert line in outcome.out


# Columns with other names


def test_another_column_that_could_hold_captions_is_refused_until_columns_are_named(
    prepare: Callable, root: Path
) -> None:
    rows = "a.jpg,A dog runs,{}\nb.jpg,A cat,{}\n"
    for name, *texts in (
        ("zh", "一只狗在雪地里奔跑", "一只猫坐在垫子上"),
        ("caption_de", "Hunde", "Katze"),
        ("caption_de", "ein Hund im Schnee", "eine Katze im Garten"),
    ):
        write(root, {"x.csv": f"image,caption,{name}\n" + rows.format(*texts)})
        outcome = prepare("folder")
        assert outcome.status == 2
        assert f"line 2: expected captions in caption only, but the column '{name}'" in outcome.err
    chosen = prepare("folder", "--columns", "image=image,caption=caption")
    assert chosen.texts == {"a.jpg": ["A dog runs"], "b.jpg": ["A cat"]}
    assert "columns not used: caption_de" in chosen.out
    both = prepare("folder", "--columns", "image=image,caption=caption,caption=caption_de")
    assert both.texts["b.jpg"] == ["A cat", "eine Katze im Garten"]


def test_columns_of_any_name_can_be_chosen(prepare: Callable, root: Path) -> None:
    write(root, {"x.csv": "Bild;Satz;Teil\na.jpg;A dog;train\nb.jpg;A cat;val\n"})
    assert "--columns image=NAME,caption=NAME" in prepare("folder").err
    outcome = prepare("folder", "--columns", "image=Bild,caption=satz,split=Teil")
    assert outcome.splits == {"a.jpg": "train", "b.jpg": "val"}
    for columns, message in (
        ("image=Bild,caption=Sats", "unknown column 'Sats': did you mean Satz?"),
        ("image=Bild", "--columns: expected image=NAME,caption=NAME[,split=NAME]"),
        ("caption=Satz,picture=Bild", "--columns: expected image=NAME"),
    ):
        refused = prepare("folder", "--columns", columns)
        assert refused.status == 2
        assert message in refused.err
    assert (
        "--columns is for --dataset folder" in prepare("coco", "--columns", "image=a,caption=b").err
    )


# Layouts of others


def test_imagefolder_of_hugging_face_gives_splits(prepare: Callable, root: Path) -> None:
    table = "file_name,text\n1.jpg,A {} dog\n"
    write(
        root,
        {
            "train/metadata.csv": table.format("train"),
            "validation/metadata.csv": table.format("validation"),
            "test/metadata.jsonl": '{"file_name": "1.jpg", "text": "A test dog"}\n',
        },
        "train/1.jpg validation/1.jpg test/1.jpg",
    )
    outcome = prepare("folder")
    splits = {"train": "train", "validation": "val", "test": "test"}
    assert outcome.splits == {f"{folder}/1.jpg": split for folder, split in splits.items()}
    assert outcome.texts["validation/1.jpg"] == ["A validation dog"]
    for folder in ("validation", "test"):
        (next((root / folder).glob("metadata.*"))).unlink()
    write(root, {"train/metadata.csv": table.format("train") + "2.jpg,A cat\n"}, "train/2.jpg")
    assert set(prepare("folder").splits.values()) == {"train", "val"}  # only train/: by hash
    (root / "train/metadata.csv").unlink()
    (root / "train/2.jpg").unlink()
    rows = "".join(f"{folder}/1.jpg,A dog\n" for folder in splits)
    write(root, {"metadata.csv": "file_name,text\n" + rows}, "")
    assert prepare("folder").splits == outcome.splits
    (root / "metadata.csv").unlink()
    write(root, {f"{f}/x/metadata.csv": "file_name,text\n1.jpg,A dog\n" for f in ("train", "test")})
    write(root, {"validation/metadata.csv": table}, "train/x/1.jpg test/x/1.jpg")
    deeper = {"train/x/1.jpg": "train", "validation/1.jpg": "val", "test/x/1.jpg": "test"}
    assert prepare("folder").splits == deeper


def test_flickr30k_of_kaggle_is_read_with_its_broken_row(prepare: Callable, root: Path) -> None:
    rows = '1.jpg| 0| A man in a " hat " .\n2.jpg| 4   A dog runs .\n2.jpg| 0| "Hi" , he says .\n'
    write(
        root,
        {"flickr30k_images/results.csv": "image_name| comment_number| comment\n" + rows},
        "flickr30k_images/flickr30k_images/1.jpg flickr30k_images/flickr30k_images/2.jpg",
    )
    outcome = prepare("flickr30k")
    assert outcome.texts == {
        "1.jpg": ['A man in a " hat " .'],
        "2.jpg": ["A dog runs .", '"Hi" , he says .'],
    }
    assert "1 rows lack the separator after the caption's number, which was added" in outcome.out


def test_swallowed_rows_of_flickr8k_of_kaggle_are_refused(prepare: Callable, root: Path) -> None:
    table = 'image,caption\n1.jpg,"A dog\n2.jpg,A cat\n'
    write(root, {"captions.txt": table}, "Images/1.jpg Images/2.jpg")
    outcome = prepare("flickr8k")
    assert outcome.status == 2
    assert "captions.txt, line 2: a quote that opens in this row is not closed" in outcome.err


def test_duplicated_coco_annotations_count_once_and_text_ids_match_numbers(
    prepare: Callable, root: Path
) -> None:
    def content(image_id: int, id_in_annotations: object) -> str:
        annotations = [{"id": 1, "image_id": id_in_annotations, "caption": "A dog"}] * 2
        images = [{"id": image_id, "file_name": f"{image_id}.jpg"}]
        return json.dumps({"images": images, "annotations": annotations})

    write(
        root,
        {
            "annotations/captions_train2017.json": content(1, "0001"),
            "annotations/captions_val2017.json": content(2, 2.0),
        },
        "train2017/1.jpg val2017/2.jpg",
    )
    outcome = prepare("coco")
    assert [(i.id, len(i.captions)) for i in outcome.table.images] == [(1, 1), (2, 1)]
    assert "captions_train2017.json: 1 annotations are duplicated, counted once" in outcome.out


def test_text_files_beside_pictures_are_read(prepare: Callable, root: Path) -> None:
    files = {"a.txt": "A dog runs.\nDogs\n\n", "b.caption": "A cat", "d/README.txt": "Hello"}
    write(root, files, "a.jpg b.jpg c.jpg")
    outcome = prepare("folder")
    assert outcome.texts == TWO
    assert "1 pictures have no text file: c.jpg" in outcome.out
    assert "1 text files belong to no picture, not used: d/README.txt" in outcome.out
    (root / "a.txt").rename(root / "a.TXT").write_text("A cow")  # as Windows may spell it
    assert prepare("folder").texts["a.jpg"] == ["A cow"]
    (root / "b.txt").write_text("tag1, tag2")
    assert "b.txt: expected the captions of b.jpg in one file, found b.caption too" in (
        prepare("folder").err
    )
    (root / "b.txt").unlink()
    (root / "a.TXT").rename(root / "a.txt").write_text("0 0.5 0.5 0.1 0.2\n")
    assert "a.txt, line 1: expected a caption, found '0 0.5" in prepare("folder").err


def test_output_of_img2dataset_is_read(prepare: Callable, root: Path) -> None:
    write(
        root,
        {
            "00000/000000000.txt": "A dog",
            "00000/000000000.json": '{"caption": "A dog", "key": "000000000"}',
            "00000/000000001.json": '{"caption": "A cat", "status": "success"}',
            "00000/000000002.json": '{"caption": "A cow", "status": "failed_to_download"}',
            "00000_stats.json": '{"count": 3, "successes": 2, "failed_to_download": 1}',
            "00000.parquet": b"PAR1",
        },
        "00000/000000000.jpg 00000/000000001.jpg",
    )
    outcome = prepare("folder")
    assert outcome.texts == {"00000/000000000.jpg": ["A dog"], "00000/000000001.jpg": ["A cat"]}
    assert "1 of 3 downloads of img2dataset had failed" in outcome.out


@pytest.mark.usefixtures("closed")
def test_a_folder_that_cannot_be_opened_is_not_left_out(prepare: Callable, root: Path) -> None:
    write(root, {"a.txt": "A dog runs.", "closed/b.txt": "A cat"}, "a.jpg closed/b.jpg")
    assert f"cannot read {root / 'closed'}: Permission denied" in prepare("folder").err


def test_text_files_that_decoder_caption_wrote_are_never_learnt_from(
    prepare: Callable, root: Path
) -> None:
    ours = {"c.txt": "A generated dog.\n", "d.jpg.txt": "Another one.\n"}
    record = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in ours.items()}
    files = {**ours, "a.txt": "A dog runs.\nDogs", "b.txt": "A cat"}
    registry = json.dumps({**record, "b.txt": "0" * 64})  # a person has rewritten b.txt
    write(root, {**files, ".captions-generated.json": registry}, "a.jpg b.jpg c.jpg d.jpg")
    outcome = prepare("folder")
    assert outcome.texts == TWO
    assert "2 text files were written by decoder.caption, left out: c.txt, d.jpg.txt" in outcome.out
    (root / ".captions-generated.json").write_text("[]")
    assert "expected an object of names and hashes" in prepare("folder").err
    (root / ".captions-generated.json").unlink()  # as version 0.2 left the folder
    refused = prepare("folder")
    assert refused.status == 2
    assert "1 text files are named as decoder.caption --sidecar txt names those it" in refused.err


@pytest.mark.parametrize(
    ("file", "columns", "chosen"),
    [
        ("x.csv", COLUMNS, "image=path,caption=caption"),
        ("x.jsonl", (), "image=path,caption=caption"),
        ("0001.jsonl", (), "image=file_name,caption=caption"),
        ("pages.csv", Row._fields, "image=picture,caption=text"),
    ],
)
def test_tables_that_decoder_caption_wrote_are_learnt_from_only_if_columns_are_named(
    prepare: Callable, root: Path, file: str, columns: tuple[str, ...], chosen: str
) -> None:
    caption = Caption("A dog.", True, 0.3, -9.5, labels=("a grey wolf", "an arctic fox"))
    more = {"text": "A dog.", "written": "A dog."} if "text" in columns else {}
    image = chosen.split(",")[0].removeprefix("image=")
    rows = [{image: name, **caption.as_json(), **more} for name in ("a.jpg", "b.jpg")]
    text = io.StringIO()
    if columns:
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    write(root, {file: text.getvalue()})
    refused = prepare("folder")
    assert refused.status == 2
    assert f"{file} was written by decoder.caption; captions of a captioner must" in refused.err
    assert f"add --columns {chosen};" in refused.err
    assert prepare("folder", "--columns", chosen).texts == {
        "a.jpg": ["A dog."],
        "b.jpg": ["A dog."],
    }


# Names of pictures


def test_names_are_found_however_they_are_spelled(prepare: Callable, root: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é.jpg")
    spellings = {
        "images/p1.jpg": r"images\p1.jpg",
        decomposed: "é.jpg",
        "B.JPG": "./b.jpg ",
        "my pic.jpg": "my%20pic.jpg",
        "sub/q.png": "q.png",
        "k.jpeg": "root/k.jpeg",
        "no_suffix.webp": "no_suffix",
        "last.jpg": f"{root.resolve()}/last.jpg",
        "100%.jpg": "100%.jpg",
        "numbered.jpg": "numbered.jpg#3",
    }
    rows = "".join(f"{name},A dog {i}\n" for i, name in enumerate(spellings.values()))
    write(root, {"x.csv": HEADER + rows + "B.JPG,Exact\n"}, "")
    write(root, dict.fromkeys(spellings, JPEG), "")
    outcome = prepare("folder")
    assert outcome.texts == {
        name: [f"A dog {i}"] + ["Exact"] * (name == "B.JPG") for i, name in enumerate(spellings)
    }
    assert "9 file names are spelled differently on disk" in outcome.out
    assert "have no row" not in outcome.out


def test_paths_of_another_machine_are_found_by_their_ends(prepare: Callable, root: Path) -> None:
    spellings = {
        "a/1.jpg": "/home/me/set/a/1.jpg",
        "b/1.jpg": r"C:\Users\me\set\b\1.jpg",
        "c/2.jpg": r"\\nas\share\c\2.jpg",
        "3.jpg": "../root/3.jpg",
        "images/4.jpg": "a/../images/4.jpg",
        "5.jpg": f"{root.resolve()}/x/../5.jpg",
        "d/at 9\u202fAM.jpg": "file:///data/d/at 9 AM.jpg",
        "x & y.jpg": "x &amp;  y.jpg",
    }
    rows = "".join(f"{name},A dog {i}\n" for i, name in enumerate(spellings.values()))
    write(root, {"x.csv": HEADER + rows}, "")
    write(root, dict.fromkeys(spellings, JPEG), "")
    expected = {name: [f"A dog {i}"] for i, name in enumerate(spellings)}
    assert prepare("folder").texts == expected


def test_paths_of_another_machine_are_not_guessed(prepare: Callable, root: Path) -> None:
    table = HEADER + "/x/1.jpg,A dog\n/y/1.jpg,A cat\n2.jpg,A cow\n"
    write(root, {"x.csv": table}, "1.jpg 2.jpg")
    refused = prepare("folder").err
    assert "expected file names inside of it, 2 of 3 leave it: '/x/1.jpg', '/y/1.jpg'" in refused
    assert "did you mean '1.jpg' for '/x/1.jpg'" in refused


@pytest.mark.parametrize(
    ("name", "pictures", "near"),
    [
        ("1.jpg", "a/1.jpg b/1.jpg", "'a/1.jpg' for '1.jpg'"),  # which of them?
        ("old/1.jpg", "1.jpg", "'1.jpg' for 'old/1.jpg'"),
        ("1.jpeg", "1.jpg", "'1.jpg' for '1.jpeg'"),
        ("beech_dog.jpg", "beach_dog.jpg", "'beach_dog.jpg' for 'beech_dog.jpg'"),
    ],
)
def test_the_near_miss_of_a_name_is_given(
    prepare: Callable, root: Path, name: str, pictures: str, near: str
) -> None:
    table = f"file_name,caption,split\nx.jpg,A cow,train\n{name},A dog,val\n"
    write(root, {"x.csv": table}, f"x.jpg {pictures}")
    outcome = prepare("folder")
    assert outcome.status == 2
    assert f"1 of 2 pictures are missing: {name}; --skip-missing leaves them out" in outcome.err
    assert f"did you mean {near}?" in outcome.err


def test_a_name_without_its_folder_is_not_given_to_the_picture_of_another_row(
    prepare: Callable, root: Path
) -> None:
    write(root, {"x.csv": HEADER + "1.jpg,A dog\nb/1.jpg,A cat\n2.jpg,A cow\n"}, "b/1.jpg 2.jpg")
    assert "1 of 3 pictures are missing: 1.jpg" in prepare("folder").err


def test_skip_missing_is_advised_only_where_a_training_picture_would_be_left(
    prepare: Callable, root: Path
) -> None:
    write(root, {"x.csv": HEADER + "x/a.jpg,A dog\nx/b.jpg,A cat\n"})
    for options in ([], ["--skip-missing"]):
        outcome = prepare("folder", *options)
        assert outcome.status == 2
        assert "2 of 2 pictures are missing: x/a.jpg, x/b.jpg; no training picture" in outcome.err
        assert "--skip-missing" not in outcome.err


# Files that are something else


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x1f\x8b\x08", "a gzip archive: unpack it with gunzip"),
        (b"\xd0\xcf\x11\xe0\xa1", "a spreadsheet of old Excel (.xls)"),
        (b"PAR1\x15\x04\x15\0", "a Parquet file: export it"),
        (b"ORC\n\x80", "an ORC file: export it"),
        (b"\x93NUMPY\1", "a NumPy array"),
        (b"/annex/objects/SHA256E-s1.csv\n", "a pointer of git-annex, not the file itself"),
        (b"<!-- 404 -->\n<html>", "an HTML page, such as the error page of a server"),
        (b"\n<!DOCTYPE HTML PUBLIC>", "an HTML page"),
        (LFS, "a pointer of git-lfs, not the file itself: run git lfs pull"),
        (JPEG, "a JPEG picture"),
    ],
)
def test_a_table_that_is_another_kind_of_file_is_named(
    prepare: Callable, root: Path, content: bytes, kind: str
) -> None:
    write(root, {"x.csv": content})
    assert f"x.csv: expected text, found {kind}" in prepare("folder").err


def test_texts_that_begin_like_another_kind_of_file_are_read(prepare: Callable, root: Path) -> None:
    texts = ["ORCHIDS IN A VASE", "ORC " + 499 * "é", "Rar!", "BZh"]
    files = {f"{number}.txt": text for number, text in enumerate(texts)}
    write(root, files, " ".join(f"{number}.jpg" for number in range(4)))
    assert prepare("folder").texts == {f"{n}.jpg": [text] for n, text in enumerate(texts)}


def test_tables_without_rows_are_named(prepare: Callable, root: Path) -> None:
    for content, message in (
        ("", "x.csv: expected a table, found an empty file"),
        ("404: Not Found", "and rows below them, found '404: Not Found'"),
        ("# made by x\nimage,caption\na.jpg,A dog\n", "found '# made by x'"),
    ):
        write(root, {"x.csv": content})
        assert message in prepare("folder").err


def test_files_that_cannot_be_the_table_are_named(prepare: Callable, root: Path) -> None:
    write(root, {"captions.xlsx": b"PK\3\4 xl/", "data.csv.gz": b"\x1f\x8b"})
    refused = prepare("folder").err
    assert "found captions.xlsx (an archive or a spreadsheet" in refused
    assert "data.csv.gz (a gzip archive: unpack it with gunzip)" in refused
    assert "it is a gzip archive" in prepare("folder", root=root / "data.csv.gz").err


def test_unreadable_pictures_are_named_and_the_stage_ends_well(
    prepare: Callable, root: Path
) -> None:
    pages = {"b.jpg": b"<html>", "c.jpg": LFS, "d.jpg": b"", "e.jpg": b"<svg>"}
    rows = "".join(f"{name}.jpg,A dog\n" for name in "abcde")
    write(root, {"x.csv": HEADER + rows, **pages})
    outcome = prepare("folder")
    assert len(outcome.texts) == 5  # pipeline.extract tries them, as they may be repaired by then
    assert (
        "4 pictures cannot be read, pipeline.extract leaves them out: b.jpg (an HTML" in outcome.out
    )
    assert "d.jpg (an empty file), e.jpg (an SVG drawing: convert it to PNG)" in outcome.out


def test_a_folder_of_pointers_only_is_refused(prepare: Callable, root: Path) -> None:
    write(root, {"x.csv": HEADER + "a.jpg,A dog\nb.jpg,A cat\n", "a.jpg": LFS, "b.jpg": LFS})
    outcome = prepare("folder")
    assert outcome.status == 2
    assert "found in each of the 2 files a pointer of git-lfs" in outcome.err
