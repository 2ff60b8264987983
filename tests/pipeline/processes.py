"""Start pipeline.extract in processes forked from one that has already imported torch."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from pipeline.extract import main


def _run(arguments: list[str], environment: Mapping[str, str], output: Path) -> None:
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    # A shell's background jobs, perhaps including these tests, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def start(
    arguments: list[str], output: Path, environment: Mapping[str, str] | None = None
) -> ForkServerProcess:
    """Start pipeline.extract with `arguments`; its output goes to the file `output`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_run, args=(arguments, environment or {}, output))
    process.start()
    return process
