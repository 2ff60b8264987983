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
from configparser import ConfigParser
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from features.extras import EXTRA_OF
from tests.pictures import moon

PROJECT = Path(__file__).parents[1]
PACKAGES = ("features", "pipeline", "evaluation", "decoder")
DATA = {".csv", ".html", ".json", ".md", ".safetensors", ".sh", ".py"}


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
    expected |= {f"{name}/py.typed" for name in PACKAGES}  # type hints for users' code
    static = PROJECT / "decoder" / "captioning" / "static"
    expected |= {path.relative_to(PROJECT).as_posix() for path in static.iterdir()}
    expected |= {"evaluation/report.html", "pipeline/install.sh", "pipeline/presets.toml"}
    expected |= {"pipeline/constraints.txt", "features/imagenet_classes.txt"}
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_the_licence_tells_the_code_from_the_weights(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
        about = HeaderParser().parsestr(file.read(name).decode())
    assert about["License-Expression"] == "MIT AND LicenseRef-Flickr8k-NonCommercial"
    assert about.get_all("License-File") == ["LICENSE", "decoder/trained/LICENSE.md"]


def test_an_installed_wheel_captions_a_photograph(wheel, tmp_path):
    site = tmp_path / "site"
    pip("install", "--no-deps", "--target", site, wheel)
    photo = tmp_path / "photo.jpg"
    moon((400, 300)).save(photo)
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
    path, caption, *_ = python(str(site / "bin" / "caption"), str(photo)).rstrip("\n").split("\t")
    assert path == str(photo)
    assert len(caption.split()) >= 3
    assert caption.endswith(".")


def requirements() -> list[Requirement]:
    """What setup.cfg requires, all extras included."""
    config = ConfigParser()
    config.read(PROJECT / "setup.cfg")
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line for text in texts for line in text.strip().splitlines()]
    return [Requirement(line) for line in lines if not line.startswith("caption-pipeline")]


def test_every_requirement_has_a_locked_version_that_satisfies_it():
    lines = (PROJECT / "pipeline" / "constraints.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in locked.items()}
    required = requirements()
    assert len(required) > 20
    for requirement in required:
        version = versions.get(canonicalize_name(requirement.name), "none")
        assert version != "none", requirement
        assert requirement.specifier.contains(version), (requirement, version)


def test_every_optional_package_is_in_the_extra_that_messages_name():
    config = ConfigParser()
    config.read(PROJECT / "setup.cfg")
    extras = config["options.extras_require"]
    for package, extra in EXTRA_OF.items():
        listed = {
            canonicalize_name(Requirement(line).name) for line in extras[extra].split("\n") if line
        }
        assert canonicalize_name(package) in listed, (package, extra)
    assert set(extras["all"].strip()[len("caption-pipeline[") : -1].split(",")) == {*extras} - {
        "all",
        "test",
    }
