"""Imports go one way, features <- pipeline <- evaluation <- decoder, and are not slow."""

import ast
import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pictures import moon

PROJECT = Path(__file__).parents[1]
PACKAGES = ("features", "pipeline", "evaluation", "decoder")

# What each package may import from the project, in addition to itself.
ALLOWED = {
    "features": (),
    "pipeline": ("features",),
    # Scores and reports need captions and pictures, but no model. A report reads pooled features.
    # Results are tables with names of pictures, as those of data sets are.
    "evaluation": (
        "features.child_process",
        "features.commands",
        "features.errors",
        "features.extras",
        "features.files",
        "features.images",
        "features.sampling",
        "features.store",
        "features.store_set",
        "pipeline.caption_database",
        "pipeline.captions",
        "pipeline.command",
        "pipeline.readers.coco",
        "pipeline.readers.files",
        "pipeline.readers.names",
        "pipeline.readers.tables",
        "pipeline.up_to_date",
        "pipeline.work",
    ),
    "decoder": ("features", "pipeline", "evaluation"),
}

# The doctor checks the files of every package, so these modules may import all of them. Only the
# doctor's own command may import them; otherwise a package could depend on a higher one.
DOCTOR = {"pipeline.doctor.__main__", "pipeline.doctor.machine", "pipeline.doctor.workdir"}


def imported(file: Path) -> set[str]:
    """Return the project modules that a file imports, including imports inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {_module(node.module or "", alias.name) for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def _module(package: str, name: str) -> str:
    """Return the module that is imported: `from pipeline import captions` is pipeline.captions."""
    full_name = f"{package}.{name}"
    path = PROJECT.joinpath(*full_name.split("."))
    return full_name if path.with_suffix(".py").exists() or path.is_dir() else package


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_lower_packages_only(package):
    allowed = (package, *ALLOWED[package])
    wrong = [
        f"{file.relative_to(PROJECT)} imports {name}"
        for file in sorted((PROJECT / package).rglob("*.py"))
        for name in sorted(imported(file))
        if not any(name == a or name.startswith(f"{a}.") for a in allowed)
        and (name, file.name) != ("features", "__init__.py")  # before torch, see there
        and name_of(file) not in DOCTOR
    ]
    assert wrong == []


# The rooms of decoder/ by floor, lowest first. A module may import from its own room and from rooms
# on lower floors, but not from other rooms on its own floor.
FLOORS = (
    {"ngrams", "regression"},
    {"cider"},
    {"data"},
    {"model"},
    {"runs"},
    {"generation"},
    {"training", "ranking"},
    {"captioning"},
    {"sharing"},
    # decoder.load stands beside the commands: it may import every room, and no room imports it.
    {"__init__", "train", "caption", "search", "demo", "export"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def test_rooms_of_the_decoder_import_rooms_on_lower_floors_only():
    wrong = []
    for file in sorted((PROJECT / "decoder").rglob("*.py")):
        room = name_of(file).split(".")[1]
        for name in sorted(imported(file)):
            package, _, inside = name.partition(".")
            other = inside.split(".")[0] or "__init__"
            if package != "decoder" or other == room:
                continue
            if FLOOR[other] >= FLOOR[room]:
                wrong.append(f"{file.relative_to(PROJECT)} imports {name}")
    assert wrong == []


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PROJECT).with_suffix("").parts)


def test_only_its_own_command_imports_the_doctor():
    files = [file for package in PACKAGES for file in (PROJECT / package).rglob("*.py")]
    assert {name_of(file) for file in files} >= DOCTOR
    importing = {name_of(file) for file in files if imported(file) & DOCTOR}
    assert importing == {"pipeline.doctor.__main__"}


def test_imported_recognizes_every_kind_of_import(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import decoder.train\n"
        "from pipeline import captions\n"
        "def f():\n    from evaluation.toolkit import score\n"
    )
    assert imported(file) == {"decoder.train", "pipeline.captions", "evaluation.toolkit"}


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_that_run_as_commands_define_no_classes(package):
    """Under `python -m`, their classes belong to `__main__` and cannot be sent to workers."""
    for file in (PROJECT / package).rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if "__main__" in ast.dump(tree):
            assert not [node.name for node in tree.body if isinstance(node, ast.ClassDef)], file


def test_importing_the_package_loads_no_library():
    code = "import sys, decoder; print(sorted({'torch', 'numpy', 'PIL'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PROJECT
    )
    assert done.stdout == "[]\n"


COMMANDS = """
import importlib, io, sys
from contextlib import redirect_stderr, redirect_stdout
for name in {names!r}:
    command = importlib.import_module(name)
    for argument, status in (("--wrong-option", 2), ("--help", 0), ("--version", 0)):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            assert command.main([argument]) == status, (name, argument)
        assert "torch" not in sys.modules, (name, argument)
"""


def test_help_and_wrong_options_are_answered_before_torch_is_imported():
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].split("\n")
    names = [script.split(" = ")[1].removesuffix(":main") for script in scripts if script]
    assert len(names) == 11
    code = COMMANDS.format(names=names)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


SLOW = {"torchvision", "torch._dynamo", "sympy", "spacy", "matplotlib"}


# Imports in the same order as `python -m`, in which OpenMP reads the policy only once.
AS_A_COMMAND = """
import importlib, os, sys
for stage in {stages!r}:
    module = importlib.import_module(stage)
print(os.environ["OMP_WAIT_POLICY"], flush=True)
"""


def run_python(code: str, **variables: str) -> tuple[str, str]:
    """Run a program; return the first line that it prints, and what OpenMP prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_DISPLAY_ENV": "verbose"} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0], done.stderr


def assert_starts_well(stage: str, arguments: list[str]) -> None:
    """Run a stage in a new process: it imports nothing slow, and its waiting threads sleep.

    Importing any of `SLOW` takes a second or more. Spinning threads take the cores from the threads
    that they wait for.
    """
    code = AS_A_COMMAND.format(stages=[stage])
    code += f"""
assert module.main({arguments!r}) == 0
assert not (slow := {SLOW!r} & sys.modules.keys()), slow
"""
    policy, printed = run_python(code)
    assert policy == "PASSIVE"
    if "GOMP_SPINCOUNT" in printed:  # GNU OpenMP read the setting
        assert "GOMP_SPINCOUNT = '0'" in printed


def test_captioning_a_picture_starts_well(tmp_path: Path) -> None:
    moon((64, 48)).save(tmp_path / "noise.png")
    assert_starts_well("decoder.caption", [str(tmp_path / "noise.png")])


def test_training_starts_well_in_either_phase(work: Path) -> None:
    options = ["--run", "small", "--hidden", "16", "--xe.epochs", "1", "--rl.epochs", "1"]
    assert_starts_well("decoder.train", ["--work", str(work), *options])


def test_extraction_starts_well() -> None:
    assert_starts_well("pipeline.extract", ["--help"])


def test_waiting_threads_do_what_the_user_sets() -> None:
    stages = ["decoder.train", "decoder.caption", "pipeline.extract"]
    code = AS_A_COMMAND.format(stages=stages)
    assert run_python(code, OMP_WAIT_POLICY="ACTIVE")[0] == "ACTIVE"
