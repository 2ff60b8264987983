"""Captions of shards: a file for each, made once, with a row for every picture."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from decoder import caption


@pytest.fixture
def shards(captioner: Path, tmp_path: Path) -> Path:
    """Two archives of six drawn pictures, of which one is broken, and a truncated archive."""
    folder = tmp_path / "shards"
    folder.mkdir()
    pictures = sorted((captioner / "images").iterdir())[:6]
    for number in range(2):
        with tarfile.open(folder / f"{number:05}.tar", "w") as archive:
            for picture in pictures[number::2]:
                add(archive, f"{picture.stem}{picture.suffix}", picture.read_bytes())
            if number == 1:
                add(archive, "broken.jpg", b"\xff\xd8\xff")
    cut = (folder / "00000.tar").read_bytes()[:3000]
    (folder / "00002.tar").write_bytes(cut)
    return folder


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_shard_gets_the_captions_that_its_pictures_get_alone(
    captioner, shards, tmp_path, capsys
):
    run = ["--run", str(captioner / "runs" / "captioner"), "--beam", "2"]
    out = tmp_path / "out"
    command = [*run, "--shards", str(shards / "*.tar"), "--out", str(out)]
    assert caption.main(command) == 1, "a shard is broken"
    printed = capsys.readouterr()
    assert "broken shard: 00002 (" in printed.err
    assert (
        "2 shards made, 7 pictures; 1 picture could not be read; 1 broken shard, listed"
        in printed.out
    )
    assert sorted(file.name for file in out.glob("*.jsonl")) == ["00000.jsonl", "00001.jsonl"]
    rows = lines_of(out / "00000.jsonl") + lines_of(out / "00001.jsonl")
    assert len({row["id"] for row in rows}) == 7
    (broken,) = (row for row in rows if row["error"])
    assert (broken["key"], broken["caption"]) == ("broken", None)

    good = [row for row in rows if not row["error"]]
    alone = [str(captioner / "images" / row["file_name"]) for row in good]
    assert caption.main([*run, "--json", *alone]) == 0
    for line, row in zip(capsys.readouterr().out.splitlines(), good, strict=True):
        wanted = json.loads(line)
        assert wanted.pop("path").endswith(row["file_name"])
        probability = wanted.pop("log_probability")
        assert row["log_probability"] == pytest.approx(probability, abs=1e-4)
        assert {key: row[key] for key in wanted} == wanted

    times = {file: file.stat().st_mtime_ns for file in out.glob("*.jsonl")}
    (out / "00001.jsonl").write_text("half")  # no longer whole
    assert caption.main(command) == 1
    assert "3 shards, 1 done, 2 to do" in capsys.readouterr().out
    assert lines_of(out / "00001.jsonl") == [row for row in rows if row in rows[3:]]
    assert times[out / "00000.jsonl"] == (out / "00000.jsonl").stat().st_mtime_ns
    assert caption.main([*command, "--beam", "3"]) == 2
    assert "beam 2 instead of 3" in capsys.readouterr().err


def test_options_without_use_for_shards_are_refused_by_name(tmp_path, capsys):
    shards = ["--shards", str(tmp_path / "*.tar")]
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in {
        (*shards,): "--shards needs --out",
        (*shards, *out, "--sidecar", "txt"): "leave out --sidecar: it has no use with --shards",
        (*shards, *out, "--alt", "p.html", "--json"): "leave out --alt, --json",
        (*shards, *out, "--split", "val"): "leave out --split",
        (*shards, *out, "photo.jpg"): "expected --shards or pictures, found both (photo.jpg)",
        (*shards, *out, "--gpus", "1"): "--gpus: expected --engine ray",
        (*shards, *out): "matches nothing",
        ("photo.jpg", "--engine", "ray"): "leave out --engine: it needs --shards",
    }.items():
        assert caption.main(list(arguments)) == 2, arguments
        assert message in capsys.readouterr().err, arguments
