"""The training loop: steps of both phases, a validation after every epoch, and the best weights.

Under torchrun every process takes the same steps on its share of each batch and has the same state
(see `decoder.training.distributed`); the first process writes all files.
"""

import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from decoder.data.batches import Batch
from decoder.data.layout import is_static
from decoder.data.readers import SplitReader, TrainingReader, on_device
from decoder.generation.generate import NotFinite
from decoder.model.capture import Graphs
from decoder.model.decoders import Decoder
from decoder.training import distributed
from decoder.training.epochs import Epochs
from decoder.training.figures import Figures
from decoder.training.graphs import FixedSteps
from decoder.training.initialisation import initialise
from decoder.training.objectives import Loss
from decoder.training.options import TrainOptions, cross_entropy_epochs
from decoder.training.phases import CrossEntropyPhase, Phase, ReinforcePhase
from decoder.training.state import TrainingState
from decoder.training.transfer import Trained, transfer
from decoder.training.validation import Validation
from evaluation.validation import Validator
from features.distributed import rank, world_size
from features.errors import UserError
from features.progress import is_quiet
from pipeline.vocabulary import SPECIAL, Vocabulary
from pipeline.work import RunFolder

log = logging.getLogger(__name__)

# REINFORCE learns from differences in reward; after this many steps without one it is reported.
FLAT_STEPS = 20
_FLAT = 1e-6  # on the scale of the reward, 0 to 10; a mean of equal numbers is rounded


class Stopped(Exception):
    """The run was stopped by Ctrl-C or SIGTERM, and its state is saved."""


class Trainer:
    """Trains a decoder in both phases and keeps its run's folder.

    Args:
        options: all options of the run.
        run: the folder to write to.
        config: what identifies the run; a state is continued only under an equal one.
        model: the decoder, on its device.
        vocabulary: of the captions.
        training: the training batches.
        images: the validation images.
        validator: scores their captions; in the first process only.
        trained: the captioner to start from, if any.
    """

    def __init__(
        self,
        options: TrainOptions,
        run: RunFolder,
        config: dict[str, Any],
        model: Decoder,
        vocabulary: Vocabulary,
        training: TrainingReader,
        images: SplitReader,
        validator: Validator | None,
        trained: Trained | None = None,
    ) -> None:
        self.options = options
        self.model = model
        self.device = next(model.parameters()).device
        self.vocabulary = vocabulary
        self.training = training
        self.trained = trained
        batches = training.batches_per_epoch
        xe = cross_entropy_epochs(options.xe.epochs, batches, trained is not None)
        rl = options.rl.epochs
        self.phases: tuple[Phase, ...] = (
            CrossEntropyPhase(options.xe, xe, xe * batches),
            ReinforcePhase(options.rl, rl, rl * batches, training.images, vocabulary),
        )
        self.state = TrainingState(run, config, model)
        graphs = Graphs(self.device, not options.no_graphs)
        self.fixed: FixedSteps | None = None
        if is_static(self.device):
            self.fixed = FixedSteps(
                self.state,
                graphs,
                options.batch_size,
                map(len, training.examples()),
                vocabulary.max_length + 1,
                options.precision,
                options.clip,
            )
        self.validation = Validation(
            self.state, images, validator, vocabulary, options.beam, options.length_penalty, graphs
        )
        names = [phase.name for phase in self.phases]
        self.epochs = Epochs(self.state, self.validation, frozenset(names[:-1]))
        self._unread: deque[Figures] = deque()
        self._stop_requested = self._stopping = False

    def initialise(self) -> None:
        """Fit the weights of a new model to the training set, unless the options say random.

        If it starts from a trained captioner, it gets that one's weights instead.
        """
        if self.trained is not None:
            kept = transfer(self.trained, self.model, self.vocabulary)
            if rank() == 0:
                words = len(self.vocabulary) - len(SPECIAL)
                print(f"train: {kept:,} of {words:,} words are known to {self.trained.name}")
        elif self.options.initial == "data":
            torch.manual_seed(self.options.seed)
            initialise(self.model, self.training)
        distributed.take_from_first(self.state.optimizer.parameters)
        self.state.start_from_weights()

    def train(self) -> None:
        """Run the rest of both phases.

        Raises:
            Stopped: on SIGINT or SIGTERM, after the state was saved.
            UserError: the loss is not finite, or the disk is full.
        """
        current = [phase.name for phase in self.phases].index(self.state.progress.phase)
        try:
            with _signals_call(self._request_stop):
                for phase in self.phases[current:]:
                    if phase.name != self.state.progress.phase:
                        self.state.start_phase(phase.name)
                    self._run_phase(phase)
        except UserError:
            self.epochs.complete()  # or an epoch before the error would never be recorded
            raise
        finally:
            self.validation.close()

    def _run_phase(self, phase: Phase) -> None:
        progress = self.state.progress
        epochs, patience = phase.epochs, phase.options.patience
        shown = {
            "desc": phase.title,
            "unit": "batch",
            "disable": True if rank() or is_quiet() else None,
        }
        with tqdm(total=phase.steps, initial=progress.step, **shown) as bar:
            while progress.epoch < epochs:
                if 0 < patience <= progress.epochs_without_gain:
                    log.info("%s: stopped early, no gain for %d epochs", phase.title, patience)
                    break
                started = time.perf_counter()
                batches = self.training.epoch(phase.name, progress.epoch, progress.batch)
                for batch in on_device(batches, self.device):
                    self.step(phase, batch)
                    self.validation.begin()  # after the first step: Java takes a core
                    bar.set_postfix_str(self.running_means(phase), refresh=False)
                    bar.update()
                    now = time.perf_counter()  # includes waiting for the features
                    progress.seconds, started = progress.seconds + now - started, now
                    self._save_if_due()
                self._finish_epoch(phase, bar)

    def step(self, phase: Phase, batch: Batch) -> None:
        """Take one step; on a GPU its figures are read after the next one has been started.

        Raises:
            UserError: the loss or its gradient is not finite, in this step or one whose figures
                were still to be read; the weights are not changed.
        """
        state, options = self.state, self.options
        step = state.progress.step + len(self._unread)
        own_rank = [rank()] if rank() else []  # so that processes draw different random numbers
        torch.manual_seed(_mix(options.seed, self.phases.index(phase), step, *own_rank))
        result, stops = distributed.sum_over_processes(
            self._with_gradients(phase, batch, step),
            state.optimizer.parameters,
            self._stop_requested,
        )
        rate, decay = self._learning_rate(phase, step), state.decay(options.average, step)
        if self.fixed is not None:
            norm = self.fixed.update(result.loss, rate, decay)
        else:
            norm = state.update(result.loss, options.clip, rate, 1 - decay)
        self._unread.append(Figures(phase, batch, result, norm, stops))
        self.read_figures(late=0 if self.fixed is None else 1)

    def _with_gradients(self, phase: Phase, batch: Batch, step: int) -> Loss:
        """Set the gradients of this process's share of a batch, and return its loss."""
        if self.fixed is not None:
            return self.fixed.gradients(phase, batch, step)
        result = self._loss(phase, batch)
        if batch.idle:
            result = result.uncounted()
        self.state.optimizer.zero_grad()
        distributed.share(result).backward()
        return result

    def _loss(self, phase: Phase, batch: Batch) -> Loss:
        """Return the loss of the phase's objective for one batch."""
        lower = self.options.precision == "bfloat16"
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
                return phase.loss(self.model, batch, self.state.progress.step)
        except NotFinite as error:
            raise self.state.non_finite_error(
                str(error), batch.image_ids, batch.features
            ) from error

    def read_figures(self, late: int = 0) -> None:
        """Count the steps whose figures have not been read, except the `late` latest ones.

        Raises:
            UserError: a loss or its gradient is not finite.
        """
        state, progress = self.state, self.state.progress
        while len(self._unread) > late:
            figures = self._unread.popleft()
            loss, norm, captions, stops, *reward_metrics = figures.read()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._unread.clear()  # these steps changed nothing
                state.failed.zero_()
                what = f"the loss ({loss}) or its gradient (norm {norm}) is not finite"
                raise state.non_finite_error(what, figures.image_ids, figures.features)
            self._stopping = bool(stops)
            progress.step += 1
            progress.batch += 1
            progress.captions += int(captions)
            progress.loss += loss
            if reward_metrics:
                reward, advantage = reward_metrics
                progress.reward += reward
                self._report_flat_reward(advantage, figures.phase.steps)

    def _learning_rate(self, phase: Phase, step: int) -> float:
        return learning_rate(phase.options.learning_rate, step, phase.steps, self.options.warmup)

    def _report_flat_reward(self, advantage: float, steps: int) -> None:
        """Warn, once in a row of such steps, that REINFORCE has nothing to learn from."""
        progress = self.state.progress
        progress.flat_steps = progress.flat_steps + 1 if advantage < _FLAT else 0
        if progress.flat_steps == min(FLAT_STEPS, steps):
            log.warning(
                "the reward does not vary: in %d consecutive steps every sample had the reward of "
                "its baseline (mean reward %.3f), so there is no gradient; draw more samples at a "
                "higher temperature (--rl.samples, --rl.temperature), train longer by "
                "cross-entropy, or leave the phase out (--rl.epochs 0). With one training image "
                "CIDEr-D is always 0",
                progress.flat_steps,
                progress.reward / progress.batch,
            )

    def running_means(self, phase: Phase) -> str:
        """Return the means over the epoch so far, for the progress bar."""
        progress = self.state.progress
        batches = max(progress.batch, 1)  # no figure of a first step may have been read
        text = f"loss {progress.loss / batches:.3f}"
        if phase.has_reward:
            text += f", reward {progress.reward / batches:.3f}"
        return text

    def _finish_epoch(self, phase: Phase, bar: tqdm) -> None:
        """Validate, and record the epoch; its scores may follow while the next one trains."""
        state, progress = self.state, self.state.progress
        batches = self.training.batches_per_epoch
        self.read_figures()
        if not self.epochs.complete():
            state.save()  # validation takes a while and may be killed
        scores = self.validation.run(self._save_if_due)
        line = {
            "phase": phase.name,
            "epoch": progress.epoch + 1,
            "loss": progress.loss / batches,
            "reward": progress.reward / batches if phase.has_reward else None,
            "learning_rate": self._learning_rate(phase, progress.step - 1),
            "seconds": round(progress.seconds, 2),
            "captions_per_second": round(progress.captions / max(progress.seconds, 1e-9), 1),
        }
        progress.finish_epoch()
        self.epochs.add(phase, line, scores, bar)

    def _save_if_due(self) -> None:
        """Save the state if --save-minutes have passed or an epoch's scores have arrived.

        Raises:
            Stopped: this process or, after a step, any of them was asked to stop.
        """
        stops = self._stopping if world_size() > 1 else self._stop_requested
        due = self.state.minutes_since_saved() >= self.options.save_minutes
        if due or stops or self.epochs.has_scores:
            self.read_figures()
            if not self.epochs.complete():
                self.state.save()
        if stops:
            raise Stopped

    def _request_stop(self) -> None:
        log.info("stopping after this step")
        self._stop_requested = True


@contextmanager
def _signals_call(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` on SIGINT and SIGTERM within this context."""
    before = {
        number: signal.signal(number, lambda *_: action())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learning_rate(peak: float, step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step: it rises to `peak`, then falls linearly to 0.

    Args:
        peak: largest rate.
        step: from 0.
        steps: of the phase.
        warmup: share of the steps over which the rate rises.
    """
    rising = warmup * steps
    return peak * min((step + 1) / (rising + 1), (steps - step) / max(steps - rising, 1))


def _mix(*numbers: int) -> int:
    """Combine numbers into one seed, so that (1, 2) and (2, 1) differ."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number) % 2**63
    return mixed
