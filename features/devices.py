"""Choosing the device that computes, and what is free of it for this process."""

import math
import os
from contextlib import suppress
from pathlib import Path

import torch

from features.container import available_cores, memory_limit
from features.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device with PyTorch's name `name`; "auto" is a GPU if there is one, else the CPU.

    Raises:
        UserError: this machine has no such device, or it is neither a CPU nor a CUDA GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name}: PyTorch has no such device on this machine; use cpu, or auto for "
            "a GPU if there is one"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected cpu, cuda or auto; nothing else has been tried")
    return use(device)


def use(device: torch.device) -> torch.device:
    """Return `device`; if it is one of several GPUs, make it the current one of this thread.

    Events, compiled kernels and NCCL go by the current GPU, whatever tensors they work on.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def cores() -> int:
    """Return this process's share of the cores it may use, at least 1; see `free_memory`."""
    return max(1, available_cores() // _processes_here())


def free_memory(device: torch.device) -> int:
    """Return this process's share of a device's free memory in bytes.

    Processes of one command on this machine, started by torchrun, share the memory of the CPU, and
    that of a GPU if there are more processes than GPUs. A limit of the container counts too. Where
    the system does not say how much is free, this is 0.
    """
    if device.type == "cuda":
        sharing = math.ceil(_processes_here() / torch.cuda.device_count())
        return torch.cuda.mem_get_info(device)[0] // sharing
    free = 0
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    if limit := memory_limit():
        free = min(free, limit.free)
    return free // _processes_here()


def _processes_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
