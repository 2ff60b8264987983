"""On a GPU: the same numbers as on a CPU, no step that waits for the GPU, steps as CUDA graphs."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from decoder import train
from decoder.cider import CiderD
from decoder.data.batches import Batch
from decoder.data.layout import captions_in_slots, without_waiting
from decoder.data.readers import on_device
from decoder.generation.constraints import constraints
from decoder.generation.generate import beam_search
from decoder.generation.options import GenerateOptions
from decoder.model import decoders
from decoder.model.capture import Graphs
from decoder.model.operations import compiled
from decoder.model.options import ModelOptions
from decoder.runs import checkpoints
from decoder.training.adam import Adam
from decoder.training.objectives import cross_entropy
from decoder.training.options import CrossEntropyOptions, ReinforceOptions, TrainOptions
from decoder.training.trainer import Trainer
from pipeline.vocabulary import EOS, SPECIAL, Vocabulary
from pipeline.work import RunFolder
from tests.decoder.conftest import BOTH_PHASES, CHANNELS, WORDS, hide_java
from tests.decoder.test_cider import as_tensor, random_case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

EVERY_MODEL = pytest.mark.parametrize("name", ["show_tell", "att2in", "updown"])


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make every synchronisation with the host an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def in_slots(batch: Batch) -> Batch:
    return captions_in_slots(batch, images=4, each=2, longest=9)


def build(name: str, dropout: float) -> decoders.Decoder:
    torch.manual_seed(1)
    options = ModelOptions(model=name, hidden=16, attention=12, dropout=dropout)
    return decoders.build(options, WORDS, CHANNELS)


@EVERY_MODEL
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_gradients_are_those_of_the_cpu(name: str, compile: bool, batch: Batch) -> None:
    model = build(name, dropout=0.0)
    cross_entropy(model, batch).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.cuda()
    if compile:
        model.use_operations(compiled(torch.device("cuda")))
    cross_entropy(model, in_slots(batch.to(torch.device("cuda")))).loss.backward()
    for parameter, other in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), other, rtol=1e-4, atol=1e-5)


@EVERY_MODEL
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_step_of_cross_entropy_never_waits(
    name: str, precision: torch.dtype, batch: Batch
) -> None:
    model = build(name, dropout=0.5).cuda()
    optimizer = Adam(model.parameters())
    losses, own_words = [], torch.tensor(0.5).cuda()
    with no_waiting():
        for on_gpu in on_device([batch] * 3, torch.device("cuda")):
            with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                loss = cross_entropy(model, in_slots(on_gpu), 0.1, own_words).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(1e-3)
            losses.append(loss.detach())
    assert torch.stack(losses).isfinite().all()


@EVERY_MODEL
def test_a_beam_search_never_waits_and_finds_the_captions_of_the_cpu(
    name: str, batch: Batch
) -> None:
    words = (*SPECIAL, *(f"word{i}" for i in range(WORDS - len(SPECIAL))))
    vocabulary = Vocabulary(words, (0,) * WORDS, 1, 8)
    model, found = build(name, dropout=0.0).eval(), []
    with torch.inference_mode():
        for device in (torch.device("cpu"), torch.device("cuda")):
            model, features = model.to(device), batch.features.to(device)
            forbidden = constraints(GenerateOptions(), vocabulary, 8)
            beam_search(model, model.encode(features), 3, 8, 0.8, forbidden=forbidden)
            with no_waiting(), without_waiting():  # as in a graph
                memory = model.encode(features)
                searched = beam_search(model, memory, 3, 8, 0.8, forbidden=forbidden)
            found.append(searched.checked())
        again = beam_search(model, memory, 3, 8, 0.8, forbidden=forbidden)  # may stop early
    assert torch.equal(again.tokens_IKT, found[1].tokens_IKT)
    assert torch.equal(found[1].tokens_IKT[:, 0].cpu(), found[0].tokens_IKT[:, 0])
    scores = [search.log_probability_IK.cpu() for search in found]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=1e-4)


def test_the_reward_is_computed_where_the_samples_are() -> None:
    references, samples = random_case(seed=0)
    ids, tokens = torch.tensor(list(references)), as_tensor(samples)
    expected = CiderD(references)(ids, tokens, EOS)
    found = CiderD(references)(ids.cuda(), tokens.cuda(), EOS)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected)


def test_the_reward_never_waits() -> None:
    references, samples = random_case(seed=0)
    cider, tokens = CiderD(references), as_tensor(samples).cuda()
    rows = cider.references.rows(torch.tensor(list(references)), tokens.device)
    with no_waiting():
        rewards = cider.score(rows, tokens, EOS)
    assert rewards.isfinite().all()


def new_trainer(work: Path, **options: Any) -> Trainer:
    given: dict[str, Any] = {
        "decoder": ModelOptions(hidden=64, attention=32),
        "xe": CrossEntropyOptions(epochs=1, scheduled_sampling=0.5),
        "rl": ReinforceOptions(samples=3, baseline="greedy"),
        "batch_size": 8,
        "device": "cuda",
    }
    return train.new_trainer(TrainOptions(work, "none", **(given | options)))


def take(trainer: Trainer, phase_name: str, steps: int) -> float:
    """Take steps of one phase; return the sum of their losses."""
    phase = next(phase for phase in trainer.phases if phase.name == phase_name)
    before = trainer.state.progress.loss
    for batch in islice(on_device(trainer.training.epoch(phase_name, 0), trainer.device), steps):
        trainer.step(phase, batch)
    trainer.read_figures()
    return trainer.state.progress.loss - before


def captured(trainer: Trainer) -> set[object]:
    """Return the names of the functions that run as CUDA graphs."""
    assert trainer.fixed is not None
    return {key[0] for key in trainer.fixed._graphs._graphs}


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@EVERY_MODEL
def test_steps_and_searches_are_captured(
    name: str, precision: str, extracted_shapes: Path, caplog
) -> None:
    """A graph that differs from its function, or cannot be captured, would be reported."""
    options = ModelOptions(model=name, hidden=64, attention=32)
    trainer = new_trainer(extracted_shapes, decoder=options, precision=precision)
    assert take(trainer, "xe", 3) > 0
    take(trainer, "rl", 3)
    validation = trainer.validation
    for images, features in validation.images.batches(8):
        validation.write_captions(validation.averaged_model(), images, features)
    assert "without CUDA graphs" not in caplog.text
    assert captured(trainer) == {"xe", "rl", "update", "search"}


def test_replays_take_the_steps_of_the_functions(extracted_shapes: Path) -> None:
    """In every step, not only in the first, which is compared in training itself."""
    losses = []
    for graphs in (False, True):
        trainer = new_trainer(extracted_shapes, no_graphs=not graphs)
        losses.append([take(trainer, "xe", 3), take(trainer, "xe", 4)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_replay_follows_the_seed(extracted_shapes: Path) -> None:
    """The same seed gives the same dropout and samples, another one gives others."""
    trainer = new_trainer(extracted_shapes)
    for phase in trainer.phases:
        batch = next(iter(on_device(trainer.training.epoch(phase.name, 0), trainer.device)))
        found = []
        for seed in (1, 1, 1, 2):  # the first one captures
            torch.manual_seed(seed)
            assert trainer.fixed is not None
            loss = trainer.fixed.gradients(phase, batch, 0).loss
            found.append(loss.item())
        assert found[0] == found[1] == found[2] != found[3], phase.name


def test_a_graph_of_a_search_leaves_random_numbers_to_later_graphs(caplog) -> None:
    """A run that is resumed in validation captures that first, in inference mode."""
    graphs, ones = Graphs(torch.device("cuda")), torch.ones(3, device="cuda")
    with torch.inference_mode():
        graphs.run("search", lambda ones: (2 * ones,), [ones])
    drawn = [graphs.run("draw", lambda ones: (ones.bernoulli(0.5),), [ones]) for _ in range(2)]
    with torch.inference_mode():
        (twice,) = graphs.run("search", lambda ones: (2 * ones,), [ones])
    assert twice.tolist() == [2, 2, 2]
    assert len(drawn) == 2
    assert "without CUDA graphs" not in caplog.text


def test_a_run_is_stopped_and_resumed(work: Path, monkeypatch) -> None:
    """Sums of a GPU may differ in last digits, so the weights are compared up to those."""
    hide_java(monkeypatch)
    arguments = ["--work", str(work), *BOTH_PHASES, "--rl.epochs", "0", "--device", "cuda", "--run"]
    assert train.main([*arguments, "whole"]) == 0
    step, taken = Trainer.step, 0

    def step_and_stop(*given: Any) -> None:
        nonlocal taken
        step(*given)
        taken += 1
        if taken == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", step_and_stop)
    assert train.main([*arguments, "stopped"]) == 130
    assert train.main([*arguments, "stopped", "--resume"]) == 0
    whole, stopped = (
        checkpoints.load(RunFolder(work / "runs" / name).state, torch.device("cpu"))[0]
        for name in ("whole", "stopped")
    )
    for name, tensor in whole.items():
        if name.startswith("average."):
            torch.testing.assert_close(stopped[name], tensor, rtol=1e-2, atol=1e-3, msg=name)
