"""Stage `doctor`: whether this machine and a work directory are well, and what to do if not."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.command import run
from pipeline.doctor import machine
from pipeline.doctor.findings import Finding, problem
from pipeline.options import DoctorOptions
from pipeline.work import WorkFolder


def diagnose(options: DoctorOptions) -> int:
    """Check this machine and a work directory, and list what to do; exit status 2 for a problem."""
    advice: dict[str, list[str]] = {"problem": [], "warning": []}
    for finding in _findings(options.work):
        print(f"{finding.level:8} {finding.text}")
        if finding.level in advice and finding.advice not in advice[finding.level]:
            advice[finding.level].append(finding.advice)
    steps = [*advice["problem"], *advice["warning"]]
    if not steps:
        print("doctor: all is well")
    for number, step in enumerate(steps, 1):
        print(f"{'what to do:' if number == 1 else '':12}{number}. {step}")
    return 2 if advice["problem"] else 0


def _findings(work: Path | None) -> Iterator[Finding]:
    yield from machine.examine(work if work and work.is_dir() else Path())
    if work is not None:
        try:  # here, for a broken library must not keep the doctor away
            from pipeline.doctor import workdir
        except (ImportError, OSError) as error:
            yield problem(f"{work} cannot be checked: {error}", "mend the machine first")
            return
        yield from workdir.examine(WorkFolder(work))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run(diagnose, DoctorOptions, "pipeline.doctor", argv)


if __name__ == "__main__":
    sys.exit(main())
