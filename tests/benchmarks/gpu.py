"""Everything that needs a GPU, in two times ten minutes: tests, benchmarks, profiles, as JSON.

    .venv/bin/python -m tests.benchmarks.gpu [--out FILE] [--peer CLONE] [--pictures FOLDER]
        [--parts tests xe]

The first ten minutes are those of the tests, the training steps and the peer; README.md has both
commands. Each part runs in a process of its own and is ended at its limit. FILE is written after
each part, so what is done is kept whatever happens. `--device cpu` tries the script at tiny sizes.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro

TAIL = 6000  # characters kept of the output of a part

_TESTS = ("tests/decoder/test_cuda.py", "tests/features/test_backends.py")
_ON_CPU = "tests/decoder/test_static.py"
_PROCESSES = "tests/decoder/training/test_distributed.py"


class Part(NamedTuple):
    """A command, and the seconds it may take."""

    seconds: int
    command: Sequence[str]


def main(
    out: Path = Path("gpu.json"),
    peer: Path | None = None,
    pictures: Path | None = None,
    parts: tuple[str, ...] = (),
    device: str = "cuda",
    limit: int = 580,
) -> None:
    """Run the parts, and write what they print.

    Args:
        out: the file of results.
        peer: a clone of ImageCaptioning.pytorch to compare with.
        pictures: a folder of JPEG pictures to extract features of.
        parts: names of those to run; by default all.
        device: cuda; or cpu, to try the script at tiny sizes.
        limit: seconds of all parts together; those that would begin later are left out.
    """
    started = time.monotonic()
    results: dict[str, Any] = {"machine": _machine(device)}
    for name, part in _parts(device, peer, pictures).items():
        if parts and name not in parts:
            continue
        left = limit - (time.monotonic() - started)
        results[name] = {"left_out": "no time"} if left < 5 else _run(part, left)
        out.write_text(json.dumps(results, indent=1))
        kept = {key: results[name].get(key) for key in ("status", "seconds", "left_out")}
        print(name, json.dumps({key: value for key, value in kept.items() if value is not None}))


def _machine(device: str) -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0) if device == "cuda" else None
    return {
        "card": card.name if card else "none",
        "memory": card.total_memory if card else 0,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def _parts(device: str, peer: Path | None, pictures: Path | None) -> dict[str, Part]:
    tiny = device == "cpu"

    def benchmark(module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]

    def training(precision: str, *more: str) -> list[str]:
        sizes = ["--images", "2", "--hidden", "16"] if tiny else ["--images", "10", "50", "100"]
        rows = ["--models", "updown", "--cells", "lstm", "--phases", "xe", "rl", "beam"]
        # A process that has to be killed prints no figures.
        rounds = ["--rounds", "1" if tiny else "5", "--limit", "50", "--device", device]
        return benchmark("training", *rows, *sizes, *rounds, "--precision", precision, *more)

    def coco(precision: str) -> list[str]:
        small = ["--images", "40", "--validation", "6", "--hidden", "16", "--attention", "16"]
        small += ["--channels", "32", "--words", "50", "--batch-size", "10"]
        share = ["--share", "0.02", *small] if tiny else ["--share", "0.005"]
        return benchmark("coco_size", "--device", device, "--precision", precision, *share)

    def tests(*chosen: str) -> list[str]:
        return [sys.executable, "-m", "pytest", "-v", *chosen]  # names what passed before a limit

    # The most important first, since not all may have their time.
    found = {
        "tests": Part(180, tests(*([_ON_CPU] if tiny else [*_TESTS, "-k", "cuda or gpu"]))),
        "processes": Part(40, tests(_PROCESSES, "-k", "static" if tiny else "cuda")),
        "training tf32": Part(90, training("tf32", "--json", "--profile")),
        "training float32": Part(90, training("float32", "--json", "--profile")),
    }
    if peer is not None:
        sizes = ["--images", "2", "--rounds", "1"] if tiny else ["--rounds", "3"]
        command = benchmark("peer", "--clone", str(peer), "--device", device, *sizes)
        found["peer"] = Part(120, [*command, "--precision", "tf32"])
    found["training bfloat16"] = Part(90, training("bfloat16", "--json"))
    found["coco tf32"] = Part(300, coco("tf32"))
    if pictures is not None:
        small = (
            ["--images", "8", "--rounds", "1"] if tiny else ["--images", "1000", "--rounds", "1"]
        )
        alone = ["--feeding", "--device", "cpu", *small]
        found["feeding"] = Part(40, benchmark("extraction", str(pictures), *alone))
        whole = ["--device", device, *small]
        found["extraction"] = Part(150, benchmark("extraction", str(pictures), *whole))
    return found


def _run(part: Part, left: float) -> dict[str, Any]:
    """Run a part within its limit and the seconds that are left."""
    started = time.monotonic()
    with subprocess.Popen(
        part.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=min(part.seconds, left))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            printed, _ = process.communicate()
    result: dict[str, Any] = {
        "command": list(part.command[1:]),
        "status": process.returncode,
        "seconds": round(time.monotonic() - started, 1),
    }
    begin = printed.find("{\n")
    with contextlib.suppress(ValueError):
        return (
            {**result, "results": json.JSONDecoder().raw_decode(printed[begin:])[0]}
            if begin >= 0
            else result | {"output": printed[-TAIL:]}
        )
    return {**result, "output": printed[-TAIL:]}


if __name__ == "__main__":
    tyro.cli(main)
