"""Captions of many pictures in one file, through the command line: finished work is kept."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from decoder import caption
from decoder.captioning import caption_stage
from decoder.captioning.listing import Listing, State
from decoder.captioning.writer import Caption, CaptionWriter
from features.errors import UserError

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
    assert set(rows) == {f"album/{name}" for name in HARD}
    run = str(captioner / "runs" / "captioner")
    capsys.readouterr()
    assert caption.main(["--run", run, "--json", str(album)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    printed = {line["path"]: line["caption"] for line in lines}
    assert len(set(printed.values())) > 1
    columns = {"path", "caption", "unsure", "confidence", "bytes", "modified", "writer", "error"}
    for path, row in rows.items():
        assert row["caption"] == printed[str(out.parent / path)]
        assert columns <= set(row)
        assert int(row["bytes"]) == (out.parent / path).stat().st_size
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
    new, changed, same = (f"album/{name}" for name in ("new.png", "plain.png", "é.png"))
    assert after[new]["caption"] == before[changed]["caption"]
    assert after[changed]["caption"] == after[same]["caption"]


@KINDS
def test_a_table_is_replaced_only_once_there_is_a_new_row(tmp_path, kind, monkeypatch, capsys):
    class Writer(CaptionWriter):
        damaged = True

        def identity(self):
            return "writer"

        def results(self, paths, done=0, quiet=False):
            if self.damaged:
                raise UserError("the run is damaged")
            yield paths[0], [Caption("A dog.", False, None, -1.0)]

    monkeypatch.setattr(caption_stage, "CaptionWriter", Writer)
    out = tmp_path / f"captions.{kind}"
    out.write_text("corrected by hand\n")
    again = [str(tmp_path / "dog.jpg"), "--out", str(out), "--force"]
    assert caption.main(again) == 2
    assert "the run is damaged" in capsys.readouterr().err
    assert out.read_text() == "corrected by hand\n"
    monkeypatch.setattr(Writer, "damaged", False)
    assert caption.main(again) == 0
    assert {row["caption"] for row in rows_of(out).values()} == {"A dog."}


def test_a_picture_that_cannot_be_read_is_counted(captioner, tmp_path, capsys):
    out = tmp_path / "captions.csv"
    assert caption.main(command(captioner, tmp_path / "nowhere.jpg", out)) == 1
    printed = capsys.readouterr()
    counted = "0 already there, 1 picture without one (named below)"
    assert f"0 captions added to {out}, {counted}" in printed.out
    assert "cannot read" in printed.err
    assert "nowhere.jpg" in printed.err


@KINDS
def test_an_incomplete_last_line_is_captioned_again_but_not_a_whole_one(captioner, album, kind):
    out = album.parent / f"captions.{kind}"
    assert caption.main(command(captioner, album, out)) == 0
    before = rows_of(out)
    out.write_bytes(out.read_bytes()[:-20])
    assert caption.main(command(captioner, album, out)) == 0
    assert rows_of(out) == before
    # Where only the line end is missing, a person may have written the row.
    text = out.read_text(errors="surrogateescape").rstrip("\n")
    last = rows_of(out)[list(before)[-1]]["caption"]
    out.write_text("Mine.".join(text.rsplit(last, 1)), errors="surrogateescape")
    assert caption.main(command(captioner, album, out)) == 0
    assert "Mine." in {row["caption"] for row in rows_of(out).values()}


def test_a_table_that_lost_columns_names_them(captioner, album, capsys):
    out = album.parent / "captions.csv"
    out.write_text("path,caption,unsure,bytes,modified,writer,error\na.png,Mine.,,1,2,x,\n")
    before = out.read_bytes()
    assert caption.main(command(captioner, album, out)) == 2
    assert "has lost the columns confidence, labels; restore" in capsys.readouterr().err
    assert out.read_bytes() == before


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
    assert (
        f"{out}, line 1: expected a caption written by decoder.caption" in capsys.readouterr().err
    )
    assert out.read_text() == "name;age\nAnn;7\n"


def test_a_name_with_a_line_break_is_refused_in_csv_and_kept_in_jsonl(captioner, album):
    shutil.copy(album / "plain.png", album / "two\nlines.png")
    assert caption.main(command(captioner, album, album.parent / "captions.csv")) == 2
    out = album.parent / "captions.jsonl"
    assert caption.main(command(captioner, album, out)) == 0
    assert "album/two\nlines.png" in rows_of(out)


@KINDS
def test_a_broken_picture_is_reported_and_the_others_have_rows(captioner, album, kind, capsys):
    (album / "broken.png").write_bytes(b"\x89PNG")
    out = album.parent / f"captions.{kind}"
    for _ in range(2):  # the second run reads the reason in its row
        assert caption.main(command(captioner, album, out)) == 1
        (error,) = capsys.readouterr().err.splitlines()
        assert "broken.png: a damaged or truncated PNG file" in error
        rows = rows_of(out)
        assert set(rows) == {f"album/{name}" for name in (*HARD, "broken.png")}
        assert not rows["album/broken.png"]["caption"]
        assert "a damaged or truncated PNG" in rows["album/broken.png"]["error"]
    shutil.copy(album / "plain.png", album / "broken.png")
    assert caption.main(command(captioner, album, out)) == 0
    rows = rows_of(out)
    assert rows["album/broken.png"]["caption"] == rows["album/plain.png"]["caption"]
    assert not rows["album/broken.png"]["error"]


def test_a_damaged_row_is_refused_with_its_line_number(captioner, album, capsys):
    out = album.parent / "captions.jsonl"
    assert caption.main(command(captioner, album, out)) == 0
    first = json.loads(out.read_text(encoding="utf-8").splitlines()[0])
    for name, value in {"bytes": float("inf"), "path": "a\0b", "modified": None}.items():
        out.write_text(json.dumps({**first, name: value}) + "\n")
        assert caption.main(command(captioner, album, out)) == 2
        assert "line 1: expected a caption written by decoder.caption" in capsys.readouterr().err


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


def two_albums(captioner: Path, folder: Path) -> list[Path]:
    """Two folders with a picture of the same relative name each."""
    pictures = sorted((captioner / "images").iterdir())
    for name, picture in zip(("a", "b"), pictures, strict=False):
        (folder / name / "photos").mkdir(parents=True)
        shutil.copy(picture, folder / name / "photos" / "1.png")
    return [folder / "a", folder / "b"]


@KINDS
def test_albums_with_the_same_relative_names_share_a_file(captioner, tmp_path, kind, monkeypatch):
    out = tmp_path / f"all.{kind}"
    for home in two_albums(captioner, tmp_path):
        monkeypatch.chdir(home)
        assert caption.main(command(captioner, Path("photos"), out)) == 0
    rows = rows_of(out)
    assert list(rows) == ["a/photos/1.png", "b/photos/1.png"]
    assert len({row["caption"] for row in rows.values()}) == 2


@KINDS
def test_one_folder_in_many_spellings_has_one_row_a_picture(
    captioner, tmp_path, kind, monkeypatch, capsys
):
    home, _ = two_albums(captioner, tmp_path)
    (tmp_path / "link").symlink_to(home)
    (home / "same.png").symlink_to(home / "photos" / "1.png")
    monkeypatch.chdir(home)
    out = Path(f"photos/all.{kind}")
    spellings = ["photos", "photos/", "./photos", "../a/photos", str(home / "photos"), "."]
    spellings += ["../link/photos", str(tmp_path / "link/photos"), "photos/1.png", "same.png"]
    first, *others = spellings
    assert caption.main(command(captioner, first, out)) == 0
    content = out.read_bytes()
    for spelling in others:
        capsys.readouterr()
        assert caption.main(command(captioner, spelling, out.absolute())) == 0
        assert "0 captions added" in capsys.readouterr().out, spelling
    assert out.read_bytes() == content
    assert list(rows_of(out)) == ["1.png"]


@KINDS
def test_a_listing_that_moves_with_its_album_stays_valid(captioner, tmp_path, kind, capsys):
    home = tmp_path / "home"
    two_albums(captioner, home)
    (home / "lists").mkdir()
    out = home / "lists" / f"all.{kind}"
    assert caption.main(command(captioner, home / "a", out)) == 0
    assert list(rows_of(out)) == ["../a/photos/1.png"]
    moved = home.rename(tmp_path / "moved")
    capsys.readouterr()
    out = moved / "lists" / out.name
    assert caption.main(command(captioner, moved / "a", out)) == 0
    assert f"0 captions added to {out}, 1 already there" in capsys.readouterr().out


@KINDS
def test_a_row_is_replaced_only_once_its_picture_has_a_new_caption(captioner, tmp_path, kind):
    """Another album's rows stay as they are, whatever became of its pictures."""
    first, second = two_albums(captioner, tmp_path)
    out = tmp_path / f"all.{kind}"
    assert caption.main(command(captioner, first, out)) == 0
    before = rows_of(out)["a/photos/1.png"]
    shutil.copy(second / "photos" / "1.png", first / "photos" / "1.png")
    assert caption.main(command(captioner, second, out)) == 0
    assert rows_of(out)["a/photos/1.png"] == before
    assert caption.main(command(captioner, first, out)) == 0
    rows = rows_of(out)
    assert rows["a/photos/1.png"]["caption"] == rows["b/photos/1.png"]["caption"]


def as_of_version_0_2(out: Path, home: Path) -> None:
    """Rewrite a listing as version 0.2 wrote it, when it ran in the folder `home`."""
    rows = list(rows_of(out).values())
    for row in rows:
        row["path"] = os.path.relpath(out.parent / row["path"], home)
        for name in ("error", "labels"):
            row.pop(name, None)
    with out.open("w", encoding="utf-8", newline="") as file:
        if out.suffix == ".csv":
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


@KINDS
def test_a_listing_of_version_0_2_is_continued(captioner, tmp_path, kind, monkeypatch, capsys):
    first, second = two_albums(captioner, tmp_path)
    (tmp_path / "lists").mkdir()
    out = tmp_path / "lists" / f"all.{kind}"
    assert caption.main(command(captioner, first, out)) == 0
    expected = rows_of(out)["../a/photos/1.png"]["caption"]
    as_of_version_0_2(out, first)
    assert list(rows_of(out)) == ["photos/1.png"]

    monkeypatch.chdir(second)  # here photos/1.png is another picture
    capsys.readouterr()
    assert caption.main(command(captioner, Path("photos"), out)) == 0
    assert "1 caption added" in capsys.readouterr().out
    rows = rows_of(out)
    assert list(rows) == ["photos/1.png", "../b/photos/1.png"]
    assert rows["photos/1.png"]["caption"] == expected

    monkeypatch.chdir(first)  # here it is found again
    assert caption.main(command(captioner, Path("photos"), out)) == 0
    assert "0 captions added" in capsys.readouterr().out
    rows = rows_of(out)
    assert list(rows) == ["../a/photos/1.png", "../b/photos/1.png"]
    assert rows["../a/photos/1.png"]["caption"] == expected

    shutil.rmtree(first / "photos")
    as_of_version_0_2(out, second)
    monkeypatch.chdir(second)
    assert caption.main(command(captioner, second, out)) == 0
    assert len(rows_of(out)) == 2, "the row of a picture that is gone stays"


@KINDS
def test_a_file_has_one_writer_at_a_time(captioner, album, kind, capsys, tmp_path):
    out = album.parent / f"captions.{kind}"
    (tmp_path / "link").symlink_to(tmp_path)
    with Listing(out, "someone"):
        content = out.read_bytes()
        for name in (out, tmp_path / "link" / out.name):
            for option in ((), ("--force",)):
                assert caption.main(command(captioner, album, name, *option)) == 2
                error = capsys.readouterr().err
                assert f"another process is writing {name}; wait until it ends" in error
        assert out.read_bytes() == content
    assert caption.main(command(captioner, album, out, "--force")) == 0


def test_a_killed_writer_leaves_no_lock(tmp_path):
    out = tmp_path / "captions.csv"
    code = "import sys, time; from pathlib import Path\n"
    code += "from decoder.captioning.listing import Listing\n"
    code += f"with Listing(Path({str(out)!r}), 'me'):\n    print('open', flush=True)\n"
    code += "    time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        process.kill()
    with Listing(out, "me") as listing:
        listing.add(tmp_path / "a.jpg", State(1, 2), {"caption": "A dog."})
    assert "a.jpg,A dog." in out.read_text()


def test_a_disk_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(self: object, *_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    with Listing(tmp_path / "captions.jsonl", "me"):
        assert "has no file locks" in caplog.text


def test_a_link_to_a_listing_stays_a_link(captioner, album, tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "captions.csv"
    link.symlink_to(tmp_path / "real" / "captions.csv")
    assert caption.main(command(captioner, album, link)) == 0
    assert link.is_symlink()
    assert f"../album/{HARD[1]}" in rows_of(tmp_path / "real" / "captions.csv")


def test_a_missing_picture_is_tried_again(captioner, album, capsys):
    out = album.parent / "captions.jsonl"
    missing = album.parent / "later.png"
    arguments = command(captioner, missing, out)
    assert caption.main(arguments) == 1
    assert rows_of(out)["later.png"]["error"] == "no such file"
    shutil.copy(album / "plain.png", missing)
    assert caption.main(arguments) == 0
    assert rows_of(out)["later.png"]["caption"]


@KINDS
def test_all_captions_of_a_picture_are_written(captioner, album, kind, capsys):
    out = album.parent / f"captions.{kind}"
    three = ["--captions", "3"]
    (album / "broken.png").write_bytes(b"\x89PNG")
    assert caption.main(command(captioner, album, out, *three)) == 1
    run = str(captioner / "runs" / "captioner")
    capsys.readouterr()
    assert caption.main(["--run", run, *three, "--json", str(album)]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = rows_of(out)
    assert len(rows) == len(lines) == len(HARD) + 1
    for line in lines:
        row = rows[f"album/{Path(line['path']).name}"]
        found = [row["caption"], *(other["caption"] for other in row.get("alternatives", ()))]
        if kind == "csv":
            found = [row["caption"] or None, row["caption_2"], row["caption_3"]]
        expected = [line["caption"], *(other["caption"] for other in line["alternatives"])]
        assert [text for text in found if text] == [text for text in expected if text]
        assert bool(row["error"]) == bool(line["error"]) == ("broken" in line["path"])
    content = out.read_bytes()
    assert caption.main(command(captioner, album, out, *three)) == 1
    assert out.read_bytes() == content
    assert caption.main(command(captioner, album, out)) == 2, "one caption each is not comparable"
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["photo.jpg", "--sidecar", "txt"], "a sidecar holds one caption, found --captions 3"),
        (["photo.jpg", "--sidecar", "xmp"], "a sidecar holds one caption, found --captions 3"),
        (["--alt", "page.html"], "an alternative text holds one caption, found --captions 3"),
        (["photo.jpg", "--json", "--out", "a.csv"], "--json prints the captions of pictures"),
        (["--alt", "page.html", "--json"], "--json prints the captions of pictures"),
        (["photo.jpg", "--attention", "3"], "--attention needs --split NAME"),
        (["photo.jpg", "--beam", "6", "--diversity", "1"], "--diversity needs --groups"),
    ],
)
def test_an_option_whose_result_cannot_be_held_is_refused(options, message, capsys):
    several = [] if "--json" in options else ["--captions", "3"]
    assert caption.main([*options, *several]) == 2
    assert message in capsys.readouterr().err
