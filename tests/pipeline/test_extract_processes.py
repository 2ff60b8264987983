"""Extraction survives killed processes and full disks, and can be shared among processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from features import parts
from features.store_writing import only_writer
from pipeline.extract import main
from tests.disks import fill, small_disk
from tests.pipeline.processes import start
from tests.pipeline.test_extract import LITE0, encoded, picture, prepare

PICTURES = 40
OPTIONS = [*LITE0, "--backend", "eager", "--batch-size", "4", "--workers", "1"]


def arguments(work: Path) -> list[str]:
    return ["--work", str(work), *OPTIONS]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The last digits of eager PyTorch depend on the number of threads; torchrun sets one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory without features; one of its pictures cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    files = {f"{i}.png": encoded(picture(i)) for i in range(PICTURES)}
    return prepare(folder, {**files, "bad.png": b""})


@pytest.fixture(scope="module")
def uninterrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The store of an uninterrupted run."""
    work = shutil.copytree(pictures, tmp_path_factory.mktemp("uninterrupted") / "work")
    assert main(arguments(work)) == 0
    return (work / "features.h5").read_bytes()


@pytest.fixture
def work(pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "work"))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)


def records(work: Path) -> Counter[int]:
    """Count the complete records of each image in the parts."""
    folder = work / "features.parts"
    counts: Counter[int] = Counter()
    for path in folder.glob("*.part"):
        with path.open("rb") as file:
            while data := parts._read(file, 10**6):
                counts[parts._FIELDS.unpack_from(data, parts._HEADER.size)[0]] += 1
    return counts


def bytes_written(work: Path) -> int:
    total = 0
    for path in (work / "features.parts").glob("*.part"):
        with suppress(FileNotFoundError):  # a run that finishes removes them
            total += path.stat().st_size
    return total


def test_kills_at_random_moments_lose_nothing_that_was_stored(
    work: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    random = np.random.default_rng()
    done: set[int] = set()
    kills = 0
    while not (work / "features.h5").exists():
        before = bytes_written(work)
        process = start(arguments(work), tmp_path / "output")
        # The last kills come a moment after the parts are there, perhaps while they merge.
        enough = before + (int(random.integers(120_000)) if kills < 9 else 10**9)
        while bytes_written(work) <= enough and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        kills += 1
        if not (work / "features.h5").exists():
            counts = records(work)
            stored = set(counts) - {PICTURES + 1}
            assert stored >= done
            assert max(counts[image_id] for image_id in stored or {0}) <= 1, (
                "an image was extracted twice"
            )
            done = stored
    assert kills > 1  # the exact number depends on when this process looks
    assert main(arguments(work)) == 0  # in case the last kill left something to do
    assert (work / "features.h5").read_bytes() == uninterrupted
    assert not (work / "features.parts").exists()


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT])
def test_extraction_continued_after_a_signal_writes_the_same_store(
    kill: signal.Signals, work: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    process = start(arguments(work), tmp_path / "output")
    wait_for(lambda: bytes_written(work) > 200_000)
    assert process.pid
    os.kill(process.pid, kill)
    process.join()
    assert process.exitcode == {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM}[kill]
    done = len(set(records(work)) - {PICTURES + 1})
    assert done
    assert main(arguments(work)) == 0
    assert json.loads((work / "extract.json").read_text())["tried_in_this_run"] == (
        PICTURES + 1 - done
    )
    assert (work / "features.h5").read_bytes() == uninterrupted


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    with small_disk(tmp_path / "disk", 6) as folder:
        yield folder


def test_a_full_disk_loses_nothing_that_was_stored(
    pictures: Path, uninterrupted: bytes, disk: Path, tmp_path: Path
) -> None:
    work = Path(shutil.copytree(pictures, disk / "work"))
    process = start(arguments(work), tmp_path / "output")
    wait_for(lambda: bytes_written(work) > 200_000)
    ballast = fill(disk)
    process.join()
    assert process.exitcode == 2
    message = (tmp_path / "output").read_text()
    assert "No space left on device; what was stored is kept" in message
    assert "Traceback" not in message
    done = len(set(records(work)) - {PICTURES + 1})
    assert 0 < done < PICTURES
    ballast.unlink()
    assert main(arguments(work)) == 0
    report = json.loads((work / "extract.json").read_text())
    assert report["tried_in_this_run"] == PICTURES + 1 - done
    assert (work / "features.h5").read_bytes() == uninterrupted


def start_ranks(
    work: Path, count: int, output: Path, options: dict[int, list[str]]
) -> list[ForkServerProcess]:
    """Start `count` processes without torchrun, which would end all of them when one ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        argv = [*arguments(work), *options.get(rank, [])]
        processes.append(start(argv, output / f"rank{rank}", {**rendezvous, **place}))
    return processes


def end(processes: list[ForkServerProcess]) -> list[int | None]:
    """Wait for processes and return their exit codes."""
    for process in processes:
        process.join(100)
    return [process.exitcode for process in processes]


def test_the_next_run_continues_after_a_rank_dies(
    work: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    processes = start_ranks(work, 3, tmp_path, {})
    wait_for(lambda: bytes_written(work) > 150_000)
    processes[1].kill()
    assert end(processes) == [2, -signal.SIGKILL, 2]
    for rank in (0, 2):
        output = (tmp_path / f"rank{rank}").read_text()
        assert "another process of this command stopped" in output
        assert "Traceback" not in output
    assert not (work / "features.h5").exists()
    done = len(set(records(work)) - {PICTURES + 1})
    assert PICTURES * 2 / 3 - 2 < done < PICTURES

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node=2", "-m", "pipeline.extract", *arguments(work)]
    torchrun = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert torchrun.returncode == 0, torchrun.stderr
    report = json.loads((work / "extract.json").read_text())
    assert (report["tried_in_this_run"], report["processes"]) == (PICTURES + 1 - done, 2)
    unreadable = report.pop("unreadable")  # in the file only
    assert [Path(name).name for name in unreadable] == ["bad.png"]
    assert json.loads(torchrun.stdout.splitlines()[-1]) == report
    assert (work / "features.h5").read_bytes() == uninterrupted


def test_no_process_waits_for_ever_after_an_error_of_the_first(work: Path, tmp_path: Path) -> None:
    with only_writer(work / "features.h5"):
        assert end(start_ranks(work, 2, tmp_path, {})) == [2, 2]
    assert "another process is writing" in (tmp_path / "rank0").read_text()
    error = (tmp_path / "rank1").read_text()
    assert "another process of this command stopped" in error
    assert "Traceback" not in error


def test_no_process_waits_for_ever_after_an_error_of_another(
    work: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    # As if the other machine had other weights: its features must not be mixed with the first's.
    assert end(start_ranks(work, 2, tmp_path, {1: ["--grid", "5"]})) == [2, 2]
    error = (tmp_path / "rank1").read_text()
    assert "process 1 would write other features than process 0: grid [5, 5] instead of" in error
    assert "another process of this command stopped" in (tmp_path / "rank0").read_text()
    assert len(set(records(work)) - {PICTURES + 1}) == PICTURES / 2  # the first's share is kept
    assert end(start_ranks(work, 2, tmp_path, {})) == [0, 0]
    assert (work / "features.h5").read_bytes() == uninterrupted
    assert end(start_ranks(work, 2, tmp_path, {})) == [0, 0]
    assert "unchanged, skipped" in (tmp_path / "rank0").read_text()


def test_all_processes_use_the_same_int8_scale(work: Path, tmp_path: Path) -> None:
    options = ["--dtype", "int8", "--views", "2"]
    assert end(start_ranks(work, 2, tmp_path, dict.fromkeys(range(2), options))) == [0, 0]
    shared = (work / "features.h5").read_bytes()
    assert main([*arguments(work), *options, "--force"]) == 0
    assert (work / "features.h5").read_bytes() == shared
