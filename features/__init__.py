"""From a picture to stored tensors: picture decoding, the frozen CNN and the HDF5 feature store."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

# Let threads sleep while they wait for each other. Spinning, they occupy the cores that the other
# threads need: if other programs run, training falls to a third of its speed or less. OpenMP reads
# this variable when torch is imported, so every package imports this one first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _claim_names() -> None:
    """Keep modules of the current folder from being imported in place of ours and of libraries.

    `python -m` puts the current folder before everything else. Somebody's features.py, or folder
    evaluation/, would be taken for ours, and a torch.py or random.py for that of the library. The
    other packages do the same before they import this one, which may be hidden itself.

    Raises:
        ImportError: a program has already imported another module of one of our names.
    """
    root = Path(__file__).resolve().parents[1]
    with suppress(FileNotFoundError):  # the current folder was deleted
        if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and Path.cwd() != root:
            _leave_out_current_folder()
    sys.path.insert(0, str(root))
    try:
        for name in ("pipeline", "evaluation", "decoder"):
            package = import_module(name)
            found = [Path(path).resolve() for path in getattr(package, "__path__", ())]
            if root / name not in found:
                raise ImportError(
                    f"expected the package {name} in {root}, found {package!r}, which has the same "
                    "name; rename it, or do not import both in one program"
                )
    finally:
        sys.path.remove(str(root))


def _leave_out_current_folder() -> None:
    """Import nothing from the current folder, and name what has the name of one of our commands."""
    folder = Path.cwd()
    place = next((i for i, path in enumerate(sys.path[:2]) if path in ("", str(folder))), None)
    if place is None:
        return
    del sys.path[place]
    names = ("features", "pipeline", "evaluation", "decoder")
    files = [folder / path for n in names for path in (f"{n}.py", f"{n}/__init__.py")]
    if hiding := [str(file) for file in files if file.exists()]:
        print(
            f"note: {', '.join(hiding)}: not used, though it has the name of a package of this "
            "program; where python -m starts your file instead, change to another folder",
            file=sys.stderr,
        )


_claim_names()
