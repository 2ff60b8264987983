import re
from pathlib import Path

import pytest

from pipeline.extract import main

LITE0 = ["--backbone", "efficientnet_lite0", "--backend", "eager", "--batch-size", "8"]


def files(work: Path) -> dict[str, tuple[int, int]]:
    states = {path: path.stat() for path in work.rglob("*")}
    return {str(path): (state.st_size, state.st_mtime_ns) for path, state in states.items()}


def test_dry_run_prints_time_and_size_and_writes_nothing(work: Path, capsys) -> None:
    size = (work / "features.h5").stat().st_size
    before = files(work)
    capsys.readouterr()
    assert main(["--work", str(work), *LITE0, "--dry-run", "--force"]) == 0
    out = capsys.readouterr().out
    assert files(work) == before
    assert "40 pictures with efficientnet_lite0 by eager on cpu" in out
    assert re.search(r"in all +\d+ min \d+ s, [\d.]+ pictures/s", out)
    assert re.search(r"memory +[\d.]+ [GM]B at the peak", out)
    estimated = float(re.search(r"disk +([\d.]+) MB", out)[1]) * 1e6
    # The store also has image ids, checksums and the structures of HDF5.
    assert estimated == pytest.approx(size, rel=0.1)


def test_dry_run_measures_what_is_left_to_extract(work: Path, capsys) -> None:
    capsys.readouterr()
    assert main(["--work", str(work), *LITE0, "--dry-run"]) == 0
    assert "nothing is left to extract" in capsys.readouterr().out
    (work / "features.h5").unlink()
    for path in (work / "images").glob("*[02468].jpg"):
        path.write_bytes(b"")
    assert main(["--work", str(work), *LITE0, "--dry-run"]) == 0
    assert "unreadable  16 of 32 pictures tried" in capsys.readouterr().out


def test_dry_run_without_a_readable_picture_is_an_error(work: Path, capsys) -> None:
    (work / "features.h5").unlink()
    for path in (work / "images").iterdir():
        path.unlink()
    assert main(["--work", str(work), *LITE0, "--dry-run"]) == 2
    assert "none of 32 pictures can be read" in capsys.readouterr().err
