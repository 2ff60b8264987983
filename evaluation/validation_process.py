"""Scores of validation captions from a process of its own, so that training can go on meanwhile.

Scoring is Python, which one thread runs at a time: a thread that scores would hold up every step of
a GPU. The process reads one task a line, in JSON, and answers each when it is done. It imports no
torch, so it starts in a fraction of a second.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from evaluation.toolkit import Captions
from evaluation.validation import APPROXIMATE, OFFICIAL, Validator
from features.child_process import command_of
from features.errors import UserError

log = logging.getLogger(__name__)

Pairs = Sequence[tuple[int, str]]
"""A caption of each image id."""


class ValidatorProcess(Validator):
    """A `Validator` whose work a process does; if that ends early, its work is done here."""

    beside = True

    def __init__(self, references: Captions, time_limit: float = 120.0) -> None:
        """Score against `references`; see `Validator`."""
        super().__init__(references, time_limit)
        self._process: Future[subprocess.Popen[str]] | None = None
        self._official = True
        self._here = self._closed = False

    def begin(self) -> None:
        """Start the process, which tokenizes the references."""
        if self._here:
            super().begin()
        elif self._process is None:  # in a thread, for they are large
            self._process = ThreadPoolExecutor(1).submit(self._start)

    @property
    def tokenizer(self) -> str:
        """The tokenizer of the last scores."""
        if self._here:
            return super().tokenizer
        return OFFICIAL if self._official else APPROXIMATE

    def score(
        self, candidates: Mapping[int, str], greedy: Mapping[int, str] | None = None
    ) -> dict[str, float]:
        """Return scores as `Validator.score` does.

        Raises:
            OSError: `close` was called meanwhile.
            UserError: as `Validator.score` does.
        """
        if not self._here:
            try:
                return self._ask(candidates, greedy)
            except OSError as error:
                if self._closed:
                    raise
                log.warning(
                    "validation captions are scored by the training's own process from now on: %s",
                    error,
                )
                self._here = True
        return super().score(candidates, greedy)

    def close(self) -> None:
        """End the process, and what it is doing."""
        self._closed = True
        if self._process is not None:
            with suppress(OSError):
                _end(self._process.result())

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command_of(__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            _send(process, {"references": list(self._captions.items()), "limit": self._time_limit})
        except OSError:
            _end(process)
            raise
        return process

    def _ask(
        self, candidates: Mapping[int, str], greedy: Mapping[int, str] | None
    ) -> dict[str, float]:
        self.begin()
        assert self._process is not None
        process = self._process.result()
        assert process.stdout is not None
        others = None if greedy is None else list(greedy.items())
        _send(process, {"candidates": list(candidates.items()), "greedy": others})
        line = process.stdout.readline()
        if not line.endswith("\n"):
            raise BrokenPipeError(f"their process ended with status {process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        self._official = answer["official"]
        scores: dict[str, float] = answer["scores"]
        return scores


def _send(process: "subprocess.Popen[str]", task: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()


def _end(process: "subprocess.Popen[str]") -> None:
    with suppress(OSError), process:  # which closes the pipes: what was not sent is not wanted
        process.kill()


def serve() -> None:
    """Score captions until the other process closes the connection or ends."""
    logging.basicConfig(format="%(message)s")
    tasks = map(json.loads, sys.stdin)
    if (given := next(tasks, None)) is None:
        return
    logging.disable()  # the other process has already warned of what the references lack
    validator = Validator(dict(given["references"]), given["limit"])
    logging.disable(logging.NOTSET)
    validator.begin()
    with suppress(BrokenPipeError):
        for task in tasks:
            # Without a buffer, which Python would try to write again at its end.
            os.write(sys.stdout.fileno(), f"{json.dumps(_answer(validator, **task))}\n".encode())


def _answer(validator: Validator, candidates: Pairs, greedy: Pairs | None) -> dict[str, Any]:
    try:
        scores = validator.score(dict(candidates), None if greedy is None else dict(greedy))
    except UserError as error:
        return {"error": str(error)}
    return {"scores": scores, "official": validator.tokenizer == OFFICIAL}
