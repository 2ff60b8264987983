"""Stage `doctor`: check this machine and a work directory, and advise what to fix."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.command import run
from pipeline.doctor import machine
from pipeline.doctor.results import CheckResult, problem
from pipeline.options import DoctorOptions
from pipeline.work import WorkFolder


def diagnose(options: DoctorOptions) -> int:
    """Check this machine and a work directory, and list what to do; exit status 2 for a problem."""
    advice: dict[str, list[str]] = {"problem": [], "warning": []}
    for result in _check(options.work):
        print(f"{result.level:8} {result.text}")
        if result.level in advice and result.advice not in advice[result.level]:
            advice[result.level].append(result.advice)
    steps = [*advice["problem"], *advice["warning"]]
    if not steps:
        print("doctor: everything works")
    for number, step in enumerate(steps, 1):
        print(f"{'what to do:' if number == 1 else '':12}{number}. {step}")
    return 2 if advice["problem"] else 0


def _check(work: Path | None) -> Iterator[CheckResult]:
    yield from machine.check_machine(work if work and work.is_dir() else Path())
    if work is not None:
        try:  # imported here: with a broken library, the checks of the machine must still run
            from pipeline.doctor import workdir
        except (ImportError, OSError) as error:
            yield problem(f"{work} cannot be checked: {error}", "fix the problems above first")
            return
        try:
            yield from workdir.check_work_directory(WorkFolder(work))
        except OSError as error:  # a folder that cannot be searched, a disk that fails
            yield problem(f"{work} cannot be checked: {error}", workdir.MAKE_READABLE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run(diagnose, DoctorOptions, "pipeline.doctor", argv)


if __name__ == "__main__":
    sys.exit(main())
