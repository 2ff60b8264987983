"""The cores and the memory that this process may use, in a container (cgroup v2) too."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_GROUP = Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Memory of a container, in bytes."""

    limit: int
    free: int


def available_cores() -> int:
    """Return the number of cores that this process may use, at least 1."""
    return core_limit() or _cores()


def core_limit(group: Path = _GROUP) -> int | None:
    """Return of how many cores the container may use the time; None if of all of them."""
    with suppress(OSError, ValueError):  # "max" where there is no limit
        quota, period = map(int, (group / "cpu.max").read_text().split())
        limit = max(1, math.ceil(quota / period))
        return limit if limit < _cores() else None
    return None


def _cores() -> int:
    """Return the number of cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit(group: Path = _GROUP) -> Memory | None:
    """Return the memory of the container; None if there is no limit."""
    with suppress(OSError, ValueError):
        limit, used = (int((group / f"memory.{one}").read_text()) for one in ("max", "current"))
        lines = (group / "memory.stat").read_text().splitlines()
        cached = dict(line.split() for line in lines).get("inactive_file", "0")
        # The system gives up cached files where memory is needed.
        return Memory(limit, min(limit, max(0, limit - used + int(cached))))
    return None
