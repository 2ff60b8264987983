"""Time workloads in interleaved rounds, as shares of the rate of a large matrix product.

Workloads take turns, so that whatever else the machine does slows all of them alike.
"""

import ctypes
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from decoder.training.trainer import Trainer

SIDE = 1024  # of the square matrices whose product sets the peak rate
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::addmv", "aten::addmv_", "aten::bmm")
_CPU = torch.device("cpu")
_IN_A_ROW = 10  # runs on a GPU between two waits for it


class Work(NamedTuple):
    """What one run of a workload did."""

    count: int
    """Captions in cross-entropy, else images."""
    operations: float = 0.0
    """Floating-point operations that the model needs; 0 if they are not counted."""
    outside: float = 0.0
    """Seconds spent outside the decoder."""


@dataclass(frozen=True)
class Workload:
    """A training step or a search on one batch."""

    phase: str
    model: str
    images: int
    trainer: Trainer
    """Has the decoder, and takes the step if it is one."""
    run: Callable[[], Work]
    """Does the work once."""


@dataclass
class Timing:
    """Measurements of a workload, one a round."""

    workload: Workload
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    """Rate of operations as a share of the peak rate."""
    outside: list[float] = field(default_factory=list)
    """Seconds spent outside the decoder."""
    count: int = 0
    """Captions in cross-entropy, else images."""
    memory: float = 0.0
    """Most memory that a run added to the resident memory, MB."""

    @property
    def per_second(self) -> float:
        """Captions or images a second."""
        return self.count / median(self.seconds)


def time_interleaved(
    workloads: Sequence[Workload],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device = _CPU,
    deadline: float = math.inf,
) -> tuple[list[Timing], float]:
    """Run every workload once a round, at least once, and no further round after the deadline.

    On a GPU it runs several times in a row, as in a training, where the host prepares a step while
    the GPU takes the one before.

    Returns:
        The measurements of each workload, and the peak rate: the median rate of a large float32
        product, in operations a second.
    """
    matrix, product = torch.randn(SIDE, SIDE, device=device), torch.empty(SIDE, SIDE, device=device)

    def peak_rate() -> float:
        _synchronise(device)
        started = clock()
        for _ in range(8):
            torch.mm(matrix, matrix, out=product)
        _synchronise(device)
        return 8 * 2 * SIDE**3 / (clock() - started)

    peak_rate()  # the first product is slower
    peaks = [peak_rate()]
    timings = [Timing(workload) for workload in workloads]
    repeats = _IN_A_ROW if device.type == "cuda" else 1
    for turn in range(rounds + 1):  # the first round allocates memory and prepares the reward
        if turn > 1 and time.monotonic() > deadline:
            break
        for timing in timings:
            before = peak_rate()
            resident = _reset_peak_memory(device)
            _synchronise(device)
            started = clock()
            for _ in range(repeats):
                work = timing.workload.run()
            _synchronise(device)
            seconds = (clock() - started) / repeats
            if turn:
                peaks.append(peak_rate())
                timing.seconds.append(seconds)
                timing.shares.append(work.operations / seconds / max(before, peaks[-1]))
                timing.outside.append(work.outside)
                timing.count = work.count
            if turn or device.type == "cuda":  # a graph has its memory since the first round
                timing.memory = max(timing.memory, _peak_memory(device) - resident)
    return timings, median(peaks)


def profile(workload: Workload) -> dict[str, float]:
    """Run the workload once; return the share of its time that each torch operation takes.

    All matrix products count as one operation; operations below 1 % are summed as "others". On a
    GPU each kernel has its share of the time of all kernels.
    """
    gpu = workload.trainer.device.type == "cuda"
    with torch.profiler.profile() as profiler:
        workload.run()
        _synchronise(workload.trainer.device)
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        name = "products" if event.key in _PRODUCTS else event.key.removeprefix("aten::")
        if not gpu:
            times[name] += event.self_cpu_time_total
        elif event.device_type == torch.autograd.DeviceType.CUDA:
            times[name] += event.self_device_time_total
    total = times.total()
    shares = {name: time / total for name, time in times.most_common() if time >= total / 100}
    return {**shares, "others": 1 - sum(shares.values())}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernel_seconds(workload: Workload) -> float:
    """Run the workload once; return the seconds in which a GPU's kernels ran, 0 on a CPU."""
    device = workload.trainer.device
    if device.type != "cuda":
        return 0.0
    _synchronise(device)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        workload.run()
        _synchronise(device)
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6


def _reset_peak_memory(device: torch.device) -> float:
    """Return free memory to the system, reset the peak, and return the used memory in MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_memory(device)


def _peak_memory(device: torch.device) -> float:
    """Return the peak of the used memory in MB, or NaN where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return float("nan")
