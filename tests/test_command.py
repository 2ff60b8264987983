"""--help of every command: examples first, then the everyday options; --help-all shows the rest."""

import importlib
import io
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import tyro

from decoder import caption
from decoder.captioning.options import CaptionOptions, DemoOptions
from decoder.ranking.options import SearchOptions
from decoder.sharing.options import ExportOptions
from decoder.training.options import TrainOptions
from evaluation.options import ReportOptions, RetrieveOptions, ScoreOptions
from features.commands import SCRIPTS
from pipeline import prepare
from pipeline.options import DoctorOptions, ExtractOptions, PrepareOptions
from pipeline.parsing import PARSING

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
    assert search.main(["--tpo", "3", "--", "--help"]) == 2


SEE = "; see python -m decoder.caption --help\n"


def in_terminal(main, arguments: str) -> tuple[int, str]:
    """Return the status and output of a command in a terminal for UTF-8, where tyro has frames."""
    with io.TextIOWrapper(io.BytesIO(), encoding="utf-8") as out:
        out.isatty = lambda: True
        with redirect_stdout(out):
            status = main(shlex.split(arguments))
        out.flush()
        return status, out.buffer.getvalue().decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--beem 3", "unknown option --beem: did you mean --beam?"),
        ("--xyzzyx=3", "unknown option --xyzzyx"),
        ("--beam x", "expected --beam N, found --beam x"),
        ("--beam=x", "expected --beam N, found --beam=x"),
        ("--batch_size 2.5 a.jpg", "expected --batch-size N, found --batch_size 2.5 a.jpg"),
        ("--weights bst", "expected --weights {best,best_xe,both}, found --weights bst"),
        ("a.jpg --review", "expected --review PATH, found --review"),
        ("--out --json", "expected --out FILE, found --out"),
        ("--run", "expected --run PATH, found --run"),
    ],
)
def test_a_wrong_option_is_named_in_the_words_of_the_help(arguments, message, monkeypatch, capsys):
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert in_terminal(caption.main, arguments) == (2, "")
        assert capsys.readouterr().err == f"error: {message}{SEE}"


def test_required_options_are_asked_for_and_surplus_words_named(capsys):
    for arguments, message in {
        "": "expected --dataset NAME and --work PATH",
        "--work w": "expected --dataset NAME",
        "--dataset shapes --work w more": "Unrecognized options: more",
    }.items():
        assert in_terminal(prepare.main, arguments) == (2, "")
        error = capsys.readouterr().err
        assert error == f"error: {message}; see python -m pipeline.prepare --help\n"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("decoder.search", "--folder a --folder b dog"),
        ("decoder.export", "--run a --run=b --out c"),
        ("decoder.demo", "--folder a --folder b"),
        ("evaluation.score", "--captions c --results a --results b"),
        ("evaluation.report", "--run a --run b"),
        ("pipeline.extract", "--work a --work b"),
        ("pipeline.prepare", "--dataset shapes --work a --work b"),
    ],
)
def test_an_option_of_which_only_the_last_would_count_is_refused(command, arguments, capsys):
    assert importlib.import_module(command).main(shlex.split(arguments)) == 2
    assert "once, found it twice" in capsys.readouterr().err


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


@pytest.mark.parametrize("command", COMMANDS)
def test_version_is_shown_under_the_name_that_was_typed(command, monkeypatch, capsys):
    shown = show(command, "--version", 80, monkeypatch, capsys)
    assert re.fullmatch(rf"python -m {command} \d+\.\d+\.\d+\S*\n", shown)


def test_messages_of_a_console_script_name_console_scripts():
    code = """
import sys
sys.argv = ["/somewhere/bin/caption-prepare", "--dataset", "shaps", "--work", "w"]
from features import commands
from pipeline.prepare import main
assert commands.TRAIN == "caption-train"
assert main() == 2
assert main(["--help"]) == 0
sys.argv[0] = "/somewhere/pipeline/prepare.py"
assert commands.called("pipeline.prepare") == "python -m pipeline.prepare"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: caption-prepare --dataset NAME --work PATH")
    assert "did you mean shapes" in done.stderr


def test_every_command_has_a_console_script():
    config = ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    installed = dict(line.split(" = ") for line in lines)
    assert SCRIPTS.keys() == COMMANDS.keys()
    for module, script in SCRIPTS.items():
        main = "pipeline.doctor.__main__" if module == "pipeline.doctor" else module
        assert installed.pop(script) == f"{main}:main"
    assert not installed


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_leaves_out_progress_and_status_lines_only(option, tmp_path, capsys):
    prepare = importlib.import_module("pipeline.prepare")
    draw = ["--dataset", "shapes", "--images", "10", "--min-count", "1", "--work", str(tmp_path)]
    assert prepare.main([option, *draw]) == 0
    assert capsys.readouterr() == ("", "")
    assert prepare.main([*draw, option, "--images", "0"]) == 2
    assert capsys.readouterr().err == "error: --images must be at least 1, found 0\n"
    assert prepare.main(draw) == 0
    assert capsys.readouterr().out == "prepare: unchanged, skipped\n"


def test_mistakes_are_shown_without_colours_where_no_color_is_set(monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    prepare = importlib.import_module("pipeline.prepare")
    assert prepare.main(["--dataset", "shapes", "--wrok", "w"]) == 2
    assert "--work" in (error := capsys.readouterr().err)
    assert "\x1b" not in error
