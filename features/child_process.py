"""Processes that run one function of this project and start in a fraction of a second."""

import json
import sys
from typing import Any

# Nothing of the environment or the current folder decides what the process imports, and Ctrl-C on a
# terminal, which every process gets, is left to the one that started it.
_SERVE = """
import importlib, json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
arguments = json.loads(sys.argv[1])
sys.path[:] = arguments.pop("path")
importlib.import_module(arguments.pop("module")).serve(**arguments)
"""


def command_of(module: str, **arguments: Any) -> list[str]:
    """Return the command that calls `serve(**arguments)` of a module in a new process.

    Args:
        module: its full name; what it imports decides how long the start takes.
        arguments: values that JSON can hold.
    """
    given = json.dumps({"path": sys.path, "module": module, **arguments})
    return [sys.executable, "-I", "-c", _SERVE, given]
