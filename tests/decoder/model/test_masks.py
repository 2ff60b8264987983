"""Boxes of varying number: what lies beyond an image's regions has no effect, to the last bit."""

from dataclasses import replace

import pytest
import torch

from decoder.data.batches import Batch, Features, pack
from decoder.model.decoders import MODELS, Memory, build
from decoder.model.operations import HAND_MADE, PLAIN
from decoder.model.options import ModelOptions
from tests.decoder.conftest import CHANNELS, REGIONS, WORDS

COUNTS = torch.tensor([1, REGIONS, 4, 6])
MASK = torch.arange(REGIONS) < COUNTS[:, None]


def padded(batch: Batch, value: float) -> Batch:
    """Return the batch with `value` in every place beyond an image's regions."""
    grid = batch.features.grid_IRC.masked_fill(~MASK[:, :, None], value)
    return batch._replace(features=Features(grid, batch.features.pooled_IC, MASK))


def result(name: str, batch: Batch, operations=HAND_MADE) -> list[torch.Tensor]:
    """Return the logits, the weights of the regions, and all gradients of one training step."""
    torch.manual_seed(0)
    model = build(replace(ModelOptions(), model=name, hidden=16, attention=8), WORDS, CHANNELS)
    model.use_operations(operations)
    memory = model.encode(batch.features)
    logits = model(memory, pack(batch.tokens_BT, batch.image_B))
    logits.square().sum().backward()
    words = pack(batch.tokens_BT, batch.image_B)
    weights = [weights for _, weights in model.eval().read(model.encode(batch.features), words)]
    return [logits, *weights, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("operations", [HAND_MADE, PLAIN], ids=["hand-made", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_padding_never_influences_the_result(name, operations, batch):
    expected = result(name, padded(batch, 0.0), operations)
    for value in (1e6, float("nan"), float("inf")):
        found = result(name, padded(batch, value), operations)
        assert all(map(torch.equal, expected, found)), value


@pytest.mark.parametrize("name", ["att2in", "updown"])
def test_masked_attention_is_that_of_the_image_without_padding(name, batch):
    torch.manual_seed(0)
    model = build(ModelOptions(model=name, hidden=16, attention=8), WORDS, CHANNELS).eval()
    words = pack(batch.tokens_BT[2:3], torch.tensor([0]))
    of_image = Features(*(tensor[:1] for tensor in padded(batch, 9.0).features))
    alone = Features(of_image.grid_IRC[:, :1], of_image.pooled_IC)
    assert torch.allclose(model(model.encode(of_image), words), model(model.encode(alone), words))


def test_a_mask_that_hides_nothing_changes_nothing(batch):
    everything = torch.ones_like(MASK)
    unmasked = result("updown", batch)
    masked = result("updown", batch._replace(features=Features(*batch.features[:2], everything)))
    assert all(map(torch.equal, unmasked, masked))


def test_the_mask_follows_its_images(batch):
    model = build(ModelOptions(hidden=16, attention=8), WORDS, CHANNELS).eval()
    memory = model.encode(padded(batch, 0.0).features)
    chosen = Memory.joined([memory.select(torch.tensor([3])), memory.select(MASK.sum(1) == 1)])
    assert torch.equal(chosen.mask_IR, MASK[[3, 0]])
