"""From a picture to stored tensors: picture decoding, the frozen CNN and the HDF5 feature store."""

import os
import sys
from pathlib import Path

# Let threads sleep while they wait for each other. Spinning, they occupy the cores that the other
# threads need: if other programs run, training falls to a third of its speed or less. OpenMP reads
# this variable when torch is imported, so every package imports this one first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _leave_out_current_folder() -> None:
    """Import nothing from the current folder under `python -m`, which would search it first.

    Somebody's features.py or folder evaluation/ there would be taken for ours, and a torch.py for
    the library's. The other packages find this one in their own folder for the same reason.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # it was deleted
        return
    if sys.argv[:1] != ["-m"] or sys.flags.safe_path or folder == root:
        return
    for place in (path for path in sys.path[:2] if path in ("", str(folder))):
        sys.path.remove(place)
        break
    names = ("features", "pipeline", "evaluation", "decoder")
    files = [folder / path for n in names for path in (f"{n}.py", f"{n}/__init__.py")]
    if hiding := [str(file) for file in files if file.exists()]:
        print(
            f"note: {', '.join(hiding)}: not used, although named like a package of this program; "
            "if python -m starts your file instead, run the command in another folder",
            file=sys.stderr,
        )


_leave_out_current_folder()
