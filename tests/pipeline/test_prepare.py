"""What the stage prepare writes, prints, skips and refuses; formats: test_prepare_formats.py."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import captions
from pipeline.datasets import READERS
from pipeline.options import DATASETS, content_of_root
from pipeline.prepare import main

HEADER = "file_name,caption,split\n"


def make_folder(root: Path, names: str = "abc", rows: str | None = None) -> None:
    """Pictures a.jpg, b.jpg, ... and captions.csv; a is for training, b for validation."""
    for name in names:
        (root / f"{name}.jpg").touch()
    if rows is None:
        rows = "a.jpg,A dog runs.,train\na.jpg,Two dogs,train\nb.jpg,A cat,val\nc.jpg,Cats,test\n"
    (root / "captions.csv").write_text(HEADER + rows)


def test_every_data_set_has_a_reader() -> None:
    assert {*READERS, "shards"} == set(DATASETS)  # those are streamed; see prepare_shards


def test_table_and_vocabulary_are_written_and_summarized(prepare: Callable, root: Path) -> None:
    make_folder(root)
    outcome = prepare("folder", "--max-length", "2")
    assert [image.id for image in outcome.table.images] == [1, 2, 3]
    assert outcome.splits == {"a.jpg": "train", "b.jpg": "val", "c.jpg": "test"}
    assert outcome.texts["a.jpg"] == ["A dog runs.", "Two dogs"]
    assert outcome.table.images[0].captions[0].tokens == ("a", "dog", "runs")
    assert "1 train, 1 val, 1 test images of folder" in outcome.out
    assert "4 captions, 1 longer than 2 words" in outcome.out


def test_vocabulary_has_words_of_training_captions_only(prepare: Callable, root: Path) -> None:
    make_folder(root)
    outcome = prepare("folder")
    assert outcome.vocabulary.words[4:] == ("a", "dog", "dogs", "runs", "two")


def test_share_of_known_words_is_printed(prepare: Callable, root: Path) -> None:
    make_folder(root, "ab", "a.jpg,dog dog dog cat,train\nb.jpg,cow,val\n")
    outcome = prepare("folder", "--min-count", "2")
    assert "vocabulary of 1 words, 75.00% of the 4 in training captions; 1 unknown" in outcome.out


def test_newlines_and_tabs_in_captions_become_spaces(prepare: Callable, root: Path) -> None:
    make_folder(root, "ab", 'a.jpg,"A dog\n\truns\u2028fast ",train\nb.jpg,x,val\n')
    assert prepare("folder").texts["a.jpg"] == ["A dog runs fast"]


def test_shapes_are_drawn_into_the_work_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    command = ["--dataset", "shapes", "--work", str(work), "--images", "20", "--size", "64"]
    assert main(command) == 0
    assert "16 train, 2 val, 2 test images of shapes" in capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == "prepare: unchanged, skipped\n"
    (work / "images" / "000003.jpg").unlink()
    assert main(command) == 0  # draws the deleted picture again
    work = work.rename(tmp_path / "moved")  # the pictures move with it
    table = captions.load(work / "captions.json")
    assert {len(image.captions) for image in table.images} == {5}
    assert all(table.path(image).is_file() for image in table.images)


# Skipping


def test_second_run_is_skipped(prepare: Callable, root: Path) -> None:
    make_folder(root)
    prepare("folder")
    assert prepare("folder").out == "prepare: unchanged, skipped\n"


def test_changed_option_or_force_runs_the_stage_again(prepare: Callable, root: Path) -> None:
    make_folder(root)
    prepare("folder")
    assert prepare("folder", "--max-length", "3").vocabulary.max_length == 3
    assert "unchanged" in prepare("folder", "--max-length", "3").out
    assert "unchanged" not in prepare("folder", "--max-length", "3", "--force").out


def test_changed_captions_run_the_stage_again(prepare: Callable, root: Path) -> None:
    make_folder(root)
    prepare("folder")
    make_folder(root, "d", "a.jpg,A horse,train\nd.jpg,A cow,val\n")
    assert prepare("folder").texts == {"a.jpg": ["A horse"], "d.jpg": ["A cow"]}


def test_deleted_picture_runs_the_stage_again_and_is_reported(
    prepare: Callable, root: Path
) -> None:
    make_folder(root)
    prepare("folder")
    os.utime(root, (0, 0))
    prepare("folder")
    (root / "c.jpg").unlink()
    assert "1 of 3 pictures are missing: c.jpg" in prepare("folder").err


def test_deleted_output_is_written_again(prepare: Callable, root: Path) -> None:
    make_folder(root)
    (prepare("folder").work / "vocabulary.json").unlink()
    assert len(prepare("folder").vocabulary) == 9


def test_second_run_with_the_work_directory_inside_the_root_is_skipped(
    root: Path, prepare: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(root)
    command = ["--dataset", "folder", "--root", str(root), "--work", str(root / "work")]
    assert main([*command, "--min-count", "1"]) == 0
    capsys.readouterr()
    assert main([*command, "--min-count", "1"]) == 0
    assert capsys.readouterr().out == "prepare: unchanged, skipped\n"


def test_escapes_in_captions_do_not_reach_the_vocabulary(prepare: Callable, root: Path) -> None:
    """They would control the terminal that captions are printed on."""
    make_folder(root, "ab", "a.jpg,A \x1b[31mdog\x07 runs,train\nb.jpg,x,val\n")
    outcome = prepare("folder")
    assert outcome.texts["a.jpg"] == ["A [31mdog runs"]
    assert all(word.isprintable() for word in outcome.vocabulary.words)


def test_circular_link_is_not_taken_for_a_picture(prepare: Callable, root: Path) -> None:
    make_folder(root)
    (root / "circle.jpg").symlink_to(root / "circle.jpg")
    outcome = prepare("folder")
    assert outcome.status == 0
    assert "passed over in the folder: 1 x link to a file that is missing" in outcome.out


def test_same_seed_gives_the_same_bytes(tmp_path: Path, root: Path) -> None:
    """Also if PYTHONHASHSEED differs, and with it the order of sets."""
    root.mkdir()
    make_folder(root, "abcdefghij", "".join(f"{n}.jpg,A {n} dog\n" for n in "jihgfedcba"))
    (root / "captions.csv").write_text((root / "captions.csv").read_text().replace(",split", ""))
    given = {"folder": ["--root", str(root)], "shapes": ["--images", "10", "--size", "32"]}

    def made(hash_seed: str) -> list[bytes]:
        common = ["--seed", "5", "--min-count", "1"]
        works = {dataset: tmp_path / hash_seed / dataset for dataset in given}
        commands = [
            ["--dataset", dataset, "--work", str(works[dataset]), *common, *options]
            for dataset, options in given.items()
        ]
        code = f"from pipeline.prepare import main; exit(any(map(main, {commands!r})))"
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True
        )
        files = ("captions.json", "vocabulary.json")
        return [(work / file).read_bytes() for work in works.values() for file in files]

    first, second = made("1"), made("2")
    assert first == second
    assert len(set(first)) == 4


def test_failed_run_keeps_the_earlier_output(prepare: Callable, root: Path) -> None:
    make_folder(root)
    before = prepare("folder").table
    (root / "captions.csv").write_text(HEADER)
    failed = prepare("folder")
    assert failed.status == 2
    assert failed._replace(status=0).table == before


def test_edited_captions_beside_pictures_run_the_stage_again(
    prepare: Callable, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    texts = [root / name for name in ("a.caption", "b.TXT", "link/inner/c.txt")]
    for text in texts:
        text.with_suffix(".jpg").touch()
        text.write_text("A dog")
    prepare("folder")
    for text in texts:
        text.write_text("A cat")
        assert prepare("folder").texts[f"{text.relative_to(root).with_suffix('.jpg')}"] == ["A cat"]


# What is left out is counted


def test_captions_without_blanks_between_words_are_reported(prepare: Callable, root: Path) -> None:
    rows = "a.jpg,一只棕色的狗在雪地里奔跑。,train\na.jpg,一只 棕色 的 狗,train\n"
    make_folder(root, rows=f"{rows}b.jpg,Ein Hund läuft,val\n")
    assert "1 captions are in a script without blanks between words" in prepare("folder").out


def test_empty_and_wordless_captions_are_left_out_and_counted(
    prepare: Callable, root: Path
) -> None:
    make_folder(root, "ab", "a.jpg,,train\na.jpg, ... ,train\na.jpg,A dog,train\nb.jpg,x,val\n")
    outcome = prepare("folder")
    assert outcome.texts["a.jpg"] == ["A dog"]
    assert "2 captions are empty or have no word, left out" in outcome.out


def test_images_without_captions_are_left_out_and_counted(prepare: Callable, root: Path) -> None:
    make_folder(root, "abcd", "a.jpg,A dog,train\nb.jpg,x,val\nc.jpg,,test\n")
    outcome = prepare("folder")
    assert set(outcome.splits) == {"a.jpg", "b.jpg"}
    assert "1 images have no caption, left out: c.jpg" in outcome.out
    assert "1 pictures have no row in captions.csv: d.jpg" in outcome.out


def test_pictures_keep_their_ids_when_others_come_and_go(prepare: Callable, root: Path) -> None:
    """Features, captions and scores are stored by these ids."""
    make_folder(root, "bc", "b.jpg,A dog,train\nc.jpg,A cat,val\n")
    assert {i.file_name: i.id for i in prepare("folder").table.images} == {"b.jpg": 1, "c.jpg": 2}
    rows = "a.jpg,A hat,train\nb.jpg,A dog,train\nc.jpg,A cat,val\n"
    make_folder(root, "abc", rows)
    ids = {image.file_name: image.id for image in prepare("folder").table.images}
    assert (ids["b.jpg"], ids["c.jpg"]) == (1, 2)
    make_folder(root, "abc", "a.jpg,A hat,train\nc.jpg,A cat,val\n")
    left = {image.file_name: image.id for image in prepare("folder").table.images}
    assert left == {name: ids[name] for name in ("a.jpg", "c.jpg")}


def test_a_picture_above_the_old_root_does_not_get_the_id_of_its_namesake_there(
    prepare: Callable, root: Path
) -> None:
    (root / "2023").mkdir()
    make_folder(root / "2023", "ab", "a.jpg,A dog,train\nb.jpg,A cat,val\n")
    prepare("folder", root=root / "2023")
    make_folder(root, "a", "2023/a.jpg,A dog,train\n2023/b.jpg,A cat,val\na.jpg,A hat,train\n")
    ids = {image.file_name: image.id for image in prepare("folder").table.images}
    assert ids == {"2023/a.jpg": 1, "2023/b.jpg": 2, "a.jpg": 3}


def test_ids_whose_features_are_of_other_pictures_are_refused(
    prepare: Callable, root: Path
) -> None:
    make_folder(root, "ab", "a.jpg,A dog,train\nb.jpg,A cat,val\n")
    work = prepare("folder").work
    (work / "features.h5").touch()
    for name in "ab":
        (root / f"{name}.jpg").rename(root / f"other_{name}.jpg")
    (root / "captions.csv").write_text(
        "file_name,caption,split\nother_a.jpg,A hat,train\nother_b.jpg,A cap,val\n"
    )
    outcome = prepare("folder")
    assert outcome.status == 2
    assert "features of other pictures under the same image ids: 1 is a.jpg there" in outcome.err
    assert "use another --work" in outcome.err


def test_missing_pictures_stop_the_stage_and_are_counted(prepare: Callable, root: Path) -> None:
    make_folder(root, "a", "a.jpg,x,train\n" + "".join(f"{i}.jpg,x,val\n" for i in range(10, 17)))
    outcome = prepare("folder")
    assert outcome.status == 2
    assert (
        "7 of 8 pictures are missing: 10.jpg, 11.jpg, 12.jpg, 13.jpg, 14.jpg and 2 more; "
        "--skip-missing leaves them out"
    ) in outcome.err
    assert not (outcome.work / "captions.json").exists()


def test_skip_missing_leaves_pictures_out_without_renumbering(
    prepare: Callable, root: Path
) -> None:
    make_folder(root, "ac")
    outcome = prepare("folder", "--skip-missing")
    assert [(image.id, image.file_name) for image in outcome.table.images] == [
        (1, "a.jpg"),
        (3, "c.jpg"),
    ]
    assert "1 pictures are missing, left out: b.jpg" in outcome.out


# Bad input: exit status 2, one message, no traceback


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "",
            "captions.csv, line 1: expected the names of the columns, such as file_name,caption,",
        ),
        (
            "a.jpg,,train\nb.jpg,...,val\n",
            "expected images with captions, found none in any split",
        ),
        ("../z.jpg,A dog,train\n", "1 of 1 leave it: '../z.jpg'"),
        ("/etc/passwd,A dog,train\n", "1 of 1 leave it: '/etc/passwd'"),
        ("a.jpg,A dog,train\na.jpg,A dog,val\n", "line 3: a.jpg is in the split val and in train"),
        ("a.jpg,A dog,trian\n", "line 2: unknown split 'trian'; expected train, val or test"),
        (f"{'x' * 300}.jpg,A dog,train\n", "1 of 1 pictures are missing"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    prepare: Callable, root: Path, rows: str, message: str
) -> None:
    make_folder(root, "ab", rows)
    outcome = prepare("folder")
    assert outcome.status == 2
    assert message in outcome.err


def test_empty_vocabulary_is_refused(prepare: Callable, root: Path) -> None:
    make_folder(root)
    outcome = prepare("folder", "--min-count", "9")
    assert outcome.status == 2
    assert "no word occurs 9 times in the captions of the 1 training images" in outcome.err
    assert not (outcome.work / "captions.json").exists()


def test_captions_that_are_not_utf8_are_refused_by_line(prepare: Callable, root: Path) -> None:
    make_folder(root)
    (root / "captions.csv").write_bytes(b"file_name,caption\na.jpg,un caf\xe9\n")
    outcome = prepare("folder")
    assert outcome.status == 2
    assert "captions.csv, line 2: expected UTF-8, found the byte 0xe9" in outcome.err
    (root / "captions.csv").write_bytes(b"PK\3\4 as an .xlsx begins")
    assert "an archive or a spreadsheet; save it as CSV" in prepare("folder").err


def test_unknown_data_set_suggests_the_nearest(prepare: Callable) -> None:
    outcome = prepare("flicker8k")
    assert outcome.status == 2
    assert "unknown data set 'flicker8k': did you mean flickr8k" in outcome.err


def test_unknown_option_suggests_the_nearest(prepare: Callable) -> None:
    outcome = prepare("folder", "--min-cuont", "5")
    assert outcome.status == 2
    assert "did you mean --min-count?" in outcome.err


def test_a_circular_link_as_root_is_refused(prepare: Callable, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    outcome = prepare("folder", root=tmp_path / "loop")
    assert outcome.status == 2
    assert "loop: there is no such folder; expected the folder of your pictures" in outcome.err


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name != "shapes"])
def test_missing_root_is_refused(prepare: Callable, dataset: str, tmp_path: Path) -> None:
    outcome = prepare(dataset, root=tmp_path / "nowhere")
    assert outcome.status == 2
    assert f"nowhere: there is no such folder; expected {content_of_root(dataset)}" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "flickr8k", "--work", "w"], "flickr8k needs --root"),
        (["--dataset", "folder", "--work", "w", "--root", "w"], "another folder than --root"),
        (["--dataset", "shapes", "--work", "w", "--root", "r"], "leave out --root"),
        (
            ["--dataset", "shapes", "--work", "w", "--min-count", "0"],
            "--min-count must be at least",
        ),
        (["--dataset", "shapes", "--work", "w", "--max-length", "0"], "--max-length must be at"),
        (
            ["--dataset", "shapes", "--work", "w", "--max-length", "1001"],
            "--max-length must be at most 1000",
        ),
        (["--dataset", "shapes", "--work", "w", "--images", "0"], "--images must be at least 1"),
        (
            ["--dataset", "shards", "--work", "w", "--root", "r", "--captions", "c.json"],
            "--captions is for --dataset karpathy or folder, found shards",
        ),
    ],
)
def test_invalid_options_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_work_directory_that_cannot_be_created_is_refused(
    prepare: Callable, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(root)
    work = str(root / "a.jpg" / "work")
    assert main(["--dataset", "folder", "--root", str(root), "--work", work]) == 2
    assert f"the folder {work}: Not a directory" in capsys.readouterr().err


def test_lone_surrogate_in_a_caption_is_replaced(prepare: Callable, root: Path) -> None:
    for name in "ab":
        (root / f"{name}.jpg").touch()
    rows = [{"file_name": f"{name}.jpg", "caption": "A dog \ud83d runs"} for name in "ab"]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert prepare("folder").texts["a.jpg"] == ["A dog ? runs"]
