"""Speed of training and beam search, as shares of the machine's rate of matrix products.

    .venv/bin/python -m tests.benchmarks.training [--work WORK] [--models updown] [--phases xe rl]
        [--device cuda] [--precision tf32] [--compile] [--profile]

Every row counts the operations that the model itself needs (no padding, no repetition) and compares
their rate with that of a large float32 product, measured between the runs. The decoder is
untrained, so none of its captions ends before the longest; a trained one writes captions half as
long, and samples and searches twice as fast (not on a GPU, where all have the full length). Memory
is what a step needs in addition to the weights and the state of the optimizer, on a GPU that of the
GPU. The rows take turns (see `timing.py`). On a GPU a profile also tells how much of the wall time
kernels ran.
"""

import json
import math
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro

from tests.benchmarks.first_step import seconds_to_first_step
from tests.benchmarks.random_data import random_work_folder
from tests.benchmarks.timing import SIDE, Timing, kernel_seconds, profile, time_interleaved
from tests.benchmarks.workloads import workloads_of

Phase = Literal["xe", "rl", "beam", "start"]


def main(
    work: Path | None = None,
    models: tuple[str, ...] = ("show_tell", "att2in", "updown"),
    cells: tuple[str, ...] = ("lstm", "gru"),
    phases: tuple[Phase, ...] = ("xe", "rl", "beam", "start"),
    images: tuple[int, ...] = (10, 50),
    rounds: int = 5,
    hidden: int = 512,
    device: str = "cpu",
    precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    compile: bool = False,
    cpu_time: bool = False,
    json: bool = False,
    profile: bool = False,
    limit: float = math.inf,
) -> None:
    """Print a table of rates.

    Args:
        work: work directory with features and captions; random ones by default.
        models: decoders to measure.
        cells: recurrent cells to measure.
        phases: cross-entropy, REINFORCE, beam search, and the time from start to first step.
        images: batch sizes, in images.
        rounds: number of measurements of each row.
        hidden: size of the recurrent state and of the attention.
        device: where to run.
        precision: of the training steps.
        compile: measure training with --compile too; compiling takes up to a minute.
        cpu_time: measure processor time instead of elapsed time, on a machine that others use;
            only for one thread.
        json: print JSON instead of the table.
        profile: also print the share of each torch operation.
        limit: seconds after which no further round and no further profile begins.
    """
    deadline = time.monotonic() + limit
    clock = time.process_time if cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folder = work or random_work_folder(scratch, 4 * max(images))
        workloads = [
            workload
            for name in models
            for cell in cells
            for count in images
            for phase in phases
            if phase != "start"
            for workload in workloads_of(
                folder,
                scratch,
                name,
                cell,
                count,
                phase,
                hidden,
                device,
                clock,
                compile,
                precision=precision,
            )
        ]
        timings, peak = time_interleaved(workloads, rounds, clock, torch.device(device), deadline)
        results: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "peak_gflops": peak / 1e9,
            "start_to_first_step": [
                seconds_to_first_step(folder, cpu_time)
                for _ in range(rounds if "start" in phases else 0)
            ],
            "rows": [_row(timing) for timing in timings],
            "profiles": _profiles(timings, deadline) if profile else [],
        }
    _print_json(results) if json else _print_tables(results)


def _row(timing: Timing) -> dict[str, Any]:
    """Return the figures of a workload, medians over the rounds."""
    workload, seconds = timing.workload, median(timing.seconds)
    return {
        "phase": workload.phase,
        "model": workload.model,
        "images": workload.images,
        "per_second": timing.per_second,
        "of_peak": median(timing.shares) or None,
        "outside": median(timing.outside) / seconds,
        "memory_mb": timing.memory,
        "seconds": seconds,
    }


def _profiles(timings: list[Timing], deadline: float) -> list[dict[str, float]]:
    """Return the profiles of the first workloads, those that begin before the deadline."""
    profiles = []
    for timing in timings:
        if time.monotonic() > deadline:
            break
        # The profiler slows the rest of the step, but not its kernels.
        busy = kernel_seconds(timing.workload) / median(timing.seconds)
        profiles.append(profile(timing.workload) | ({"GPU busy": busy} if busy else {}))
    return profiles


def _print_json(results: dict[str, Any]) -> None:
    print(json.dumps(results, indent=1))


def _print_tables(results: dict[str, Any]) -> None:
    print(
        f"{results['threads']} threads; a product of {SIDE} x {SIDE} matrices: "
        f"{results['peak_gflops']:.1f} GFLOP/s"
    )
    if results["start_to_first_step"]:
        print(f"start to first step: {median(results['start_to_first_step']):.1f} s")
    rows = results["rows"]
    if not rows:
        return
    print("\n| what | model | images | captions/s or images/s | of the peak | outside | memory |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        share = "" if row["of_peak"] is None else f"{row['of_peak']:.1%}"
        print(
            f"| {row['phase']} | {row['model']} | {row['images']} | {row['per_second']:.1f} | "
            f"{share} | {row['outside']:.2%} | {row['memory_mb']:.0f} MB |"
        )
    print()
    seconds = {(row["phase"], row["model"], row["images"]): row["seconds"] for row in rows}
    for (phase, model, images), taken in seconds.items():
        plain = seconds.get((f"{phase}, plain", model, images))
        if plain is not None:
            print(f"{phase}, {model}, {images} images: {plain / taken:.2f} times the plain one")
        fused = seconds.get((f"{phase}, compiled", model, images))
        if fused is not None:
            print(f"{phase}, {model}, {images} images: compiled {taken / fused:.3f} times")
    for row, shares in zip(rows, results["profiles"], strict=False):
        text = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        print(f"\n{row['phase']}, {row['model']}, {row['images']} images: {text}")


if __name__ == "__main__":
    tyro.cli(main)
