"""Fuzz every reader of files: `python -m tests.fuzz.run --minutes 5`.

Each reader runs in a new process with limited memory and time, so that crashes and hangs are
noticed too. Prints the number of files tried, read and failed, and keeps the failing ones.
"""

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

from features.errors import UserError
from features.images import PictureError
from pipeline import extract, prepare
from tests.fuzz.readers import Reader, finish, readers

SECONDS_PER_CASE = 10
EXTRA_BYTES = 4 * 2**30  # the largest picture allowed takes 1.3 GB
_PATIENCE = 10  # times as long as its processor time may a reader take beside other work
KEEP = Path("work/fuzz")
LITE0 = "efficientnet_lite0"


def finished_work(work: Path) -> Path:
    """Make a small work directory with the run "small", captioned and scored."""
    shapes = ["--dataset", "shapes", "--images", "20", "--min-count", "2", "--work", str(work)]
    if prepare.main(shapes) or extract.main(["--work", str(work), "--backbone", LITE0]):
        raise SystemExit("could not create the work directory; the messages above say why")
    finish(work)
    return work


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS_PER_CASE} seconds")


def try_cases(reader: Reader, seconds: float, seed: int, counts: list[int]) -> None:
    """Damage and read files for so many `seconds` of processor time.

    Add to `counts` the numbers of files [tried, read, failed].
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints each damage there
    signal.signal(signal.SIGALRM, _too_slow)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES,) * 2)
    random, end = Random(seed), time.process_time() + seconds
    kept = KEEP / reader.name.replace("/", " ")
    kept.mkdir(parents=True, exist_ok=True)
    case, seen = kept / "last", set()
    while time.process_time() < end:
        case.write_bytes(reader.damage(random.choice(reader.examples), random))
        counts[0] += 1
        signal.alarm(SECONDS_PER_CASE)
        try:
            reader.read(case)
            counts[1] += 1
        except (UserError, PictureError):
            pass
        except Exception as error:
            counts[2] += 1
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if "site-packages" not in f.filename]
            key = (type(error).__name__, ours[-1].filename, ours[-1].lineno)
            if key not in seen:
                seen.add(key)
                file = kept / f"{type(error).__name__}-{len(seen)}"
                file.write_bytes(case.read_bytes())
                print(f"{reader.name}: {file}\n  {error!r}\n  in {key[1]}:{key[2]}", flush=True)
        finally:
            signal.alarm(0)


def main() -> int:
    """Fuzz the readers one after another; return 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5, help="processor time of all readers together"
    )
    parser.add_argument("--seed", type=int, default=time.time_ns())
    parser.add_argument(
        "--only", nargs="+", default=[""], help="try only readers whose name has one of these"
    )
    parser.add_argument("--work", type=Path, help="work directory; created here if it has no runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary, "work")
        if not (work / "runs").exists():
            finished_work(work)
        folder = Path(temporary, "names")
        folder.mkdir()
        chosen = [r for r in readers(work, folder) if any(only in r.name for only in options.only)]
        seconds = options.minutes * 60 / len(chosen)
        context = multiprocessing.get_context("fork")
        total, bad = 0, 0
        print(f"{'reader':45}{'tried':>9}{'read':>9}{'failed':>8}")
        for reader in chosen:
            name = reader.name
            counts = context.Array("q", 3)
            arguments = (reader, seconds, options.seed, counts)
            process = context.Process(target=try_cases, args=arguments)
            process.start()
            process.join(_PATIENCE * seconds + 60)
            if process.is_alive():
                process.kill()
                process.join()
            tried, read, failed = counts
            if process.exitcode:
                failed += 1
                print(f"{name}: crashed or hung ({process.exitcode}) on {KEEP / name / 'last'}")
            print(f"{name:45}{tried:9,}{read:9,}{failed:8,}", flush=True)
            total, bad = total + tried, bad + failed
        print(f"{'all':45}{total:9,}{'':9}{bad:8,}  (seed {options.seed})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
