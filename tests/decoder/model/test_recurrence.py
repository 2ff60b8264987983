"""Hand-made gradients against those of the plain formulas, and the table of words."""

import pytest
import torch
from torch import Tensor, nn

from decoder.data.batches import Batch
from decoder.model import attention, decoders
from decoder.model.attention import Rows, attend, plain_attend, shared_keys, shared_regions
from decoder.model.gates import gru, lstm, plain_gru, plain_lstm
from decoder.model.options import ModelOptions
from decoder.model.recurrence import WordTable
from decoder.training.adam import Adam
from decoder.training.objectives import cross_entropy, draw
from tests.decoder.conftest import CHANNELS, WORDS

# The image of each row, in any order; the second of the four images has none.
IMAGE = torch.tensor([2, 0, 3, 0, 0, 2, 3, 0, 0, 0])


def tensors(dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """Return queries, keys, regions and the weights of the comparison."""
    torch.manual_seed(0)
    shapes = [(len(IMAGE), 6), (4, 9, 6), (4, 9, 5), (6,)]
    return [(scale * torch.randn(shape)).to(dtype).requires_grad_() for shape in shapes]


def ours(query: Tensor, keys: Tensor, regions: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    rows = Rows.ungrouped(IMAGE, 4)
    return attend(query, shared_keys(keys), shared_regions(regions), score, rows)


@pytest.mark.parametrize("cached", [1, 120, 10**6])
def test_attention_and_its_gradients_are_those_of_the_formula(cached, monkeypatch):
    monkeypatch.setattr(attention, "CACHED_NUMBERS", cached)
    inputs = tensors(torch.float64)
    attended, weights = ours(*inputs)
    expected, expected_weights = plain_attend(*inputs, IMAGE)
    torch.testing.assert_close(attended, expected)
    torch.testing.assert_close(weights, expected_weights)
    direction = torch.randn_like(expected)
    found = torch.autograd.grad((attended * direction).sum(), inputs)
    wanted = torch.autograd.grad((expected * direction).sum(), inputs)
    torch.testing.assert_close(found, wanted)


def test_large_keys_and_queries_that_cancel_lose_nothing():
    """exp(25) exp(-25) must be 1, and exp(60) exp(60) must be finite."""
    query, keys, regions, score = tensors(torch.float32)
    shift = torch.tensor([25.0, -25.0, 30.0, 0.0, 60.0, -60.0])
    with torch.no_grad():
        query += shift
        keys -= shift * torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    inputs = [query, keys, regions, score]
    attended, _ = ours(*inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected, _ = plain_attend(*exact, IMAGE)
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
def test_hand_made_gradients_of_cells_are_those_of_the_plain_formulas(formula, by_hand, shapes):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    found, wanted = by_hand(*inputs), formula(*inputs)
    torch.testing.assert_close(found, wanted)
    directions = [torch.randn_like(output) for output in wanted]
    of = [torch.autograd.grad(outputs, inputs, directions) for outputs in (found, wanted)]
    torch.testing.assert_close(*of)


def sampled(model: decoders.Decoder, batch: Batch) -> Tensor:
    """Return the REINFORCE loss of samples that do not depend on the model's probabilities."""

    def choose(probability_BV: Tensor, sample_B: Tensor, t: int) -> Tensor:
        return (sample_B + t) % probability_BV.shape[1]

    drawn = draw(model, model.encode(batch.features), 3, 5, 0.7, choose)
    return (drawn.surprise_P * (1 + drawn.sample_P % 2)).mean()


def teacher_forced(model: decoders.Decoder, batch: Batch) -> Tensor:
    """Return the cross-entropy of teacher forcing."""
    return cross_entropy(model, batch).loss


@pytest.mark.parametrize("objective", [teacher_forced, sampled])
@pytest.mark.parametrize("name", ["show_tell", "att2in", "updown"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_in_bfloat16_the_gradient_points_the_same_way(name, cell, objective, batch: Batch):
    torch.manual_seed(1)
    options = ModelOptions(model=name, cell=cell, hidden=16, attention=12, dropout=0.0)
    model = decoders.build(options, WORDS, CHANNELS).train(objective is teacher_forced)
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


def test_the_word_table_follows_every_change_of_the_weights():
    """A table kept beyond a training step would generate with the weights of the step before."""
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
    table.clear()  # necessary, since torch does not count the optimizer's change
    with torch.inference_mode():
        torch.testing.assert_close(table(words), gates(embedding(words)))
        assert not torch.allclose(table(words), before)
    gates.load_state_dict({"weight": torch.ones(6, 4)})
    with torch.no_grad():
        torch.testing.assert_close(table(words), gates(embedding(words)))


def test_gradients_of_looked_up_words_reach_both_weights():
    torch.manual_seed(0)
    embedding, gates = nn.Embedding(9, 4).double(), nn.Linear(4, 6, bias=False).double()
    weights = embedding.weight, gates.weight
    table, steps = WordTable(embedding, gates), [torch.tensor([3, 3, 8]), torch.tensor([3, 1])]
    directions = [torch.randn(len(words), 6).double() for words in steps]
    assert not table.usable  # no gradient would come through
    table.begin_loop()
    assert table.usable
    looked_up = sum((table(w) * d).sum() for w, d in zip(steps, directions, strict=True))
    found = torch.autograd.grad(looked_up, weights)
    table.end_loop()
    computed = sum((gates(embedding(w)) * d).sum() for w, d in zip(steps, directions, strict=True))
    torch.testing.assert_close(found, torch.autograd.grad(computed, weights))
