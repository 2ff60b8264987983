"""Writing to a run's folder: one training at a time, and an old run kept aside."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from features.errors import UserError
from features.locks import locked as lock_held
from pipeline.work import RunFolder


def move_aside(run: RunFolder) -> Path:
    """Rename the folder to NAME.old and create an empty one.

    If there is a NAME.old already, the new name is NAME.2.old, NAME.3.old and so on: no run is ever
    deleted. Every such name ends in ".old", by which other commands recognise an old run.

    Returns:
        The renamed folder.

    Raises:
        UserError: it cannot be renamed.
    """
    name = run.path.name
    names = (f"{name}.old" if number == 1 else f"{name}.{number}.old" for number in count(1))
    old = next(path for path in map(run.path.with_name, names) if not os.path.lexists(path))
    try:
        run.path.rename(old)
    except OSError as error:
        raise UserError(f"cannot move {run.path} to {old}: {error.strerror}") from error
    run.path.mkdir()
    return old


def delete_temporary_files(run: RunFolder) -> None:
    """Delete temporary files left by a killed training.

    TensorBoard would read a half-written event file as another one. Temporary files of other
    commands, which may be running, are left alone.
    """
    weights, texts = (run.best, run.best_xe), (run.metrics, run.config, run.vocabulary)
    others = (run.tensorboard / "events", run.path / ".done" / "train.json")
    for file in (run.state, *weights, *texts, *others):
        for temporary in file.parent.glob(f".{file.name}.*"):
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Lock the run's folder, created if missing, so that one training at a time writes to it.

    A folder that is empty at the end, as after a refused training, is removed.

    Raises:
        UserError: another training holds the lock, or the folder cannot be written to.
    """
    busy = f"another training is writing to {run.path}; wait for it, or choose another --run"
    with ExitStack() as held:
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock_held(run.lock, busy))
        except OSError as error:
            raise UserError(
                f"cannot write to {run.path}: {error.strerror}; choose another --work, or check "
                "its permissions and the free space"
            ) from error
        delete_temporary_files(run)
        try:
            yield
        finally:
            with suppress(OSError):  # there is something in it
                run.path.rmdir()


def digest(items: Iterable[object]) -> str:
    """Return the SHA-256, in hexadecimal, of the items' reprs, which must be complete."""
    return hashlib.sha256("\n".join(map(repr, items)).encode()).hexdigest()
