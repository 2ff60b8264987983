"""--help of every command: examples first, then the everyday options; --help-all shows the rest."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
import tyro

from decoder.captioning.options import CaptionOptions, DemoOptions
from decoder.ranking.options import SearchOptions
from decoder.sharing.options import ExportOptions
from decoder.training.options import TrainOptions
from evaluation.options import ReportOptions, RetrieveOptions, ScoreOptions
from pipeline.command import PARSING
from pipeline.options import DoctorOptions, ExtractOptions, PrepareOptions

COMMANDS = {
    "pipeline.prepare": PrepareOptions,
    "pipeline.extract": ExtractOptions,
    "pipeline.doctor": DoctorOptions,
    "decoder.train": TrainOptions,
    "decoder.caption": CaptionOptions,
    "decoder.search": SearchOptions,
    "decoder.demo": DemoOptions,
    "decoder.export": ExportOptions,
    "evaluation.score": ScoreOptions,
    "evaluation.report": ReportOptions,
    "evaluation.retrieve": RetrieveOptions,
}


def show(command: str, option: str, columns: int, monkeypatch, capsys) -> str:
    """Return what a command prints for --help or --help-all on a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(columns))
    name = "pipeline.doctor.__main__" if command == "pipeline.doctor" else command
    assert importlib.import_module(name).main([option]) == 0
    return capsys.readouterr().out


def options_in(text: str) -> set[str]:
    """Return the names of the options that our help page or tyro's lists."""
    return set(re.findall(r"^(?:  |│ )(--[a-z][\w.-]*)", text, re.MULTILINE)) - {
        "--help-all",
        "--version",
    }


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_shows_examples_first(command, columns, monkeypatch, capsys):
    page = show(command, "--help", columns, monkeypatch, capsys)
    assert page.index("\nExamples:\n") < page.index("\nOptions:\n")
    assert page.count(f"    python -m {command}") >= 3
    assert max(map(len, page.splitlines())) <= columns
    assert len(page.splitlines()) <= 50


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_shows_every_option_that_parses(command, columns, monkeypatch, capsys):
    page = show(command, "--help-all", columns, monkeypatch, capsys)
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        tyro.cli(COMMANDS[command], args=["--help"], config=PARSING)
    assert options_in(page) == options_in(capsys.readouterr().out)
    assert max(map(len, page.splitlines())) <= min(columns, 100)
    for clutter in ("None", "(default: False)", "PATH|", "MISSING"):
        assert clutter not in page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_parses(command):
    kind = COMMANDS[command]
    assert len(kind.EXAMPLES) >= 3
    for arguments in kind.EXAMPLES.values():
        tyro.cli(kind, args=shlex.split(arguments), config=PARSING)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_an_option_is_one_sentence(command, monkeypatch, capsys):
    page = show(command, "--help-all", 100, monkeypatch, capsys)
    _, *entries = re.split(r"\n  (?=-|[A-Z]+ \.\.\.)", page.split("\nOptions:")[1])
    for entry in entries:
        text = re.sub(r"\s+", " ", entry.split("\n\n")[0]).strip()
        assert re.search(r"\.( \([^()]*\))?$", text), text
        assert not re.search(r"(?<!\.)\. [A-Z]", text), text


def test_help_shows_an_everyday_option_but_not_an_expert_one(monkeypatch, capsys):
    everyday = options_in(show("decoder.caption", "--help", 80, monkeypatch, capsys))
    everything = options_in(show("decoder.caption", "--help-all", 80, monkeypatch, capsys))
    assert "--out" in everyday
    assert {"--diversity", "--length-penalty"} <= everything - everyday


def test_help_wins_over_mistakes_but_not_behind_two_dashes(capsys, monkeypatch):
    search = importlib.import_module("decoder.search")
    assert search.main(["--tpo", "3", "-h"]) == 0
    assert "usage: python -m decoder.search" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        search.main(["--tpo", "3", "--", "--help"])


def test_help_can_be_piped():
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.prepare", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "80", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.startswith("usage: python -m pipeline.prepare --dataset NAME --work PATH")
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
