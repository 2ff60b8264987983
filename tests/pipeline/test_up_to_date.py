import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.up_to_date import Stamp, changed_inputs


@dataclass(frozen=True)
class Options:
    work: Path
    epochs: int = 3
    force: bool = False
    device: str = "cpu"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work directory in which a stage has read `in` and written `out`."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "in").write_text("input")
    (work / "out").write_text("output")
    Stamp(work, "stage", Options(work), [work / "in"]).write([work / "out"])
    return work


def holds(work: Path, **options: object) -> bool:
    return Stamp(work, "stage", Options(work, **options), [work / "in"]).holds()


def test_stamp_holds_while_nothing_changes(work: Path) -> None:
    assert holds(work)


def test_an_option_that_is_newer_than_the_record_and_not_given_changes_nothing(work: Path) -> None:
    @dataclass(frozen=True)
    class Newer(Options):
        init: str | None = None
        also: tuple[str, ...] = ()

    assert Stamp(work, "stage", Newer(work), [work / "in"]).holds()
    assert not Stamp(work, "stage", Newer(work, init="packaged"), [work / "in"]).holds()
    assert not Stamp(work, "stage", Newer(work, also=("x",)), [work / "in"]).holds()


def test_options_that_do_not_change_the_output_are_ignored(work: Path) -> None:
    assert holds(work, force=True, device="cuda")


def test_changed_option_input_or_output_breaks_the_stamp(work: Path) -> None:
    assert not holds(work, epochs=4)
    (work / "in").write_text("other")
    assert not holds(work)
    (work / "in").write_text("input")
    assert holds(work)
    (work / "out").write_text("other")
    assert not holds(work)
    (work / "out").unlink()
    assert not holds(work)


def test_another_set_of_inputs_breaks_the_stamp(work: Path) -> None:
    assert not Stamp(work, "stage", Options(work), [work / "in", work / "more"]).holds()


def test_new_file_in_an_input_folder_breaks_the_stamp(work: Path) -> None:
    folder = work / "pictures"
    folder.mkdir()
    os.utime(folder, (0, 0))
    Stamp(work, "stage", Options(work), [folder]).write([])
    assert Stamp(work, "stage", Options(work), [folder]).holds()
    (folder / "new.jpg").touch()
    assert not Stamp(work, "stage", Options(work), [folder]).holds()


def test_stamp_still_holds_when_the_work_directory_has_moved(work: Path) -> None:
    moved = work.rename(work.with_name("moved"))
    assert holds(moved)


def test_stamps_of_runs_hold_when_the_work_directory_has_moved_and_former_ones_too(
    work: Path, tmp_path: Path
) -> None:
    run = work / "runs" / "first"
    run.mkdir(parents=True)
    stamp = Stamp(run, "stage", Options(work), [work / "in"])
    stamp.write([work / "out"])
    record = json.loads(stamp.path.read_text())
    work.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    again = Stamp(moved / "runs" / "first", "stage", Options(moved), [moved / "in"])
    assert again.holds()
    assert changed_inputs(moved / "runs" / "first", "stage") == []
    (moved / "in").write_text("other")
    changed = changed_inputs(moved / "runs" / "first", "stage")
    assert changed == [os.path.realpath(moved / "in")]

    (moved / "in").write_text("input")
    for part in ("inputs", "outputs"):
        record[part] = {str(moved / Path(n).name): state for n, state in record[part].items()}
    record["options"]["work"] = str(moved)  # as version 0.2 wrote it
    again.path.write_text(json.dumps(record))
    assert again.holds()
    moved.rename(work)
    assert changed_inputs(work / "runs" / "first", "stage") == []


def test_stamp_does_not_depend_on_how_a_path_is_written(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work.parent)
    assert holds(Path("work"))
    monkeypatch.chdir(work)
    assert holds(Path())


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"options": 1}', '{"outputs": 3}'])
def test_damaged_record_means_that_the_stage_runs(work: Path, record: str) -> None:
    (work / ".done" / "stage.json").write_text(record)
    assert not holds(work)
