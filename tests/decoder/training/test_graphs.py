"""Steps of fixed shapes, as a GPU takes them: what would stop or falsify a CUDA graph of them.

They run on the CPU, where a graph is stood in for by the function that it would be of.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from decoder import train
from decoder.data.layout import static_on_cpu
from decoder.model.capture import Graphs, Record, Work
from decoder.model.options import ModelOptions
from decoder.runs import checkpoints
from decoder.training import train_stage
from decoder.training import trainer as trainer_module
from decoder.training.options import CrossEntropyOptions, ReinforceOptions, TrainOptions
from decoder.training.trainer import Trainer
from evaluation.validation import Validator
from features.errors import UserError
from pipeline.work import RunFolder
from tests.decoder.conftest import SMALL, hide_java
from tests.decoder.training.processes import unlike

# What makes the host wait for a GPU, since it asks for a number or for a size.
ASKING = {"_local_scalar_dense", "is_nonzero", "equal", "item", "nonzero", "nonzero_numpy"}
ASKING |= {"masked_select", "unique_consecutive", "unique_dim", "_unique", "_unique2", "bincount"}
ASKING |= {"allclose", "repeat_interleave.Tensor", "multinomial", "histc"}

NewTrainer = Callable[..., Trainer]


@pytest.fixture
def new_trainer(extracted_shapes: Path, monkeypatch) -> Iterator[NewTrainer]:
    """Return a function that returns a trainer of fixed shapes, with a stand-in for graphs."""

    def make(record: Record | None = None, **options: Any) -> Trainer:
        monkeypatch.setattr(
            trainer_module, "Graphs", lambda device, wanted: Graphs(device, wanted, record)
        )
        given = {
            "decoder": ModelOptions(hidden=16, attention=8),
            "xe": CrossEntropyOptions(epochs=1, scheduled_sampling=0.5),
            "rl": ReinforceOptions(samples=2, baseline="greedy"),
            "batch_size": 4,
        }
        trainer = train.new_trainer(TrainOptions(extracted_shapes, "none", **(given | options)))
        short = replace(trainer.vocabulary, max_length=7)  # samples and searches take less time
        trainer.phases[1].vocabulary = trainer.validation.vocabulary = short
        return trainer

    with static_on_cpu():
        yield make


def take(trainer: Trainer, steps: int, *names: str) -> None:
    """Take steps of the phases of these names, both by default."""
    for phase in trainer.phases:
        if phase.name in (names or ("xe", "rl")):
            batches = trainer.training.epoch(phase.name, 0)
            for batch in islice(batches, steps):
                trainer.step(phase, batch)
    trainer.read_figures()


def recorded(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.state.tensors().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@cache
def name_of(operation: torch._ops.OpOverload) -> str:
    """Return the name of an operation that asks nothing of a GPU."""
    name: str = operation.name().removeprefix("aten::")
    assert not {name, name.split(".")[0]} & ASKING, f"{name} asks something of the host"
    return name


def tensors_in(*values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(*value)


class Watch(TorchDispatchMode):
    """Refuses operations that ask something of a GPU, and records the shapes of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        name, named = name_of(operation), named or {}
        tensors = list(tensors_in(arguments, *named.values()))
        if name.startswith("index"):
            assert all(t.dtype != torch.bool for t in tensors[1:]), f"{name} counts what is true"
        result = operation(*arguments, **named)
        tensors += tensors_in(result)
        self.operations.append((name, [tensor.shape for tensor in tensors]))
        return result


def test_a_static_step_asks_nothing(new_trainer: NewTrainer) -> None:
    """Of the host; and a second batch has the same operations on the same shapes."""
    found: list[list[tuple[str, list[torch.Size]]]] = []

    def record(work: Work) -> Work:
        """Return work that is watched at every replay."""
        own: list[list[tuple[str, list[torch.Size]]]] = []
        assert not torch.is_inference_mode_enabled(), (
            "later graphs could not be captured outside it"
        )
        gradients = torch.is_grad_enabled()

        def replay() -> None:
            with torch.inference_mode(False), torch.set_grad_enabled(gradients), Watch() as watch:
                work()
            own.append(watch.operations)
            found.append(watch.operations)
            assert own[0] == own[-1]

        return replay

    trainer = new_trainer(record)
    take(trainer, 3)
    validation = trainer.validation
    for images, features in islice(validation.images.batches(3), 2):
        validation.write_captions(validation.averaged_model(), images, features)
    sizes = {len(operations) for operations in found}
    assert len(sizes) >= 4, "cross-entropy of each length, REINFORCE, update and search"


def test_steps_by_graphs_are_those_of_the_functions(new_trainer: NewTrainer, caplog) -> None:
    """To the last bit, with dropout and samples, and though the first step warms up."""
    expected, found = new_trainer(), new_trainer(lambda work: work)
    take(expected, 3)
    take(found, 3)
    assert same(recorded(found), recorded(expected))
    assert found.state.progress.loss == expected.state.progress.loss
    assert "graphs" not in caplog.text


def _refuses(work: Work) -> Work:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


def _forgets(work: Work) -> Work:
    return lambda: None


@pytest.mark.parametrize("record", [_refuses, _forgets])
def test_without_a_usable_graph_the_same_steps_are_taken_and_it_is_said_once(
    record: Record, new_trainer: NewTrainer, caplog
) -> None:
    expected, found = new_trainer(), new_trainer(record)
    take(expected, 2)
    take(found, 2)
    assert same(recorded(found), recorded(expected))
    assert caplog.text.count("continuing without CUDA graphs") == 1


def test_no_graphs_captures_none(new_trainer: NewTrainer, caplog) -> None:
    take(new_trainer(_refuses, no_graphs=True), 1)
    assert "graphs" not in caplog.text


def test_a_reward_that_needs_the_host_stays_outside_of_graphs(new_trainer: NewTrainer) -> None:
    captured: list[Work] = []

    def record(work: Work) -> Work:
        captured.append(work)
        return work

    trainer = new_trainer(record)
    ids = {image.id for image in trainer.training.images}

    def reward(image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        assert set(image_ids.tolist()) <= ids
        return (samples != eos).sum(1).float()

    trainer.phases[1].reward = reward
    take(trainer, 2, "rl")
    assert trainer.state.progress.reward > 0
    assert len(captured) == 1, "the update alone is captured"


def test_fixed_shapes_learn_what_packed_captions_teach(new_trainer: NewTrainer) -> None:
    """By whole steps of cross-entropy, the last one of a smaller batch; up to rounding."""
    options = {"decoder": ModelOptions(hidden=16, attention=8, dropout=0.0), "batch_size": 11}
    options["xe"] = CrossEntropyOptions(epochs=1)
    found = new_trainer(lambda work: work, **options)
    take(found, 3, "xe")
    with static_on_cpu(False):
        packed = new_trainer(**options)
        assert packed.fixed is None
        take(packed, 3, "xe")
    assert found.state.progress.loss == pytest.approx(packed.state.progress.loss, rel=1e-4)
    assert found.state.progress.captions == packed.state.progress.captions
    for name, average in packed.state.average.items():
        torch.testing.assert_close(found.state.average[name], average, atol=2e-4, rtol=1e-3)


def test_a_step_that_is_not_finite_changes_nothing(new_trainer: NewTrainer) -> None:
    """Nor does the next one, which is taken before anybody knows; the error names the first."""
    trainer = new_trainer(lambda work: work)
    phase = trainer.phases[0]
    batches = list(islice(trainer.training.epoch("xe", 0), 3))
    trainer.step(phase, batches[0])
    before = recorded(trainer)
    broken = batches[1].features.pooled_IC.clone()
    broken[2, 3] = float("inf")
    features = batches[1].features._replace(pooled_IC=broken)
    trainer.step(phase, batches[1]._replace(features=features))
    with pytest.raises(UserError) as error:
        trainer.step(phase, batches[2])
    assert same(recorded(trainer), before)
    named = ", ".join(map(str, batches[1].image_ids.tolist()))
    assert f"at step 1 of cross-entropy, epoch 1, images {named}" in str(error.value)
    assert f"features of {int(batches[1].image_ids[2])} are not finite" in str(error.value)
    trainer.step(phase, batches[2])  # goes on, as on a CPU
    trainer.read_figures()
    assert not same(recorded(trainer), before)


class Late(Validator):
    """Scores beside the training, and only when it may."""

    beside, may = True, Event()

    def score(self, *captions: Any) -> dict[str, float]:
        assert self.may.wait(60)
        return super().score(*captions)


def test_late_scores_stops_and_kills_change_nothing(work: Path, monkeypatch) -> None:
    """Against a run that waits for every score: the weights kept are those that were scored.

    The others are stopped before and after a score is due, and killed between.
    """
    hide_java(monkeypatch)
    options = [*SMALL, "--model", "show_tell", "--xe.epochs", "2", "--rl.epochs", "1"]
    arguments = ["--work", str(work), *options, "--run"]
    runs, step, taken = work / "runs", Trainer.step, 0
    stopped, killed = (RunFolder(runs / name) for name in ("stopped", "killed"))

    def step_and_stop(trainer: Trainer, *given: Any) -> None:
        nonlocal taken
        step(trainer, *given)
        taken += 1
        if taken == 11:  # the third step of the second epoch
            assert not trainer.epochs.has_scores
            shutil.copytree(stopped.path, killed.path)
            Late.may.set()
        if taken in (3, 11):
            os.kill(os.getpid(), signal.SIGTERM)

    with static_on_cpu():
        monkeypatch.setattr(train_stage, "ValidatorProcess", Validator)
        assert train.main([*arguments, "whole"]) == 0
        monkeypatch.setattr(train_stage, "ValidatorProcess", Late)
        monkeypatch.setattr(Trainer, "step", step_and_stop)
        assert train.main([*arguments, "stopped"]) == 130
        assert train.main([*arguments, "stopped", "--resume"]) == 130
        scored = checkpoints.load(killed.state, torch.device("cpu"))[0]
        for name, weight in checkpoints.load(stopped.best, torch.device("cpu"))[0].items():
            assert torch.equal(weight, scored[f"average.{name}"])
        assert not killed.best.exists()
        assert train.main([*arguments, "stopped", "--resume"]) == 0
        assert train.main([*arguments, "killed", "--resume"]) == 0
    assert unlike(stopped.path, runs / "whole") == []
    assert unlike(killed.path, runs / "whole") == []
