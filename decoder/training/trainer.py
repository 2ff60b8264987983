"""The training loop: both phases, validation, and a state from which every step can be repeated.

Randomness is a function of the seed, the phase and the number of the step, and the order of the
images one of the seed, the phase and the epoch. So the state to save is the weights, the optimizer
and where the run stands; no generator's state is part of it.

Several processes (see `decoder.training.distributed`) take the same steps and have the same state;
the first of them writes all files.
"""

import copy
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from decoder.cider import all_words_encoded
from decoder.data.batches import Batch, Features
from decoder.data.readers import SplitReader, TrainingReader, on_device
from decoder.generation.constraints import constraints
from decoder.generation.generate import NotFinite, beam_search
from decoder.generation.options import GenerateOptions
from decoder.model.decoders import Decoder
from decoder.runs import checkpoints
from decoder.training import distributed, events
from decoder.training.adam import Adam
from decoder.training.config import NOT_THE_RUN, differences, with_former_options
from decoder.training.initialisation import initialise
from decoder.training.objectives import Loss, MixedReward, cross_entropy, reinforce
from decoder.training.options import CrossEntropyOptions, ReinforceOptions, TrainOptions
from decoder.training.state import PHASE_NAMES, PHASES, VALIDATION_BATCH, Progress, check_progress
from evaluation.diagnostics import diagnose
from evaluation.validation import OFFICIAL, Validator
from features.distributed import broadcast, rank, world_size
from features.errors import UserError, first_few
from features.files import write_atomically
from pipeline.captions import Image
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder

log = logging.getLogger(__name__)

# REINFORCE learns from differences in reward; after this many steps without one it is reported.
FLAT_STEPS = 20
_FLAT = 1e-6  # on the scale of the reward, 0 to 10; a mean of equal numbers is rounded


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C or SIGTERM) and its state is saved."""


class Trainer:
    """Trains a decoder in both phases and keeps its run's folder.

    Args:
        options: all options of the run.
        run: the folder to write to.
        config: what identifies the run; a state is continued only under an equal one.
        model: the decoder, on its device.
        vocabulary: of the captions.
        training: the training batches.
        validation: the images whose generated captions choose the best weights.
        validator: scores those captions; in the first process only.
    """

    def __init__(
        self,
        options: TrainOptions,
        run: RunFolder,
        config: dict[str, Any],
        model: Decoder,
        vocabulary: Vocabulary,
        training: TrainingReader,
        validation: SplitReader,
        validator: Validator | None,
    ) -> None:
        self.options = options
        self.run = run
        self.config = config
        self.model = model
        self.vocabulary = vocabulary
        self.training = training
        self.validation = validation
        self.validator = validator
        self.device = next(model.parameters()).device
        self.progress = Progress()
        self.optimizer = Adam(self.model.parameters())
        self.average = self._weights()
        self._reward: MixedReward | None = None
        # Validation captions are written as decoder.caption writes.
        self._forbidden = constraints(GenerateOptions(), vocabulary, vocabulary.max_length)
        self._stop_requested = self._stopping = False
        self._saved_at = time.monotonic()

    # The loop

    def train(self) -> None:
        """Run what is left of both phases.

        Raises:
            Stopped: on SIGINT or SIGTERM, after the state was saved.
            UserError: the loss became infinite or not a number, or the disk is full.
        """
        handlers = {
            s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            for phase in PHASES[PHASES.index(self.progress.phase) :]:
                if phase != self.progress.phase:
                    self._begin(phase)
                self._run_phase(phase)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _run_phase(self, phase: str) -> None:
        options: CrossEntropyOptions | ReinforceOptions = getattr(self.options, phase)
        progress = self.progress
        total = options.epochs * self.training.batches_per_epoch
        name = PHASE_NAMES[phase]
        shown = {"desc": name, "unit": "batch", "disable": True if rank() else None}
        with tqdm(total=total, initial=progress.step, **shown) as bar:
            while progress.epoch < options.epochs and not self._out_of_patience(options.patience):
                started = time.perf_counter()
                batches = self.training.epoch(phase, progress.epoch, progress.batch)
                for batch in on_device(batches, self.device):
                    self.step(phase, batch, total)
                    if self.validator is not None:
                        self.validator.begin()  # not before: Java takes a core
                    bar.set_postfix_str(self._running_means(), refresh=False)
                    bar.update()
                    now = time.perf_counter()  # so that waiting for the features counts too
                    progress.seconds, started = progress.seconds + now - started, now
                    self._save_if_due()
                self._finish_epoch(phase, total, bar)
        if progress.epoch < options.epochs:
            log.info("%s: stopped early, no gain for %d epochs", name, options.patience)

    def _out_of_patience(self, patience: int) -> bool:
        return 0 < patience <= self.progress.epochs_without_gain

    def step(self, phase: str, batch: Batch, total_steps: int) -> None:
        """Take one step of either phase, one of `total_steps`.

        Raises:
            UserError: the loss or its gradient is not finite; the weights are those of before.
        """
        options, progress = self.options, self.progress
        own = [rank()] if rank() else []  # or all would drop and draw the same
        torch.manual_seed(_mix(options.seed, PHASES.index(phase), progress.step, *own))
        result = self._loss(phase, batch, total_steps)
        self.optimizer.zero_grad()
        stop = self._stop_requested
        result, self._stopping = distributed.backward(result, self.model, batch.idle, stop)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        # All that a GPU has to tell in a step, at once, for the host waits for it.
        told = (result.loss, norm, *(v for v in (result.reward, result.advantage) if v is not None))
        loss, size, *earned = torch.stack(told).tolist()
        if not (math.isfinite(loss) and math.isfinite(size)):
            found = f"the loss ({loss}) or its gradient (norm {size})"
            raise self._not_finite(f"{found} is not finite", batch.image_ids, batch.features)
        self.optimizer.step(self._learning_rate(phase, progress.step, total_steps))
        decay = min(options.average, (1 + progress.step) / (10 + progress.step))
        with torch.no_grad():
            parameters = [parameter.detach() for parameter in self.model.parameters()]
            torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

        progress.step += 1
        progress.batch += 1
        progress.captions += result.captions
        progress.loss += loss
        if earned:
            progress.reward += earned[0]
            self._watch_reward(earned[1], total_steps)

    def _loss(self, phase: str, batch: Batch, total_steps: int) -> Loss:
        """Return the loss of the phase's objective for one batch."""
        options, model = self.options, self.model.train(phase == "xe")
        lower = options.precision == "bfloat16"
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
                if phase == "xe":
                    own_words = options.xe.scheduled_sampling * self.progress.step / total_steps
                    return cross_entropy(model, batch, options.xe.label_smoothing, own_words)
                longest = self.vocabulary.max_length
                return reinforce(model, batch, self.reward, options.rl, longest)
        except NotFinite as error:
            raise self._not_finite(str(error), batch.image_ids, batch.features) from error

    def _learning_rate(self, phase: str, step: int, total_steps: int) -> float:
        peak = getattr(self.options, phase).learning_rate
        return learning_rate(peak, step, total_steps, self.options.warmup)

    def _not_finite(self, found: str, image_ids: Tensor, features: Features) -> UserError:
        """Return the error of numbers that must not be used, found in work on these images."""
        progress, phase = self.progress, self.progress.phase
        finite_I = features.grid_IRC.isfinite().all((1, 2)) & features.pooled_IC.isfinite().all(1)
        broken = image_ids[~finite_I].tolist()
        advice = f"start anew (--force) with a lower --{phase}.learning-rate or --clip"
        if broken:
            advice = f"the features of {first_few(broken)} are not finite: extract them anew"
        return UserError(
            f"{found} at step {progress.step} of {PHASE_NAMES[phase]}, epoch {progress.epoch + 1}, "
            f"images {', '.join(map(str, image_ids.tolist()))}; {advice}; {self._last_state()}"
        )

    def _last_state(self) -> str:
        if not self.run.state.exists():
            return "no state was saved yet"
        return f"the last good state is whole, in {self.run.state}"

    @contextmanager
    def _naming_last_state(self) -> Iterator[None]:
        """Say with an error of writing, such as of a full disk, what is left."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{error}; {self._last_state()}; --resume continues there") from error

    def _watch_reward(self, advantage: float, total_steps: int) -> None:
        """Report, once in a row, that REINFORCE has had nothing to learn from."""
        progress = self.progress
        progress.flat_steps = progress.flat_steps + 1 if advantage < _FLAT else 0
        if progress.flat_steps == min(FLAT_STEPS, total_steps):
            log.warning(
                "the reward does not vary: in %d steps on end every sample earned what it was "
                "compared with (mean reward %.3f), so there is no gradient; sample more and "
                "hotter (--rl.samples, --rl.temperature), train longer by cross-entropy, or leave "
                "the phase out (--rl.epochs 0). With one training image CIDEr-D is always 0",
                progress.flat_steps,
                progress.reward / progress.batch,
            )

    def _finish_epoch(self, phase: str, total_steps: int, bar: tqdm) -> None:
        """Validate, keep the best weights, and write the epoch's line of metrics."""
        progress, batches = self.progress, self.training.batches_per_epoch
        self.save()  # validation takes its time, and may be what is killed
        scores, tokenizer = self.validate()
        line = {
            "phase": phase,
            "epoch": progress.epoch + 1,
            "loss": progress.loss / batches,
            "reward": progress.reward / batches if phase == "rl" else None,
            "learning_rate": self._learning_rate(phase, progress.step - 1, total_steps),
            "seconds": round(progress.seconds, 2),
            "captions_per_second": round(progress.captions / max(progress.seconds, 1e-9), 1),
            "tokenizer": tokenizer,
            "val": scores,
        }
        progress.metrics.append(line)
        with self._naming_last_state():
            self._keep_if_best(phase, scores["CIDEr"])
            if rank() == 0:
                self._write_events(line)
        progress.epoch += 1
        progress.batch = progress.captions = 0
        progress.loss = progress.reward = progress.seconds = 0.0
        progress.written = []
        self.save()  # last: killed before, all of the above is done again
        if rank() == 0:
            bar.write(_as_text(line), file=sys.stderr)
        broadcast(None)  # the best weights are written, for every process to read

    def _keep_if_best(self, phase: str, cider: float) -> None:
        """Save the averaged weights if none before had a better validation CIDEr."""
        progress = self.progress
        gain = cider > progress.best_of_phase
        progress.epochs_without_gain = 0 if gain else progress.epochs_without_gain + 1
        # At equal scores the later weights: with a single validation image CIDEr is always 0.
        if cider >= progress.best_of_phase:
            progress.best_of_phase = cider
            if phase == "xe" and rank() == 0:
                checkpoints.save(self.run.best_xe, self.average)
        if cider >= progress.best:
            progress.best = cider
            if rank() == 0:
                checkpoints.save(self.run.best, self.average)

    def _write_events(self, line: dict[str, Any]) -> None:
        """Write a line of metrics for TensorBoard."""
        scalars = {name: line[name] for name in ("loss", "reward", "learning_rate")}
        scalars |= {f"val/{name}": value for name, value in line["val"].items()}
        of_phase = {f"{line['phase']}/{k}": v for k, v in scalars.items() if v is not None}
        events.write(self.run.tensorboard, len(self.progress.metrics), of_phase)

    # Validation

    @property
    def widths(self) -> list[int]:
        """The beam widths at which validation captions are written."""
        return sorted({1, self.options.beam})

    def validate(self) -> tuple[dict[str, float], str]:
        """Score the captions that the averaged weights write for the validation images.

        Returns:
            The scores and the share of bad endings of the beam search's captions, and the greedy
            captions' CIDEr as "greedy_CIDEr"; and the tokenizer behind them.

        Raises:
            Stopped: on SIGINT or SIGTERM; the state has the captions that this process has written.
            UserError: the model's scores are not finite numbers.
        """
        written = self._write_all()
        found: tuple[dict[str, float], str] | None = None
        if self.validator is not None:
            by_width = dict(zip(self.widths, zip(*written, strict=True), strict=True))
            ids = [image.id for image in self.validation.images]
            captions = {w: dict(zip(ids, texts, strict=True)) for w, texts in by_width.items()}
            of_width = {width: self.validator.score(captions[width]) for width in self.widths}
            scores = dict(of_width[self.options.beam])
            scores["greedy_CIDEr"] = of_width[1]["CIDEr"]
            searched = captions[self.options.beam].values()
            scores["bad_endings"] = diagnose(searched)["bad_endings"]
            found = scores, self.validator.tokenizer
        shared = broadcast(found)
        assert shared is not None  # the first process has the validator
        return shared

    def _write_all(self) -> list[list[str]]:
        """Return the captions of all validation images; each process writes its share of them."""
        averaged, world = self.averaged_model(), world_size()
        if world > 1:  # each has other captions, and only the first saves a state
            self.progress.written = []
        written = self.progress.written
        done = -(-len(written) // VALIDATION_BATCH)
        size = min(VALIDATION_BATCH, -(-len(self.validation) // world))
        batches = self.validation.batches(size)
        shares: list[list[list[str]]] = []
        for images, features in islice(batches, done + rank(), None, world):
            shares.append(self.write_captions(averaged, images, features))
            if world == 1:
                written += shares[-1]
                self._save_if_due()
        if world == 1:
            return written
        return [captions for share in distributed.gather(shares) for captions in share]

    def averaged_model(self) -> Decoder:
        """Return a copy of the model with the averaged weights, in evaluation mode."""
        averaged = copy.deepcopy(self.model).eval()
        averaged.load_state_dict(self.average)
        return averaged

    @torch.inference_mode()
    def write_captions(
        self, model: Decoder, images: list[Image], features: Features
    ) -> list[list[str]]:
        """Return what `model` writes for each of the images, a caption for each of `widths`.

        Raises:
            UserError: the model's scores are not finite numbers.
        """
        longest, penalty = self.vocabulary.max_length, self.options.length_penalty
        forbidden = self._forbidden
        try:
            memory = model.encode(features.to(self.device))
            found = [
                beam_search(model, memory, width, longest, penalty, forbidden=forbidden)
                for width in self.widths
            ]
        except NotFinite as error:
            ids = torch.tensor([image.id for image in images])
            raise self._not_finite(f"{error}, in validation,", ids, features) from error
        return [
            [self.vocabulary.decode(tokens) for tokens in of_image]
            for of_image in zip(*(f.tokens_IKT[:, 0].tolist() for f in found), strict=True)
        ]

    # The reward, and what differs between the phases

    @property
    def reward(self) -> MixedReward:
        """The reward over all training references, prepared at its first use."""
        if self._reward is None:
            references = all_words_encoded(self.training.images, self.vocabulary)
            self._reward = MixedReward(references, self.options.rl.bleu_weight)
        return self._reward

    def _begin(self, phase: str) -> None:
        """Start a phase from the best weights of the one before."""
        old = self.progress
        if old.metrics:
            checkpoints.load_weights(self.model, self.run.best_xe)
        self.optimizer = Adam(self.model.parameters())
        self.average = self._weights()
        self.progress = Progress(phase=phase, best=old.best, metrics=old.metrics)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    # The state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that an exact resume needs: tensors, and a header for JSON."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizer.tensors.items()}
        return tensors, {"config": self.config, "progress": asdict(self.progress)}

    def save(self) -> None:
        """Write the state and metrics.jsonl, each atomically.

        Raises:
            UserError: a weight is not finite, or they cannot be written; the last state is whole.
        """
        tensors, header = self.state()
        broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if broken:
            raise UserError(
                f"{first_few(broken, 3)} is not finite after step {self.progress.step} of "
                f"{PHASE_NAMES[self.progress.phase]}; start anew (--force) with a lower "
                f"--{self.progress.phase}.learning-rate or --clip; {self._last_state()}"
            )
        if rank() == 0:
            with self._naming_last_state():
                checkpoints.save(self.run.state, tensors, header)
                self.write_metrics()
        self._saved_at = time.monotonic()

    def write_metrics(self) -> None:
        """Write metrics.jsonl, atomically: a line for each epoch so far."""
        lines = "".join(json.dumps(line) + "\n" for line in self.progress.metrics)
        write_atomically(self.run.metrics, lines)

    def initialise(self) -> None:
        """Fit the weights of a new model to the training set, if the options do not say random."""
        if self.options.initial == "data":
            torch.manual_seed(self.options.seed)
            initialise(self.model, self.training)
            self.average = self._weights()

    def restore(self) -> None:
        """Continue from the saved state.

        Raises:
            UserError: there is none, it is broken, or it belongs to other options or features.
        """
        tensors, header = checkpoints.load(self.run.state, self.device)
        try:
            saved = with_former_options(header["config"])
            changed = differences(saved, self.config, besides=NOT_THE_RUN)
            progress = Progress(**header["progress"])
            check_progress(progress)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.run.state} is not a run's state ({error!r}); start anew with --force"
            ) from error
        if changed:
            raise UserError(
                f"{self.run.state} was saved by a run with other {first_few(changed)}; repeat "
                "those to continue it, or start anew with --force"
            )
        try:
            checkpoints.restore(self.state()[0], tensors)
        except ValueError as error:
            raise UserError(
                f"{self.run.state} is not a run's state: {error}; start anew with --force"
            ) from error
        self.progress = progress
        if rank() == 0:
            self.write_metrics()  # killed between the two, the state was ahead of it by a line

    def where(self) -> str:
        """Return the phase, epoch and batch that come next, as text."""
        progress = self.progress
        return (
            f"{PHASE_NAMES[progress.phase]}, epoch {progress.epoch + 1}, batch {progress.batch + 1}"
        )

    def _save_if_due(self) -> None:
        minutes = (time.monotonic() - self._saved_at) / 60
        stops = self._stopping if world_size() > 1 else self._stop_requested
        if stops or minutes >= self.options.save_minutes:
            self.save()
        if stops:
            raise Stopped

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        log.info("stopping after this step")
        self._stop_requested = True

    def _running_means(self) -> str:
        progress = self.progress
        text = f"loss {progress.loss / progress.batch:.3f}"
        if progress.phase == "rl":
            text += f", reward {progress.reward / progress.batch:.3f}"
        return text


def learning_rate(peak: float, step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step: up to `peak` over the warm-up, then linearly to 0."""
    rising = warmup * steps
    return peak * min((step + 1) / (rising + 1), (steps - step) / max(steps - rising, 1))


def _mix(*numbers: int) -> int:
    """Return one seed for several numbers, so that (1, 2) and (2, 1) differ."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number) % 2**63
    return mixed


def _as_text(line: dict[str, Any]) -> str:
    scores = ", ".join(f"{name} {value:.3f}" for name, value in line["val"].items())
    reward = "" if line["reward"] is None else f", reward {line['reward']:.3f}"
    return (
        f"{PHASE_NAMES[line['phase']]} epoch {line['epoch']}: loss {line['loss']:.4f}{reward}, "
        f"{line['captions_per_second']:.0f} captions/s; validation {scores}"
        + (
            ""
            if line["tokenizer"] == OFFICIAL
            else f" ({line['tokenizer']}, not the official ones)"
        )
    )
