"""The training loop: both phases, validation, and a state from which every step can be repeated.

Randomness is a function of the seed, the phase and the number of the step, and the order of the
images one of the seed, the phase and the epoch. So the state to save is the weights, the optimizer
and where the run stands; no generator's state is part of it.
"""

import json
import logging
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from decoder import checkpoints
from decoder.batches import Batch, SplitReader, TrainingReader
from decoder.generate import beam_search
from decoder.models import Decoder
from decoder.objectives import Loss, MixedReward, cross_entropy, reinforce
from decoder.options import CrossEntropyOptions, ReinforceOptions, TrainOptions
from decoder.runs import RunFolder
from evaluation.diagnostics import diagnose
from evaluation.validation import Validator
from features.errors import UserError, first_few
from pipeline.captions import Image
from pipeline.command import write_atomically
from pipeline.vocabulary import EOS, Vocabulary

log = logging.getLogger(__name__)

PHASES = ("xe", "rl")
PHASE_NAMES = {"xe": "cross-entropy", "rl": "REINFORCE"}
VALIDATION_BATCH = 50


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C or SIGTERM) and its state is saved."""


@dataclass
class Progress:
    """Where a run stands; saved as JSON beside the tensors."""

    phase: str = "xe"
    epoch: int = 0
    batch: int = 0
    step: int = 0
    """Steps taken in this phase."""
    best: float = -1.0
    """Best validation CIDEr so far."""
    best_of_phase: float = -1.0
    """Best validation CIDEr of this phase."""
    epochs_without_gain: int = 0
    """Epochs of this phase since its best."""
    loss: float = 0.0
    """Sum over the epoch so far, as are the next three."""
    reward: float = 0.0
    captions: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""


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
        validator: scores those captions.
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
        validator: Validator,
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
        self.optimizer = self._new_optimizer()
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._reward: MixedReward | None = None
        self._stop_requested = False
        self._saved_at = time.monotonic()

    # The loop

    def train(self) -> None:
        """Run what is left of both phases.

        Raises:
            Stopped: on SIGINT or SIGTERM, after the state was saved.
            UserError: the loss became infinite or not a number.
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
        with tqdm(total=total, initial=progress.step, desc=name, unit="batch", disable=None) as bar:
            while progress.epoch < options.epochs and not self._out_of_patience(options.patience):
                started = time.perf_counter()
                for batch in self.training.epoch(phase, progress.epoch, progress.batch):
                    self._step(phase, batch.to(self.device), total)
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

    def _step(self, phase: str, batch: Batch, total_steps: int) -> None:
        """Take one step of either phase."""
        options, progress, model = self.options, self.progress, self.model
        torch.manual_seed(_mix(options.seed, PHASES.index(phase), progress.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(phase, progress.step, total_steps)
        if phase == "xe":
            model.train()
            own_words = options.xe.scheduled_sampling * progress.step / total_steps
            result = cross_entropy(model, batch, options.xe.label_smoothing, own_words)
        else:
            model.eval()
            longest = self.vocabulary.max_length
            result = reinforce(model, batch, self.reward, options.rl, longest)
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        self._check_finite(result, norm, batch)
        self.optimizer.step()
        decay = min(options.average, (1 + progress.step) / (10 + progress.step))
        with torch.no_grad():
            parameters = [parameter.detach() for parameter in model.parameters()]
            torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

        progress.step += 1
        progress.batch += 1
        progress.captions += result.captions
        progress.loss += result.loss.item()
        progress.reward += 0.0 if result.reward is None else result.reward.item()

    def _learning_rate(self, phase: str, step: int, total_steps: int) -> float:
        peak = getattr(self.options, phase).learning_rate
        return learning_rate(peak, step, total_steps, self.options.warmup)

    def _check_finite(self, result: Loss, norm: Tensor, batch: Batch) -> None:
        if result.loss.isfinite() and norm.isfinite():
            return
        progress = self.progress
        raise UserError(
            f"the loss ({result.loss.item()}) or its gradient (norm {norm.item()}) is not finite "
            f"at step {progress.step} of {PHASE_NAMES[progress.phase]}, epoch {progress.epoch}, "
            f"images {first_few(batch.image_ids.tolist())}; the last good state, if any, is "
            f"{self.run.state}; lower --{progress.phase}.learning-rate or --clip"
        )

    def _finish_epoch(self, phase: str, total_steps: int, bar: tqdm) -> None:
        """Validate, keep the best weights, and write the epoch's line of metrics."""
        progress, batches = self.progress, self.training.batches_per_epoch
        self.save()  # validation takes its time, and may be what is killed
        scores = self.validate()
        line = {
            "phase": phase,
            "epoch": progress.epoch + 1,
            "loss": progress.loss / batches,
            "reward": progress.reward / batches if phase == "rl" else None,
            "learning_rate": self._learning_rate(phase, progress.step - 1, total_steps),
            "seconds": round(progress.seconds, 2),
            "captions_per_second": round(progress.captions / max(progress.seconds, 1e-9), 1),
            "val": scores,
        }
        progress.metrics.append(line)
        cider = scores["CIDEr"]
        progress.epochs_without_gain += 1
        if cider > progress.best_of_phase:
            progress.epochs_without_gain = 0
        # At equal scores the later weights: with a single validation image CIDEr is always 0.
        if cider >= progress.best_of_phase:
            progress.best_of_phase = cider
            if phase == "xe":
                checkpoints.save(self.run.best_xe, self.average)
        if cider >= progress.best:
            progress.best = cider
            checkpoints.save(self.run.best, self.average)
        progress.epoch += 1
        progress.batch = progress.captions = 0
        progress.loss = progress.reward = progress.seconds = 0.0
        self.save()
        self._log_to_tensorboard(line)
        bar.write(_as_text(line), file=sys.stderr)

    def _log_to_tensorboard(self, line: dict[str, Any]) -> None:
        # Imported here: it takes longer than everything else at the start of a run.
        from torch.utils.tensorboard.writer import SummaryWriter

        scalars = {name: line[name] for name in ("loss", "reward", "learning_rate")}
        scalars |= {f"val/{name}": value for name, value in line["val"].items()}
        epoch = len(self.progress.metrics)
        with SummaryWriter(str(self.run.tensorboard), purge_step=epoch) as writer:
            for name, value in scalars.items():
                if value is not None:
                    writer.add_scalar(f"{line['phase']}/{name}", value, epoch)

    # Validation

    def validate(self) -> dict[str, float]:
        """Score the captions that the averaged weights write for the validation images.

        Returns:
            The scores and the share of bad endings of the beam search's captions, and the greedy
            captions' CIDEr as "greedy_CIDEr".
        """
        live = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        widths = sorted({1, self.options.beam})
        captions: dict[int, dict[int, str]] = {width: {} for width in widths}
        with torch.inference_mode():
            for images, features in self.validation.batches(VALIDATION_BATCH):
                memory = self.model.encode(features.to(self.device))
                for width in widths:
                    longest = self.vocabulary.max_length
                    tokens_IT = beam_search(self.model, memory, width, longest).tokens_IKT[:, 0]
                    for image, tokens in zip(images, tokens_IT.tolist(), strict=True):
                        captions[width][image.id] = self.vocabulary.decode(tokens)
        self.model.load_state_dict(live)
        found = {width: self.validator.score(captions[width]) for width in widths}
        scores = dict(found[self.options.beam])
        scores["greedy_CIDEr"] = found[1]["CIDEr"]
        scores["bad_endings"] = diagnose(captions[self.options.beam].values())["bad_endings"]
        return scores

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
        if self.run.best_xe.exists() and old.metrics:
            checkpoints.load_weights(self.model, self.run.best_xe)
        self.optimizer = self._new_optimizer()
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.progress = Progress(phase=phase, best=old.best, metrics=old.metrics)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        # The learning rate is set at every step.
        return torch.optim.Adam(self.model.parameters(), lr=0.0, betas=(0.9, 0.98), fused=True)

    # The state

    def save(self) -> None:
        """Write the state and metrics.jsonl, each atomically."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= checkpoints.optimizer_tensors(self.optimizer)
        header = {"config": self.config, "progress": asdict(self.progress)}
        checkpoints.save(self.run.state, tensors, header)
        lines = "".join(json.dumps(line) + "\n" for line in self.progress.metrics)
        write_atomically(self.run.metrics, lines)
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Continue from the saved state.

        Raises:
            UserError: there is none, it is broken, or it belongs to other options or features.
        """
        tensors, header = checkpoints.load(self.run.state, self.device)
        wanted = {f"model.{name}" for name in self.average} | {f"average.{n}" for n in self.average}
        if not (isinstance(header, dict) and {"config", "progress"} <= header.keys()) or (
            wanted - tensors.keys()
        ):
            raise UserError(f"{self.run.state} is not a run's state; start anew with --force")
        changed = _differences(
            {**header["config"], "versions": None}, {**self.config, "versions": None}
        )
        if changed:
            raise UserError(
                f"{self.run.state} was saved by a run with other {first_few(changed)}; repeat "
                "those to continue it, or start anew with --force"
            )
        for prefix, target in (("model.", self.model.state_dict()), ("average.", self.average)):
            for name, tensor in target.items():
                tensor.copy_(tensors[prefix + name])
        checkpoints.restore_optimizer(self.optimizer, tensors)
        self.progress = Progress(**header["progress"])

    def where(self) -> str:
        """Return the phase, epoch and batch that come next, as text."""
        progress = self.progress
        return (
            f"{PHASE_NAMES[progress.phase]}, epoch {progress.epoch + 1}, batch {progress.batch + 1}"
        )

    def _save_if_due(self) -> None:
        minutes = (time.monotonic() - self._saved_at) / 60
        if self._stop_requested or minutes >= self.options.save_minutes:
            self.save()
        if self._stop_requested:
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


def all_words_encoded(images: list[Image], vocabulary: Vocabulary) -> dict[int, list[list[int]]]:
    """Return each image's captions as token ids for the reward, each ending in EOS.

    Unlike `Vocabulary.encode`, words that the vocabulary lacks get ids of their own, beyond it. No
    sample can hold such an id, so an unknown word never earns reward, while document frequencies
    and lengths stay those of the real captions.
    """
    ids = dict(vocabulary.ids)
    return {
        image.id: [
            [ids.setdefault(token, len(ids)) for token in caption.tokens] + [EOS]
            for caption in image.captions
        ]
        for image in images
    }


def _mix(*numbers: int) -> int:
    """Return one seed for several numbers, so that (1, 2) and (2, 1) differ."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number) % 2**63
    return mixed


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return the names of the entries in which two nested dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            difference
            for key in keys
            for difference in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name} ({old} then, {new} now)"]


def _as_text(line: dict[str, Any]) -> str:
    scores = ", ".join(f"{name} {value:.3f}" for name, value in line["val"].items())
    reward = "" if line["reward"] is None else f", reward {line['reward']:.3f}"
    return (
        f"{PHASE_NAMES[line['phase']]} epoch {line['epoch']}: loss {line['loss']:.4f}{reward}, "
        f"{line['captions_per_second']:.0f} captions/s; validation {scores}"
    )
