"""What a finished epoch leaves: its line of metrics, its scalars, and the best weights."""

import sys
from concurrent.futures import Future
from typing import Any, NamedTuple

from tqdm import tqdm

from decoder.runs import checkpoints
from decoder.training import events
from decoder.training.phases import TITLES, Phase
from decoder.training.state import TrainingState
from decoder.training.validation import Scores, Validation
from evaluation.validation import OFFICIAL
from features.distributed import broadcast, rank
from features.progress import is_quiet


class _Epoch(NamedTuple):
    phase: Phase
    line: dict[str, Any]
    scores: Future[Scores]
    bar: tqdm


class Epochs:
    """Keeps the record of finished epochs; the scores of the last one may still be computed.

    Until they are there, training goes on, but no state may be saved: it would be of a later epoch
    and lack these scores. The one saved before has all that is needed to compute them again.

    Args:
        state: the training.
        validation: has the weights that were validated last.
        starts_next: names of the phases whose best weights the next phase starts from.
    """

    def __init__(
        self, state: TrainingState, validation: Validation, starts_next: frozenset[str]
    ) -> None:
        self._state = state
        self._validation = validation
        self._starts_next = starts_next
        self._last: _Epoch | None = None

    def add(self, phase: Phase, line: dict[str, Any], scores: Future[Scores], bar: tqdm) -> None:
        """Add an epoch; wait for its scores only if what comes next may depend on them.

        Args:
            phase: of the epoch.
            line: of metrics, without the scores.
            scores: which may follow later.
            bar: above which the line is shown.

        Raises:
            UserError: as `complete` does.
        """
        assert self._last is None, "the record of the epoch before must be complete"
        self._last = _Epoch(phase, line, scores, bar)
        progress = self._state.progress
        ends = progress.epoch == phase.epochs
        may_stop = 0 < phase.options.patience <= progress.epochs_without_gain + 1
        if self.has_scores or ends or may_stop:
            self.complete()

    @property
    def has_scores(self) -> bool:
        """Whether the scores of an epoch have arrived, so that `complete` would not wait."""
        return self._last is not None and self._last.scores.done()

    def complete(self) -> bool:
        """Wait for scores that are not there yet, write down what follows, and save the state.

        Returns:
            Whether there was an epoch without scores, so that the state is saved.

        Raises:
            UserError: the captions cannot be scored, or the disk is full.
        """
        if self._last is None:
            return False
        (phase, line, waiting, bar), self._last = self._last, None
        scores = waiting.result()
        state, progress = self._state, self._state.progress
        line = {**line, "tokenizer": scores.tokenizer, "val": scores.figures}
        progress.metrics.append(line)
        with state.naming_last_good():
            self._keep_if_best(phase, scores.figures["CIDEr"])
            if rank() == 0:
                events.write(state.run.tensorboard, len(progress.metrics), _scalars(line))
        state.save()  # last: after a kill before this, all of the above is repeated
        if rank() == 0 and not is_quiet():
            bar.write(_as_text(line), file=sys.stderr)
        broadcast(None)  # the other processes wait until the best weights are written
        return True

    def _keep_if_best(self, phase: Phase, cider: float) -> None:
        """Save the weights of the scores if no earlier ones had a better validation CIDEr."""
        progress, run = self._state.progress, self._state.run
        assert self._validation.averaged is not None
        weights = self._validation.averaged.state_dict()
        gain = cider > progress.best_of_phase
        progress.epochs_without_gain = 0 if gain else progress.epochs_without_gain + 1
        # At equal scores the later weights: with a single validation image CIDEr is always 0.
        if cider >= progress.best_of_phase:
            progress.best_of_phase = cider
            if phase.name in self._starts_next and rank() == 0:
                checkpoints.save(run.best_xe, weights)
        if cider >= progress.best:
            progress.best = cider
            if rank() == 0:
                checkpoints.save(run.best, weights)


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a line of metrics for TensorBoard."""
    scalars = {name: line[name] for name in ("loss", "reward", "learning_rate")}
    scalars |= {f"val/{name}": value for name, value in line["val"].items()}
    return {f"{line['phase']}/{k}": v for k, v in scalars.items() if v is not None}


def _as_text(line: dict[str, Any]) -> str:
    """Return a line of metrics for the terminal."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in line["val"].items())
    reward = "" if line["reward"] is None else f", reward {line['reward']:.3f}"
    tokenizer = line["tokenizer"]
    note = "" if tokenizer == OFFICIAL else f" ({tokenizer}, not the official ones)"
    return (
        f"{TITLES[line['phase']]} epoch {line['epoch']}: loss {line['loss']:.4f}{reward}, "
        f"{line['captions_per_second']:.0f} captions/s; validation {scores}{note}"
    )
