"""Files of the current folder are not imported in place of ours or of libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
MINE = "raise SystemExit('the file of the user ran')\n"


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "message", "names"),
    [
        (
            ("evaluation.score", "--table", "absent"),
            "error: absent is not there",
            ("features.py", "pipeline.py", "decoder/__init__.py", "numpy.py", "json.py", "PIL.py"),
        ),
        (
            ("pipeline.prepare", "--dataset", "no", "--work", "w"),
            "unknown",
            ("evaluation.py", "features/__init__.py", "random.py", "tyro/__init__.py", "torch.py"),
        ),
    ],
)
def test_a_command_does_not_import_files_of_the_current_folder(command, message, names, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(MINE)
    done = python(tmp_path, "-m", *command)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "the file of the user" not in done.stderr + done.stdout
    note, *_ = done.stderr.splitlines()
    assert note.startswith("note: ")
    for name in names[:2]:  # those of our names
        assert str(tmp_path / name) in note
    assert "run the command in another folder" in note


def test_a_folder_of_data_with_one_of_our_names_is_no_package(tmp_path):
    (tmp_path / "features").mkdir()
    (tmp_path / "pipeline").mkdir()
    done = python(tmp_path, "-m", "evaluation.score", "--table", "absent")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_a_script_beside_files_of_our_names_gets_our_packages_or_their_names(tmp_path):
    for name in ("pipeline.py", "evaluation.py"):
        (tmp_path / name).write_text("value = 1\n")
    ours = "import decoder, evaluation.outputs\nfrom pipeline.vocabulary import PAD\nprint(PAD)\n"
    (tmp_path / "script.py").write_text(ours)
    done = python(tmp_path, "script.py")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert (
        f"note: {tmp_path / 'pipeline.py'}, {tmp_path / 'evaluation.py'}: not used" in done.stderr
    )
    (tmp_path / "script.py").write_text("import pipeline\nimport decoder\n")
    last = python(tmp_path, "script.py").stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / 'pipeline.py'} was imported as pipeline")


def test_the_folder_of_the_project_shadows_nothing():
    done = python(PROJECT, "-c", "import decoder")
    assert (done.returncode, done.stderr) == (0, "")
