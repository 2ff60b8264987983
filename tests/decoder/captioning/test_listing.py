"""Captions of many pictures in one file, through the command line: finished work is kept."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from decoder import caption

HARD = ('comma, "quoted".png', "plain.png", "é.png", os.fsdecode(b"not-utf8-\xff.png"))
KINDS = pytest.mark.parametrize("kind", ["csv", "jsonl"])


@pytest.fixture
def album(captioner: Path, tmp_path: Path) -> Path:
    """A folder of pictures whose names are hard to write into a file."""
    folder = tmp_path / "album"
    folder.mkdir()
    for picture, name in zip(sorted((captioner / "images").iterdir()), HARD, strict=False):
        shutil.copy(picture, folder / name)
    return folder


def command(captioner: Path, album: Path, out: Path, *options: str) -> list[str]:
    run = str(captioner / "runs" / "captioner")
    return ["--run", run, "--out", str(out), str(album), *options]


def rows_of(out: Path) -> dict[str, dict]:
    if out.suffix == ".csv":
        with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        for row in rows:  # the last digits depend on how many pictures are computed together
            if row.get("log_probability") is not None:
                row["log_probability"] = round(row["log_probability"], 4)
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows), "a picture has two rows"
    return by_path


@KINDS
def test_every_picture_has_a_row_with_the_caption_that_is_printed(captioner, album, kind, capsys):
    out = album.parent / f"captions.{kind}"
    assert caption.main(command(captioner, album, out)) == 0
    rows = rows_of(out)
    assert set(rows) == {str(album / name) for name in HARD}
    run = str(captioner / "runs" / "captioner")
    capsys.readouterr()
    assert caption.main(["--run", run, "--json", str(album)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    printed = {line["path"]: line["caption"] for line in lines}
    assert len(set(printed.values())) > 1
    columns = {"path", "caption", "unsure", "confidence", "bytes", "modified", "writer"}
    for path, row in rows.items():
        assert row["caption"] == printed[path]
        assert columns <= set(row)
        assert int(row["bytes"]) == Path(path).stat().st_size
        assert str(row["unsure"]).lower() == "false"


@KINDS
def test_only_new_and_changed_pictures_are_captioned_again(captioner, album, kind, capsys):
    out = album.parent / f"captions.{kind}"
    assert caption.main(command(captioner, album, out)) == 0
    before = rows_of(out)
    content = out.read_bytes()
    capsys.readouterr()
    assert caption.main(command(captioner, album, out)) == 0
    assert f"0 captions added to {out}, {len(HARD)} already there" in capsys.readouterr().out
    assert out.read_bytes() == content

    shutil.copy(album / "plain.png", album / "new.png")
    shutil.copy(album / "é.png", album / "plain.png")
    capsys.readouterr()
    assert caption.main(command(captioner, album, out)) == 0
    assert f"2 captions added to {out}, {len(HARD) - 1} already there" in capsys.readouterr().out
    after = rows_of(out)
    new, changed, same = (str(album / name) for name in ("new.png", "plain.png", "é.png"))
    assert after[new]["caption"] == before[changed]["caption"]
    assert after[changed]["caption"] == after[same]["caption"]


@KINDS
def test_an_incomplete_last_line_is_captioned_again(captioner, album, kind):
    out = album.parent / f"captions.{kind}"
    assert caption.main(command(captioner, album, out)) == 0
    before = rows_of(out)
    out.write_bytes(out.read_bytes()[:-20])
    assert caption.main(command(captioner, album, out)) == 0
    assert rows_of(out) == before


@KINDS
def test_captions_of_different_options_do_not_mix(captioner, album, kind, capsys):
    out = album.parent / f"captions.{kind}"
    assert caption.main(command(captioner, album, out)) == 0
    content = out.read_bytes()
    assert caption.main(command(captioner, album, out, "--max-length", "2")) == 2
    assert "would not be comparable" in capsys.readouterr().err
    assert out.read_bytes() == content
    assert caption.main(command(captioner, album, out, "--max-length", "2", "--force")) == 0
    assert all(len(row["caption"].split()) <= 2 for row in rows_of(out).values())


@KINDS
def test_a_file_that_is_not_ours_is_left_alone(captioner, album, kind, capsys):
    out = album.parent / f"captions.{kind}"
    out.write_text("name;age\nAnn;7\n")
    assert caption.main(command(captioner, album, out)) == 2
    assert f"{out}, line 1: expected a caption written by this command" in capsys.readouterr().err
    assert out.read_text() == "name;age\nAnn;7\n"


def test_a_name_with_a_line_break_is_refused_in_csv_and_kept_in_jsonl(captioner, album):
    shutil.copy(album / "plain.png", album / "two\nlines.png")
    assert caption.main(command(captioner, album, album.parent / "captions.csv")) == 2
    out = album.parent / "captions.jsonl"
    assert caption.main(command(captioner, album, out)) == 0
    assert str(album / "two\nlines.png") in rows_of(out)


@KINDS
def test_a_broken_picture_is_reported_and_the_others_have_rows(captioner, album, kind, capsys):
    (album / "broken.png").write_bytes(b"\x89PNG")
    out = album.parent / f"captions.{kind}"
    assert caption.main(command(captioner, album, out)) == 2
    assert "broken.png" in capsys.readouterr().err
    assert set(rows_of(out)) == {str(album / name) for name in HARD}


def test_a_damaged_row_is_refused_with_its_line_number(captioner, album, capsys):
    out = album.parent / "captions.jsonl"
    assert caption.main(command(captioner, album, out)) == 0
    first = json.loads(out.read_text(encoding="utf-8").splitlines()[0])
    for name, value in {"bytes": float("inf"), "path": "a\0b", "modified": None}.items():
        out.write_text(json.dumps({**first, name: value}) + "\n")
        assert caption.main(command(captioner, album, out)) == 2
        assert "line 1: expected a caption written by this command" in capsys.readouterr().err


def test_a_killed_run_continues_to_the_same_captions(captioner, tmp_path):
    pictures = captioner / "images"
    complete, killed = tmp_path / "complete.jsonl", tmp_path / "killed.jsonl"
    one_by_one = ["--batch-size", "1"]
    assert caption.main(command(captioner, pictures, complete, *one_by_one)) == 0
    arguments = command(captioner, pictures, killed, *one_by_one)
    process = subprocess.Popen([sys.executable, "-m", "decoder.caption", *arguments])
    while process.poll() is None and not (killed.exists() and killed.stat().st_size > 500):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert killed.read_bytes().count(b"\n") > 0
    assert caption.main(command(captioner, pictures, killed, *one_by_one)) == 0
    expected, found = rows_of(complete), rows_of(killed)
    assert {p: row["caption"] for p, row in found.items()} == {
        p: row["caption"] for p, row in expected.items()
    }
