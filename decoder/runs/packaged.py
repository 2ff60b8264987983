"""The trained captioner that comes with this package."""

from importlib import resources
from pathlib import Path

from features.commands import TRAIN
from features.errors import UserError
from pipeline.work import RunFolder

PACKAGED = "packaged"  # the value of --run and --init that names the included captioner


def captioner_folder(run: Path | str | None) -> RunFolder:
    """Return the folder of a run or captioner; None and `PACKAGED` stand for the included one.

    A folder of that name in the current folder comes first.

    Raises:
        UserError: this installation includes no captioner.
    """
    if run is None or (str(run) == PACKAGED and not Path(run).exists()):
        return RunFolder(packaged_captioner())
    return RunFolder(Path(run))


def packaged_captioner() -> Path:
    """Return the folder of the included captioner, which `decoder.export` wrote.

    Raises:
        UserError: this installation includes none.
    """
    folder = _folder()
    if not (folder / "config.json").is_file():
        raise UserError(
            "this installation includes no captioner; give a run of your own with --run "
            f"WORK/runs/NAME (create one with {TRAIN}, or run all stages with ./run_all.sh)"
        )
    return folder


def named(run: Path) -> str:
    """Return how messages name a run: by its folder, unless it is the included captioner."""
    return "the included captioner (--run names another)" if run == _folder() else f"the run {run}"


def _folder() -> Path:
    return Path(str(resources.files("decoder") / "trained"))
