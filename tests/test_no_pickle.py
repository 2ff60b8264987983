"""No user file is ever unpickled: unpickling would run any code that its author put in it."""

import ast
import io
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder import caption, train
from evaluation import report
from features import torchvision_cnns
from features.errors import UserError
from pipeline import extract
from tests.fuzz.readers import trained
from tests.test_imports import PACKAGES, PROJECT

FORBIDDEN = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "eval", "exec"}


def unsafe(source: str) -> list[str]:
    """Return the names in a module that could run code from a file."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN:
            names += [a.name for a in node.names if a.name != "UnpicklingError"]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            safe = any(
                k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords
            )
            if name == "torch.load" and not safe:
                names.append("torch.load without weights_only=True")
            allowed = any(
                k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords
            )
            if name in FORBIDDEN or allowed:
                names.append(name)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_can_unpickle(package: str) -> None:
    files = sorted((PROJECT / package).rglob("*.py"))
    names = {str(file): unsafe(file.read_text(encoding="utf-8")) for file in files}
    assert {file: of_file for file, of_file in names.items() if of_file} == {}


def test_unsafe_recognizes_every_way_to_unpickle() -> None:
    source = "import pickle\nfrom pickle import loads\ntorch.load(f)\nnp.load(f, allow_pickle=True)"
    assert len(unsafe(f"{source}\neval('1')")) == 5
    assert unsafe("torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)") == []


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.marker,)


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Evil(marker))


def pickled_by_torch(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save(Evil(marker), file)
    return file.getvalue()


def pickled_in_npz(marker: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("image_id", "words", "weights"):
            array = io.BytesIO()
            np.save(array, np.array([Evil(marker)], dtype=object), allow_pickle=True)
            archive.writestr(f"{name}.npy", array.getvalue())
    return file.getvalue()


def test_unpickling_the_evil_files_runs_their_code(tmp_path: Path) -> None:
    for number, make in enumerate((pickled, pickled_by_torch, pickled_in_npz)):
        marker = tmp_path / str(number)
        file = io.BytesIO(make(marker))
        if make is pickled:
            pickle.load(file)
        elif make is pickled_by_torch:
            torch.load(file, weights_only=False)
        else:
            np.load(file, allow_pickle=True)["words"]
        assert marker.exists()


RUN = "runs/small"
FILES = {
    "captions.json": pickled,
    "vocabulary.json": pickled,
    "features.h5": pickled,
    f"{RUN}/config.json": pickled,
    f"{RUN}/vocabulary.json": pickled,
    f"{RUN}/best.safetensors": pickled_by_torch,
    f"{RUN}/state/resume.safetensors": pickled_by_torch,
    f"{RUN}/captions_val.json": pickled,
    f"{RUN}/metrics.jsonl": pickled,
    f"{RUN}/scores_val.json": pickled,
    f"{RUN}/attention_val.npz": pickled_in_npz,
}


@pytest.mark.parametrize("name", FILES)
def test_pickle_in_place_of_any_file_is_refused_without_unpickling(
    finished: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Path(shutil.copytree(finished, tmp_path / "work"))
    marker = tmp_path / "marker"
    (work / name).write_bytes(FILES[name](marker))
    run = str(work / RUN)
    # Each command refuses the files that it reads, and none unpickles them.
    statuses = [
        caption.main(
            ["--run", run, "--split", "val", "--out", str(tmp_path / "captions_val.json")]
        ),
        report.main(["--run", run, "--force"]),
        extract.main(["--work", str(work), "--backbone", "efficientnet_lite0"]),
    ]
    if "state" in name or name == "vocabulary.json":  # only training reads these
        options = trained(work)
        with pytest.raises(UserError):
            train.new_trainer(options).state.restore()
        statuses.append(2)
    assert not marker.exists()
    assert 2 in statuses
    assert "Traceback" not in capsys.readouterr().err


def test_downloaded_weights_that_contain_more_than_tensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision itself would unpickle them: it checks only eight digits of their checksum."""
    marker, file = tmp_path / "marker", tmp_path / "weights.pth"
    file.write_bytes(pickled_by_torch(marker))
    monkeypatch.setattr(torchvision_cnns, "_download", lambda url: file)
    with pytest.raises(UserError, match="contains more than tensors"):
        torchvision_cnns.pretrained("shufflenet_v2_x0_5")
    assert not marker.exists()


def test_commands_unpickle_nothing_when_they_read_a_work_directory(
    finished: Path, tmp_path: Path
) -> None:
    """Python's audit events report every class that an unpickler looks up."""
    out = str(tmp_path / "captions_val.json")
    code = f"""
import pathlib
import sys
from decoder import caption
from evaluation import report
from pipeline.doctor import __main__ as doctor, workdir
from pipeline.work import RunFolder
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("pickle.") else None)
run = {str(finished / RUN)!r}
assert caption.main(["--run", run, "--split", "val", "--out", {out!r}]) == 0
results = workdir.check_work_directory(RunFolder(pathlib.Path(run)).work)
assert all(result.level == "ok" for result in results)
print(seen)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
