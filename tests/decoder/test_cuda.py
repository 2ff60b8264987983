"""On a GPU: the same numbers as on a CPU, and no step that waits for the GPU."""

from collections.abc import Iterator

import pytest
import torch

from decoder.cider import CiderD
from decoder.data.batches import Batch
from decoder.data.readers import on_device
from decoder.model import decoders
from decoder.model.decoders import ModelOptions
from decoder.model.operations import compiled
from decoder.training.adam import Adam
from decoder.training.objectives import cross_entropy
from pipeline.vocabulary import EOS
from tests.decoder.conftest import CHANNELS, WORDS
from tests.decoder.test_cider import as_tensor, random_case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

EVERY_MODEL = pytest.mark.parametrize("name", ["show_tell", "att2in", "updown"])


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Make every synchronisation with the host an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


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
    cross_entropy(model, batch.to(torch.device("cuda"))).loss.backward()
    for parameter, other in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), other, rtol=1e-4, atol=1e-5)


@EVERY_MODEL
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_step_of_cross_entropy_never_waits(
    name: str, precision: torch.dtype, batch: Batch, no_waiting: None
) -> None:
    model = build(name, dropout=0.5).cuda()
    optimizer = Adam(model.parameters())
    losses = []
    for on_gpu in on_device([batch] * 3, torch.device("cuda")):
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            loss = cross_entropy(model, on_gpu, 0.1).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(1e-3)
        losses.append(loss.detach())
    torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


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
    torch.cuda.set_sync_debug_mode("error")
    try:
        rewards = cider.score(rows, tokens, EOS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rewards.isfinite().all()
