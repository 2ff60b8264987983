"""Attention as it is computed, image by image, against its formula."""

import pytest
import torch
from torch import Tensor, nn

from decoder.data.batches import Batch
from decoder.model import attention, decoders
from decoder.model.attention import Rows, attend, attend_at_once, keys_of, regions_of
from decoder.model.decoders import ModelOptions
from decoder.model.gates import gru, lstm, plain_gru, plain_lstm
from decoder.model.recurrence import WordTable
from decoder.training.adam import Adam
from decoder.training.objectives import cross_entropy, draw
from tests.decoder.conftest import CHANNELS, WORDS

# Rows of four images in any order: of the second there is none.
IMAGE = torch.tensor([2, 0, 3, 0, 0, 2, 3, 0, 0, 0])


def tensors(dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """Queries, keys, regions and what weighs the comparison."""
    torch.manual_seed(0)
    shapes = [(len(IMAGE), 6), (4, 9, 6), (4, 9, 5), (6,)]
    return [(scale * torch.randn(shape)).to(dtype).requires_grad_() for shape in shapes]


def ours(query: Tensor, keys: Tensor, regions: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    return attend(query, keys_of(keys), regions_of(regions), score, Rows.of(IMAGE, 4))


@pytest.mark.parametrize("cached", [1, 120, 10**6])
def test_attention_and_its_gradients_are_those_of_the_formula(cached, monkeypatch):
    monkeypatch.setattr(attention, "_CACHED", cached)
    inputs = tensors(torch.float64)
    attended, weights = ours(*inputs)
    expected, expected_weights = attend_at_once(*inputs, IMAGE)
    torch.testing.assert_close(attended, expected)
    torch.testing.assert_close(weights, expected_weights)
    direction = torch.randn_like(expected)
    found = torch.autograd.grad((attended * direction).sum(), inputs)
    wanted = torch.autograd.grad((expected * direction).sum(), inputs)
    torch.testing.assert_close(found, wanted)


def test_large_keys_and_queries_that_cancel_lose_nothing():
    """The product of the exponentials of 25 and -25 must be 1, as that of 60 and 60 be finite."""
    query, keys, regions, score = tensors(torch.float32)
    shift = torch.tensor([25.0, -25.0, 30.0, 0.0, 60.0, -60.0])
    with torch.no_grad():
        query += shift
        keys -= shift * torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    inputs = [query, keys, regions, score]
    attended, _ = ours(*inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected, _ = attend_at_once(*exact, IMAGE)
    torch.testing.assert_close(attended, expected.float(), rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(attended.sum(), inputs)
    wanted = torch.autograd.grad(expected.sum(), exact)
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("formula", "by_hand", "shapes"),
    [
        (
            lambda *t: plain_lstm(*t, False),
            lambda *t: lstm(*t, False),
            [(7, 20), (20,), (7, 5)],
        ),
        (lambda *t: plain_lstm(*t, True), lambda *t: lstm(*t, True), [(7, 25), (25,), (7, 5)]),
        (
            lambda *t: (plain_gru(*t),),
            lambda *t: (gru(*t),),
            [(7, 15), (7, 15), (15,), (7, 5)],
        ),
    ],
)
def test_gradients_of_cells_written_by_hand_are_those_of_the_formulas_that_are_compiled(
    formula, by_hand, shapes
):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    found, wanted = by_hand(*inputs), formula(*inputs)
    torch.testing.assert_close(found, wanted)
    directions = [torch.randn_like(output) for output in wanted]
    of = [torch.autograd.grad(outputs, inputs, directions) for outputs in (found, wanted)]
    torch.testing.assert_close(*of)


def sampled(model: decoders.Decoder, batch: Batch) -> Tensor:
    """A loss of REINFORCE on samples that do not depend on the model's probabilities."""

    def choose(probability_BV: Tensor, sample_B: Tensor, t: int) -> Tensor:
        return (sample_B + t) % probability_BV.shape[1]

    drawn = draw(model, model.encode(batch.features), 3, 5, 0.7, choose)
    return (drawn.surprise_P * (1 + drawn.sample_P % 2)).mean()


def taught(model: decoders.Decoder, batch: Batch) -> Tensor:
    """A loss of teacher forcing."""
    return cross_entropy(model, batch).loss


@pytest.mark.parametrize("objective", [taught, sampled])
@pytest.mark.parametrize("name", ["show_tell", "att2in", "updown"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_in_bfloat16_the_gradient_points_the_same_way(name, cell, objective, batch: Batch):
    torch.manual_seed(1)
    options = ModelOptions(model=name, cell=cell, hidden=16, attention=12, dropout=0.0)
    model = decoders.build(options, WORDS, CHANNELS).train(objective is taught)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = objective(model, batch)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert gradients[-1].dtype == torch.float32
    exact, rounded = gradients
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99


def test_words_are_looked_up_as_they_are_after_every_change_of_the_weights():
    """A table kept beyond a step would write by the weights of the step before."""
    torch.manual_seed(0)
    embedding, gates = nn.Embedding(9, 4), nn.Linear(4, 6, bias=False)
    table = WordTable(embedding, gates)
    optimizer = Adam([*embedding.parameters(), *gates.parameters()])
    with torch.no_grad():
        for words in (torch.tensor([3, 3, 8]), torch.tensor([1, 8, 3])):
            torch.testing.assert_close(table(words), gates(embedding(words)))
    before = table(words).clone()
    gates(embedding(words)).sum().backward()
    optimizer.step(0.1)
    table.forget()  # which the optimizer's step makes necessary
    with torch.inference_mode():
        torch.testing.assert_close(table(words), gates(embedding(words)))
        assert not torch.allclose(table(words), before)
    gates.load_state_dict({"weight": torch.ones(6, 4)})
    with torch.no_grad():
        torch.testing.assert_close(table(words), gates(embedding(words)))


def test_the_gradients_of_words_looked_up_reach_both_weights():
    torch.manual_seed(0)
    embedding, gates = nn.Embedding(9, 4).double(), nn.Linear(4, 6, bias=False).double()
    weights = embedding.weight, gates.weight
    table, steps = WordTable(embedding, gates), [torch.tensor([3, 3, 8]), torch.tensor([3, 1])]
    directions = [torch.randn(len(words), 6).double() for words in steps]
    assert not table.suits  # no gradient would come through
    table.begin()
    assert table.suits
    looked_up = sum((table(w) * d).sum() for w, d in zip(steps, directions, strict=True))
    found = torch.autograd.grad(looked_up, weights)
    table.end()
    computed = sum((gates(embedding(w)) * d).sum() for w, d in zip(steps, directions, strict=True))
    torch.testing.assert_close(found, torch.autograd.grad(computed, weights))
