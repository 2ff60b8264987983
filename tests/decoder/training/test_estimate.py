"""--dry-run estimates a run, and --like repeats one."""

import json
import re
import shutil
from pathlib import Path

import pytest

from decoder import train
from evaluation import runs
from evaluation.report import render
from features.store import as_size
from pipeline.work import RunFolder
from tests.decoder.conftest import BOTH_PHASES, hide_java
from tests.decoder.training.processes import unlike


def files(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.stat() for path in folder.rglob("*")}
    return {str(path): (status.st_size, status.st_mtime_ns) for path, status in found.items()}


def duration(text: str) -> tuple[int, int]:
    """Return the seconds of a duration in a line, and the unit it was rounded to."""
    if hours := re.search(r"(\d+) h (\d+) min", text):
        return 3600 * int(hours[1]) + 60 * int(hours[2]), 60
    minutes, rest = re.findall(r"(\d+) min (\d+) s", text)[0]
    return 60 * int(minutes) + int(rest), 1


def test_dry_run_estimates_time_and_size_and_writes_nothing(
    trained: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(work)
    # Enough epochs to make rounding to seconds negligible.
    options = [*BOTH_PHASES, "--xe.epochs", "500", "--rl.epochs", "200", "--dry-run"]
    assert train.main(["--work", str(work), "--run", "small", *options]) == 0
    assert files(work) == before
    printed = capsys.readouterr().out
    config = json.loads((trained / "runs" / "small" / "config.json").read_text())
    assert f"train --dry-run: updown, {config['parameters']:,} parameters, on cpu" in printed

    total = rounding = 0
    phases = {"cross-entropy": 500, "REINFORCE": 200}
    for name, epochs in phases.items():
        (line,) = re.findall(rf"^ +{name} .*$", printed, re.MULTILINE)
        each, validation = map(float, re.findall(r"of ([\d.e-]+) s\b", line))
        assert f", {epochs} epochs of 8 steps of" in line
        assert each > 0
        assert validation > 0
        seconds, unit = duration(line)
        expected = epochs * (8 * each + validation)
        assert seconds == pytest.approx(expected, rel=0.02, abs=unit)
        total, rounding = total + seconds, rounding + unit
    seconds, unit = duration(re.findall(r"in all .*", printed)[0])
    assert seconds == pytest.approx(total, abs=max(rounding, unit))
    assert re.search(r"memory +[\d.]+ [GM]B at the peak", printed)

    # The state of an untrained run lacks metrics and captions, a few hundred bytes.
    run = trained / "runs" / "small"
    kept = [run / "best.safetensors", run / "best_xe.safetensors"]
    size = sum(path.stat().st_size for path in [*kept, run / "state" / "resume.safetensors"])
    disk = re.findall(r"disk +([\d.]+) MB in", printed)[0]
    assert float(disk) * 1e6 == pytest.approx(size, rel=0.02)
    assert "TOO LITTLE" not in printed


def test_dry_run_reports_a_disk_that_is_too_small(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert train.main(["--work", str(work), "--run", "small", *BOTH_PHASES, "--dry-run"]) == 0
    assert f"{as_size(1000)} are free: TOO LITTLE" in capsys.readouterr().out


def test_a_run_like_another_has_its_weights(
    trained: Path, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_java(monkeypatch)  # as it was for the other run
    other = Path(shutil.copytree(trained / "runs" / "small", work / "runs" / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"preset": "shapes"}))
    like = ["--like", str(other), "--run", "again"]
    assert train.main([*like, "--work", str(work)]) == 0
    assert "in everything: options, data, features" in capsys.readouterr().out
    assert unlike(work / "runs" / "again", trained / "runs" / "small") == []


def test_differences_from_the_run_that_is_repeated_are_printed(
    trained: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = work / "runs" / "other"
    other.mkdir(parents=True)
    config = json.loads((trained / "runs" / "small" / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    config["captions"]["val"] = "of other captions"
    (other / "config.json").write_text(json.dumps(config))
    # Without --work, it is that of the other run; with another seed, it is another run.
    options = ["--xe.epochs", "1", "--rl.epochs", "0", "--seed", "8"]
    assert train.main(["--like", str(other), "--run", "again", *options]) == 0
    printed = capsys.readouterr().out
    made = json.loads((work / "runs" / "again" / "config.json").read_text())
    assert made["options"]["decoder"] == config["options"]["decoder"]
    for difference in (
        "options.seed (7 then, 8 now)",
        "options.xe.epochs (2 then, 1 now)",
        f"versions.torch (1.0 then, {made['versions']['torch']} now)",
        "captions.val (of other captions then,",
    ):
        assert f"train: unlike {other}: {difference}" in printed
    assert f"unlike {other}: options.decoder" not in printed


def test_the_report_of_a_run_shows_everything_needed_to_repeat_it(finished: Path) -> None:
    config = json.loads((finished / "runs" / "small" / "config.json").read_text())
    report = render(runs.load(RunFolder(finished / "runs" / "small"), "val"), 1)
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", report))
    options = config["options"]
    for phase in ("xe", "rl"):
        for name, value in options[phase].items():
            assert shown[f"{phase}.{name}"] == str(value)
    for name, value in options["decoder"].items():
        assert shown[f"decoder.{name}"] == str(value)
    for name in options.keys() - {"xe", "rl", "decoder"}:
        assert shown[name] == str(options[name])
    for name, value in config["versions"].items():
        assert shown[f"version.{name}"] == value
    assert config["fingerprint"] in report
