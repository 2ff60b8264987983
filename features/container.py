"""The cores and the memory that a container (cgroup v2) leaves to its processes."""

import math
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_GROUP = Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Memory of a container, in bytes."""

    limit: int
    free: int


def core_limit(group: Path = _GROUP) -> int | None:
    """Return the number of cores whose time the container may use; None if there is no limit."""
    with suppress(OSError, ValueError):  # "max" where there is no limit
        quota, period = map(int, (group / "cpu.max").read_text().split())
        return max(1, math.ceil(quota / period))
    return None


def memory_limit(group: Path = _GROUP) -> Memory | None:
    """Return the memory of the container; None if there is no limit."""
    with suppress(OSError, ValueError):
        limit, used = (int((group / f"memory.{one}").read_text()) for one in ("max", "current"))
        lines = (group / "memory.stat").read_text().splitlines()
        cached = dict(line.split() for line in lines).get("inactive_file", "0")
        # The system gives up cached files where memory is needed.
        return Memory(limit, min(limit, max(0, limit - used + int(cached))))
    return None
