"""A run that was killed, stopped or ran out of disk ends like one that was never interrupted."""

import itertools
import json
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from decoder.runs import checkpoints
from evaluation.validation import OFFICIAL
from pipeline.work import RunFolder
from tests.decoder.training.processes import End, kill_after, run, start, unlike, wait_until
from tests.disks import fill, small_disk

# Small, but its captions score above 0, so the best weights are not simply the last.
OPTIONS = ["--model", "show_tell", "--hidden", "48", "--batch-size", "4", "--beam", "2"]
OPTIONS += ["--seed", "7", "--average", "0.5", "--xe.learning-rate", "0.02", "--xe.epochs", "5"]
OPTIONS += ["--xe.scheduled-sampling", "0.2", "--rl.epochs", "4", "--rl.samples", "2"]
OPTIONS += ["--rl.patience", "2", "--rl.learning-rate", "1e-3"]
AT_EVERY_STEP = ["--save-minutes", "0"]
XE_STEPS = 40


class Training:
    """One run in a work directory of its own, and what it printed."""

    def __init__(self, work: Path) -> None:
        self.options = ["--work", str(work), "--run", "small", *OPTIONS]
        self.folder = work / "runs" / "small"
        self.state = RunFolder(self.folder).state
        self.output = work / "output"

    def run(self, *options: str, end: End | None = None, **how: object) -> int:
        return run([*self.options, "--resume", *options], self.output, end, **how)

    def printed(self) -> str:
        return self.output.read_text()

    def steps(self) -> int:
        """Number of steps before the saved state, over both phases."""
        progress = checkpoints.load(self.state, torch.device("cpu"))[1]["progress"]
        return progress["step"] + (XE_STEPS if progress["phase"] == "rl" else 0)


@pytest.fixture
def training(work: Path) -> Training:
    return Training(work)


@pytest.fixture(scope="module")
def never_stopped(extracted_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("never_stopped")
    training = Training(Path(shutil.copytree(extracted_shapes, folder / "work")))
    assert training.run() == 0, training.printed()
    return training.folder


def test_the_run_that_is_compared_with_has_something_to_compare(never_stopped: Path) -> None:
    assert unlike(never_stopped, never_stopped) == []
    lines = (never_stopped / "metrics.jsonl").read_text().splitlines()
    assert len({re.findall(r'"CIDEr": ([\d.]+)', line)[0] for line in lines}) > 1


FILES = ["vocabulary.json", "config.json", "resume.safetensors", "metrics.jsonl"]
FILES += ["best_xe.safetensors", "best.safetensors", "tfevents", "train.json"]


def test_killed_while_each_of_its_files_is_written(training: Training, never_stopped: Path) -> None:
    for file in FILES:
        for moment in ("writing", "before renaming", "after renaming"):
            end = End(moment, file=file)
            assert training.run(end=end) == -signal.SIGKILL, f"{moment} {file}"
    assert training.run() == 0, training.printed()
    assert unlike(training.folder, never_stopped) == []


def test_killed_between_its_last_state_and_the_metrics(
    training: Training, never_stopped: Path
) -> None:
    epochs = len((never_stopped / "metrics.jsonl").read_text().splitlines())
    end = End("before renaming", 2 * epochs, file="metrics.jsonl")
    assert training.run(end=end) == -signal.SIGKILL
    assert training.run() == 0, training.printed()
    assert unlike(training.folder, never_stopped) == []


@pytest.mark.parametrize("options", [[], AT_EVERY_STEP], ids=["default", "at every step"])
def test_killed_in_each_part_of_its_work(
    options: list[str], training: Training, never_stopped: Path
) -> None:
    ends = [End("cross-entropy", 1), End("cross-entropy", 12), End("searching", 2)]
    ends += [End("scoring", 1), End("scoring", 2), End("between the phases"), End("REINFORCE", 1)]
    ends += [End("REINFORCE", 10), End("searching"), End("scoring", 1), End("REINFORCE", 3)]
    for end in ends:
        assert training.run(*options, end=end) == -signal.SIGKILL, end
    assert training.run(*options) == 0, training.printed()
    assert unlike(training.folder, never_stopped) == []


def test_killed_at_random_moments(training: Training, never_stopped: Path) -> None:
    moments = random.Random(7)
    for _ in range(12):
        options = moments.choice([[], ["--save-minutes", "0.002"], AT_EVERY_STEP])
        arguments = [*training.options, *options, "--resume"]
        kill_after(arguments, training.output, moments.uniform(0, 0.6))
    assert training.run() == 0, training.printed()
    assert unlike(training.folder, never_stopped) == []


def test_a_signal_stops_it_and_nothing_is_redone(training: Training, never_stopped: Path) -> None:
    ends = [("cross-entropy", 11, 11), ("before renaming", 2, 16), ("scoring", 1, 17)]
    ends += [("between the phases", 1, 41), ("REINFORCE", 9, 50), ("searching", 1, 56)]
    signals = itertools.cycle([signal.SIGTERM, signal.SIGINT])
    for (moment, count, steps), by in zip(ends, signals, strict=False):
        assert training.run(end=End(moment, count, by=by)) == 130, training.printed()
        assert training.steps() == steps
    assert training.run() == 0, training.printed()
    stopped = re.findall(r"stopped in (.*); --resume", training.printed())
    continued = re.findall(r"continuing .* in (.*)", training.printed())
    assert len(stopped) == len(ends)
    assert stopped == continued
    assert unlike(training.folder, never_stopped) == []


def test_ctrl_c_does_not_reach_the_java_that_scores(training: Training) -> None:
    """If it did, the run would go on without Java and end with other scores."""
    options = ["--xe.epochs", "1", "--rl.epochs", "0"]
    end = End("tokenizing", 2, by=signal.SIGINT)
    assert training.run(*options, end=end, java=True) == 0
    assert "stopping after this step" in training.printed()
    metrics = (training.folder / "metrics.jsonl").read_text()
    assert json.loads(metrics)["tokenizer"] == OFFICIAL


def test_a_kill_loses_no_more_than_the_minutes_between_saves(
    training: Training, never_stopped: Path
) -> None:
    """Reading the clock, which happens once a step, advances it by a minute."""
    redone = []
    steps = 0
    for count in (5, 6, 7, 5):
        options = ["--save-minutes", "3"]
        end = End("cross-entropy", count)
        assert training.run(*options, end=end, clock="minute") == -signal.SIGKILL
        redone.append(steps + count - 1 - training.steps())
        steps = training.steps()
    assert 0 < max(redone) <= 3
    assert training.run() == 0, training.printed()
    assert unlike(training.folder, never_stopped) == []


def test_a_clock_that_goes_back_changes_nothing(training: Training, never_stopped: Path) -> None:
    end = End("REINFORCE", 5)
    assert training.run(*AT_EVERY_STEP, end=end, clock="back") == -signal.SIGKILL
    assert training.steps() == XE_STEPS + 4
    assert training.run(clock="back") == 0, training.printed()
    assert unlike(training.folder, never_stopped) == []


def test_a_file_that_cannot_be_written_leaves_the_state_before_it(
    training: Training, never_stopped: Path
) -> None:
    assert training.run(*AT_EVERY_STEP, end=End("cross-entropy", 11)) == -signal.SIGKILL
    before = training.state.read_bytes()
    # Well below its size, which differs a little with the digits of the times in it.
    assert training.run(largest_file=len(before) * 9 // 10) == 2
    _, error = training.printed().split("error: ")
    assert "cannot write" in error
    assert "File too large" in error
    last_good = f"the last good state is in {training.state}, and --resume continues from it"
    assert last_good in error
    assert training.state.read_bytes() == before
    assert training.run() == 0
    assert unlike(training.folder, never_stopped) == []


def test_a_first_state_that_cannot_be_written_is_not_offered_for_resuming(
    training: Training, never_stopped: Path
) -> None:
    assert training.run(*AT_EVERY_STEP, largest_file=10_000) == 2
    _, error = training.printed().split("error: ")
    assert "cannot write" in error
    assert "no state has been saved yet, so run the command again" in error
    assert "--resume" not in error
    assert training.run() == 0, training.printed()
    assert unlike(training.folder, never_stopped) == []


@pytest.fixture
def disk(work: Path) -> Iterator[Path]:
    """A disk of 8 MB, where the runs of `work` are."""
    with small_disk(work / "runs", 8) as folder:
        yield folder


def test_a_disk_that_fills_up_leaves_the_state_before(
    disk: Path, training: Training, never_stopped: Path
) -> None:
    process = start([*training.options, *AT_EVERY_STEP], training.output)
    wait_until(training.state.exists, process)
    ballast = fill(disk)
    process.join()
    assert process.exitcode == 2
    _, error = training.printed().split("error: ")
    assert "No space left on device" in error
    assert f"the last good state is in {training.state}" in error
    steps = training.steps()
    assert training.run(*AT_EVERY_STEP) == 2  # it is still full
    assert "Traceback" not in training.printed()
    assert training.steps() == steps > 0
    ballast.unlink()
    assert training.run() == 0, training.printed()
    assert unlike(training.folder, never_stopped) == []


def test_a_folder_that_became_read_only_is_named(
    disk: Path, training: Training, never_stopped: Path
) -> None:
    assert training.run(*AT_EVERY_STEP, end=End("cross-entropy", 11)) == -signal.SIGKILL
    before = training.state.read_bytes()
    remount = ["mount", "-o"]
    subprocess.run([*remount, "remount,ro", str(disk)], check=True)
    assert training.run() == 2
    _, error = training.printed().split("error: ")
    assert f"cannot write to {training.folder}: Read-only file system" in error
    assert training.state.read_bytes() == before
    subprocess.run([*remount, "remount,rw", str(disk)], check=True)
    assert training.run() == 0, training.printed()
    assert unlike(training.folder, never_stopped) == []
