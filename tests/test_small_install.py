"""Captioning needs none of the extras, and what needs one says which."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from features import extras
from features.extras import EXTRA_OF
from tests.pictures import moon
from tests.test_command import COMMANDS

PROJECT = Path(__file__).parents[1]
# Stands for an installation without extras: these packages are not there for imports.
ABSENT = f"""
import sys
from importlib.machinery import PathFinder

ABSENT = {sorted({*EXTRA_OF, "matplotlib"})!r}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            return None
        return super().find_spec(name, path, target)

    @staticmethod
    def find_distributions(context):
        return [] if context.name in ABSENT else PathFinder.find_distributions(context)

sys.meta_path = [Finder if one is PathFinder else one for one in sys.meta_path]
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of a Python without any extra."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "sitecustomize.py").write_text(ABSENT)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{PROJECT}"}


def python(code: str, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pip_is_not_told_the_name_of_a_project_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(extras, "_PROJECT", "not-installed")  # the index might have one of its name
    assert extras.how_to_install("heic").endswith(f"pip install --editable '{PROJECT}[heic]'")


def test_captioning_works_without_any_extra_and_other_commands_name_theirs(small, tmp_path):
    """One process for all commands, because each would import torch again."""
    moon((64, 48)).save(tmp_path / "moon.png")
    run = PROJECT / "decoder" / "trained"
    code = f"""
import contextlib, importlib, io, pathlib

def status(command, *arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = importlib.import_module(command).main(list(arguments))
    return code, out.getvalue(), err.getvalue()

def names_extra(extra, command, *arguments):
    code, _, err = status(command, *arguments)
    assert code == 2, (command, code, err)
    assert f"pip install 'caption-pipeline[{{extra}}]'" in err, (command, err)
    assert err.count("\\n") == 1, err

for command in {list(COMMANDS)!r}:
    command = command.replace("doctor", "doctor.__main__")
    assert status(command, "--version")[0] == 0
code, out, err = status("decoder.caption", "moon.png")
assert code == 0 and out.startswith("moon.png\\t"), err
pathlib.Path("page.html").write_text('<img src="moon.png">')
assert status("decoder.caption", "--alt", "page.html")[0] == 0
assert status("decoder.export", "--run", {str(run)!r}, "--out", "out")[0] in (0, 2)
names_extra("train", "pipeline.prepare", "--dataset", "shapes", "--work", "w", "--images", "3")
names_extra("train", "decoder.train", "--work", "w", "--run", "r")
names_extra("demo", "decoder.demo")
names_extra("fast", "decoder.export", "--run", "r", "--out", "o", "--onnx")
for bucket in ("s3://bucket/a.tar", "https://example.org/a.tar"):
    names_extra("shards", "decoder.caption", "--shards", bucket, "--out", "out")
pathlib.Path("r.json").write_text('[{{"image_id": 1, "caption": "a dog"}}]')
pathlib.Path("c.json").write_text(
    '{{"images": [{{"id": 1, "file_name": "a.jpg"}}], '
    '"annotations": [{{"id": 1, "image_id": 1, "caption": "a dog"}}]}}'
)
names_extra("score", "evaluation.score", "--captions", "c.json", "--results", "r.json")
"""
    python(code, small, tmp_path)
