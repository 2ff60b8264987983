"""The trained captioner that comes with this package."""

from importlib import resources
from pathlib import Path

from features.errors import UserError


def packaged() -> Path:
    """Return its folder, which is one as `decoder.export` makes them.

    Raises:
        UserError: this build of the package has none.
    """
    folder = Path(str(resources.files("decoder") / "trained"))
    if not (folder / "config.json").is_file():
        raise UserError(
            "this build of the package comes without a trained captioner; name a run of yours with "
            "--run WORK/runs/NAME (python -m decoder.train makes one, or all of it ./run_all.sh)"
        )
    return folder
