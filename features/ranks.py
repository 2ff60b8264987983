"""One extraction in several processes, as torchrun starts them; alone, these do nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from features.errors import UserError

# How long one process may wait for the others, which may still extract.
_PATIENCE = timedelta(days=30)

Value = TypeVar("Value")


def world() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def group() -> Iterator[None]:
    """Join the other processes; one that fails leaves the group, and so do those that wait for it.

    Raises:
        UserError: the others cannot be reached, or one of them stopped while this one waited.
    """
    if world() == 1:
        yield
        return
    try:
        distributed.init_process_group("gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot reach the other processes ({error}); start all by torchrun"
        ) from error
    try:
        yield
    finally:
        distributed.destroy_process_group()


def share(value: Value) -> Value:
    """Return the first process's `value` in every process."""
    values = [value]
    if world() > 1:
        with _lost():
            distributed.broadcast_object_list(values)
    return values[0]


def wait() -> None:
    """Return when every process has come here."""
    if world() > 1:
        with _lost():
            distributed.barrier()


def own_device(device: torch.device) -> torch.device:
    """Return `device`, or if it is any GPU, the one for this process."""
    if device.type != "cuda" or device.index is not None or world() == 1:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's for a connection that closes
        raise UserError(
            "another process of this extraction stopped, see its message; what was stored is kept, "
            "and the same command continues from there"
        ) from error
