"""The workloads that are timed: training steps of both phases, and beam search."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from decoder.cider import Reward
from decoder.data.batches import Features
from decoder.data.readers import keep_in_memory
from decoder.data.single_store import SingleStoreReader
from decoder.generation.generate import beam_search
from decoder.model import decoders
from decoder.model.capture import Graphs
from decoder.model.operations import compiled
from decoder.model.options import ModelOptions
from decoder.training.options import ReinforceOptions, TrainOptions
from decoder.training.phases import ReinforcePhase
from decoder.training.trainer import Trainer
from evaluation.validation import Validator
from features.store import FeatureStore
from pipeline import captions, vocabulary
from pipeline.vocabulary import EOS, PAD
from pipeline.work import RunFolder, WorkFolder
from tests.benchmarks import operations
from tests.benchmarks.timing import Work, Workload
from tests.decoder.model.reference import PlainUpDown

BEAM = 5

Clock = Callable[[], float]


def workloads_of(
    work: Path,
    scratch: Path,
    name: str,
    cell: str,
    images: int,
    phase: str,
    hidden: int = 512,
    device: str = "cpu",
    clock: Clock = time.perf_counter,
    compile: bool = False,
    attention: int | None = None,
    precision: Literal["float32", "tf32", "bfloat16"] = "float32",
) -> Iterator[Workload]:
    """Yield the workloads of one phase.

    REINFORCE has one for each baseline, and cross-entropy of Up-Down with LSTM cells has the same
    step written with plain PyTorch operations too.

    Args:
        work: work directory with features and captions.
        scratch: folder for the runs.
        name: of the decoder.
        cell: "lstm" or "gru".
        images: in a batch.
        phase: "xe", "rl" or "beam".
        hidden: size of the recurrent state.
        device: where to run.
        clock: returns seconds.
        compile: yield each training step with compiled operations too.
        attention: size of the attention; by default `hidden`.
        precision: of the training steps.
    """
    label = f"{name} {cell}"
    for baseline in ("greedy", "mean") if phase == "rl" else ("mean",):
        options = TrainOptions(
            work=work,
            run="benchmark",
            decoder=ModelOptions(
                model=name, cell=cell, hidden=hidden, attention=attention or hidden
            ),
            rl=ReinforceOptions(baseline=baseline),
            batch_size=images,
            device=device,
            precision=precision,
        )
        trainer = _trainer(options, scratch)
        if phase == "beam":
            yield _search(trainer, label, images)
        else:
            title = f"rl, {baseline}" if phase == "rl" else phase
            yield _training_step(trainer, title, label, images, phase, clock)
            if compile:
                fused = _trainer(options, scratch)
                fused.model.use_operations(compiled(fused.device))
                torch._dynamo.config.recompile_limit = 99  # all workloads share this limit
                yield _training_step(fused, f"{title}, compiled", label, images, phase, clock)
    if phase == "xe" and (name, cell) == ("updown", "lstm"):
        yield _plain_step(trainer, label, images)


def _trainer(options: TrainOptions, scratch: Path) -> Trainer:
    work = WorkFolder(options.work)
    table, words = captions.load(work.captions), vocabulary.load(work.vocabulary)
    store = FeatureStore(work.features)
    torch.manual_seed(options.seed)
    model = decoders.build(options.decoder, len(words), store.description["channels"])
    model = model.to(options.device)
    training = SingleStoreReader(
        store, table, words, options.batch_size, options.seed, grid=model.attends
    )
    keep_in_memory((training,), torch.device(options.device))
    validator = Validator.__new__(Validator)  # nothing is validated, so Java is not started
    run = RunFolder(scratch / "run")
    return Trainer(options, run, {}, model, words, training, training, validator)


class _TimedReward(Reward):
    """A reward that measures its time and keeps the captions it has scored."""

    def __init__(self, reward: Reward, clock: Clock) -> None:
        super().__init__(reward.references)
        self._reward, self._clock = reward, clock
        self.reset()

    def reset(self) -> None:
        self.seconds = 0.0
        self.scored: list[Tensor] = []

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        started = self._clock()
        rewards = self._reward(image_ids, samples, eos)
        self.seconds += self._clock() - started
        self.scored.append(samples)
        return rewards

    def score(self, image_I: Tensor, samples: Tensor, eos: int) -> Tensor:
        return self._reward.score(image_I, samples, eos)  # in a graph, where no time is measured


def _training_step(
    trainer: Trainer, title: str, label: str, images: int, phase_name: str, clock: Clock
) -> Workload:
    """Return a training step on one batch.

    Reading the batch, the reward and reporting count as time outside the decoder.
    """
    places = np.random.default_rng(0).permutation(len(trainer.training))[:images].tolist()
    model = trainer.model
    phase = next(phase for phase in trainer.phases if phase.name == phase_name)
    phase.steps = 10**6  # more than any benchmark takes
    reward: _TimedReward | None = None
    if isinstance(phase, ReinforcePhase):
        reward = _TimedReward(phase.reward, clock)
        phase.reward = reward

    def run() -> Work:
        if reward is not None:
            reward.reset()
        started = clock()
        batch = trainer.training.batch(places).to(trainer.device)
        outside = clock() - started
        trainer.step(phase, batch)
        started = clock()
        assert trainer.running_means(phase)
        outside += clock() - started
        if reward is not None:
            outside += reward.seconds

        if reward is None:
            learned, greedy = batch.tokens_BT, []
        elif trainer.fixed is None:
            learned, *greedy = reward.scored
        else:  # the reward is part of a graph, and every sample has the full length
            longest, samples = trainer.vocabulary.max_length, phase.options.samples
            learned = torch.full((images * samples, longest), EOS)
            greedy = [learned[:images]] if phase.options.baseline == "greedy" else []
        regions, looked_up = batch.features[0].shape[1], reward is not None

        def reading(tokens_BT: Tensor) -> float:
            words = int((tokens_BT != PAD).sum())
            return operations.reading_words(model, regions, words, len(tokens_BT), looked_up)

        # The backward pass takes twice the operations of the forward pass. Greedy captions, the
        # baseline, have no backward pass.
        total = 3 * reading(learned) + sum(map(reading, greedy))
        total += operations.encoding_images(model, regions, images, training=True)
        return Work(len(learned) if reward is None else images, total, outside)

    return Workload(title, label, images, trainer, run)


def _search(trainer: Trainer, label: str, images: int) -> Workload:
    """Return a beam search on one batch."""
    model, longest = trainer.model.eval(), trainer.vocabulary.max_length
    places = list(range(min(images, len(trainer.training))))
    features = trainer.training.features(places).to(trainer.device)
    regions, beams = features[0].shape[1], len(places) * BEAM
    total = operations.reading_words(model, regions, beams * (longest + 1), beams, looked_up=True)
    total += operations.encoding_images(model, regions, images, training=False)

    graphs = Graphs(trainer.device)

    def search(*features: Tensor) -> tuple[Tensor, ...]:
        return beam_search(model, model.encode(Features(*features)), BEAM, longest)

    @torch.inference_mode()
    def run() -> Work:
        graphs.run("search", search, [part for part in features if part is not None])
        return Work(len(places), total)

    return Workload(f"beam {BEAM}", label, images, trainer, run)


def _plain_step(trainer: Trainer, label: str, images: int) -> Workload:
    """Return the same step with an Up-Down of plain PyTorch operations and PyTorch's defaults."""
    model = trainer.model
    assert isinstance(model, decoders.UpDown)
    plain = PlainUpDown(model).to(trainer.device)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.0)
    batch = trainer.training.batch(list(range(images))).to(trainer.device)
    captions = [tensor.to(trainer.device) for tensor in (batch.tokens_BT, batch.image_B)]

    def run() -> Work:
        loss = plain(*batch.features[:2], *captions)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        return Work(len(batch.tokens_BT))

    return Workload("xe, plain", label, images, trainer, run)
