"""A run's folder: what lies where, its config, and the decoder loaded back from it."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from features.errors import UserError

MADE_BY = "python -m decoder.train"


class RunFolder:
    """The files of one run, `WORK/runs/NAME`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.vocabulary = path / "vocabulary.json"
        self.best = path / "best.safetensors"
        self.best_xe = path / "best_xe.safetensors"
        self.state = path / "state" / "resume.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        # Beside the folder, so that it stays locked while the folder is moved aside.
        self.lock = path.with_name(f".{path.name}.lock")

    @property
    def work(self) -> Path:
        """The work directory that the run belongs to."""
        return self.path.resolve().parent.parent

    def move_aside(self) -> Path:
        """Rename the folder to NAME.old, replacing an older one there, and make it anew, empty."""
        old = self.path.with_name(f"{self.path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        try:
            self.path.rename(old)
        except OSError as error:
            raise UserError(f"cannot move {self.path} to {old}: {error.strerror}") from error
        self.path.mkdir()
        return old

    def sweep(self) -> None:
        """Delete the halves of files that a killed training was writing.

        TensorBoard would take that of an event file for another one. What other stages write to
        the folder, perhaps at this moment, is left alone.
        """
        weights, texts = (self.best, self.best_xe), (self.metrics, self.config, self.vocabulary)
        others = (self.tensorboard / "events", self.path / ".done" / "train.json")
        for file in (self.state, *weights, *texts, *others):
            for half in file.parent.glob(f".{file.name}.*"):
                half.unlink(missing_ok=True)


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the run's folder, made if need be, for one training at a time.

    Raises:
        UserError: another training holds it, or it cannot be written to.
    """
    lock = filelock.FileLock(run.lock, timeout=0)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"another training is writing to {run.path}; wait for it, or choose another --run"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot write to {run.path}: {error.strerror}; choose another --work, or make room "
            "and see to its permissions"
        ) from error
    try:
        run.sweep()
        yield
    finally:
        lock.release()


def digest(things: Iterable[object]) -> str:
    """Return the SHA-256, in hexadecimal, of things whose repr says all of them."""
    return hashlib.sha256("\n".join(map(repr, things)).encode()).hexdigest()
