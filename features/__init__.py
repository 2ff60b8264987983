"""From a picture to stored tensors: picture decoding, the frozen CNN and the HDF5 feature store."""

import os
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path

from features.container import core_limit

# Let threads sleep while they wait for each other. Spinning, they occupy the cores that the other
# threads need: if other programs run, training falls to a third of its speed or less. OpenMP reads
# this variable when torch is imported, so every package imports this one first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# By itself OpenMP starts a thread for every core, also where a container may use the time of a few.
if (_limit := core_limit()) is not None:
    os.environ.setdefault("OMP_NUM_THREADS", str(_limit))


_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("features", "pipeline", "evaluation", "decoder")


def _leave_out_current_folder() -> None:
    """Import nothing from the current folder under `python -m`, which would search it first.

    Somebody's features.py or folder evaluation/ there would be taken for ours, and a torch.py for
    the library's. The other packages find this one in their own folder for the same reason.
    """
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # it was deleted
        return
    if sys.argv[:1] != ["-m"] or sys.flags.safe_path or folder == _ROOT:
        return
    for place in (path for path in sys.path[:2] if path in ("", str(folder))):
        sys.path.remove(place)
        break
    files = [folder / path for n in _PACKAGES for path in (f"{n}.py", f"{n}/__init__.py")]
    _say_what_is_not_used([str(file) for file in files if file.exists()])


def _import_our_packages() -> None:
    """Let our names stand for our packages, whatever comes first beside a script or in PYTHONPATH.

    Raises:
        ImportError: a name stands for something else already.
    """
    root = str(_ROOT)
    for name in _PACKAGES:
        if name not in sys.modules:
            sys.path.insert(0, root)
            import_module(name)
            del sys.path[0]
        file = sys.modules[name].__file__
        if file and Path(file).resolve().parent != _ROOT / name:
            raise ImportError(
                f"{file} was imported as {name}, which is also the name of a package of this "
                "program; rename the file"
            )
    # The first place is that of the package that imports this one, see there.
    places = sys.path[1:] if sys.path[:1] == [root] else sys.path
    if root in places:
        places = places[: places.index(root)]
        specs = [PathFinder.find_spec(name, places) for name in _PACKAGES]
        found = [spec.origin for spec in specs if spec and spec.origin]
        # The current folder may be that of this program, by another name.
        _say_what_is_not_used([file for file in found if _ROOT not in Path(file).resolve().parents])


def _say_what_is_not_used(files: list[str]) -> None:
    if files:
        print(
            f"note: {', '.join(files)}: not used, although named like a package of this program; "
            "if python -m starts your file instead, run the command in another folder",
            file=sys.stderr,
        )


_leave_out_current_folder()
_import_our_packages()
