"""The wheel has every module and data file, and captions a photograph on its own.

setup.cfg lists the packages by hand, and an editable installation imports the source tree: neither
would show that one is missing.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import matplotlib
import pytest

PROJECT = Path(__file__).parents[1]
PACKAGES = ("features", "pipeline", "evaluation", "decoder")
DATA = {".html", ".json", ".md", ".safetensors", ".sh", ".py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the source tree, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, folder / "source" / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder / "source" / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder / "dist", folder / "source")
    (file,) = (folder / "dist").glob("*.whl")
    return file


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(
        [*command, "--no-index"], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr


def test_the_wheel_has_every_module_and_data_file(wheel):
    expected = {
        path.relative_to(PROJECT).as_posix()
        for name in PACKAGES
        for path in (PROJECT / name).rglob("*")
        if path.suffix == ".py" or path.is_relative_to(PROJECT / "decoder" / "trained")
        if path.is_file() and path.suffix in DATA
    }
    static = PROJECT / "decoder" / "captioning" / "static"
    expected |= {path.relative_to(PROJECT).as_posix() for path in static.iterdir()}
    expected |= {"evaluation/report.html", "pipeline/install.sh", "pipeline/presets.sh"}
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_an_installed_wheel_captions_a_photograph(wheel, tmp_path):
    site = tmp_path / "site"
    pip("install", "--no-deps", "--target", site, wheel)
    photo = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    # -S leaves out .pth files, among them the editable installation's; the libraries stay.
    paths = [str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    modules = python("-c", "import decoder.caption as c, features.files as f; print(c, f)")
    assert modules.count(str(site)) == 2
    path, caption, *_ = python("-m", "decoder.caption", str(photo)).rstrip("\n").split("\t")
    assert path == str(photo)
    assert len(caption.split()) >= 3
    assert caption.endswith(".")
