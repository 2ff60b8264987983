"""Processes of one command that torchrun started; with one process these functions do nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from features.devices import use
from features.errors import UserError

# One process may have to wait until the others have finished extracting.
_TIMEOUT = timedelta(days=30)

Value = TypeVar("Value")


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group for the duration of the block.

    Raises:
        UserError: the others cannot be reached.
    """
    if world_size() == 1:
        yield
        return
    try:
        dist.init_process_group(_backend(), timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot reach the other processes ({error}); start all of them with torchrun"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def _backend() -> str:
    """Return what carries tensors between processes.

    NCCL adds up tensors of GPUs without the host, but each process needs a GPU of its own. Gloo
    copies them through the host. Objects and barriers go through gloo in either case.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    has_own_gpu = torch.cuda.device_count() >= processes and dist.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if has_own_gpu else "gloo"


def broadcast(value: Value) -> Value:
    """Return the first process's `value` in every process.

    Raises:
        UserError: another process stopped.
    """
    values = [value]
    if world_size() > 1:
        with explain_lost_processes():
            dist.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    """Wait until every process has reached this point.

    Raises:
        UserError: another process stopped.
    """
    if world_size() > 1:
        with explain_lost_processes():
            dist.barrier()


def own_device(device: torch.device) -> torch.device:
    """Return `device`, or this process's GPU if `device` is any GPU."""
    if device.type != "cuda" or device.index is not None or world_size() == 1:
        return device
    number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    return use(torch.device("cuda", number))


@contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Turn the error of a lost connection into a UserError that explains how to continue."""
    try:
        yield
    except RuntimeError as error:  # when a connection closes
        raise UserError(
            "another process of this command stopped; its message says why. What was saved is "
            "kept: to continue, run the same command again; for training, add --resume"
        ) from error
