"""The three decoders: correct gradients, every weight used, captions independent of each other."""

import gc

import pytest
import torch

from decoder.data.batches import Batch, pack, pad
from decoder.model import decoders
from decoder.model.operations import HAND_MADE, PLAIN
from decoder.model.options import ModelOptions
from decoder.model.recurrence import Tape
from decoder.training.objectives import cross_entropy
from pipeline.vocabulary import EOS, UNK
from tests.decoder.conftest import CHANNELS, WORDS
from tests.decoder.model.reference import PlainUpDown

EVERY_MODEL = pytest.mark.parametrize(
    ("name", "cell"),
    [(name, cell) for name in ("show_tell", "att2in", "updown") for cell in ("lstm", "gru")],
)


def build(name: str, cell: str = "lstm", dropout: float = 0.0) -> decoders.Decoder:
    torch.manual_seed(1)
    options = ModelOptions(model=name, cell=cell, hidden=16, attention=12, dropout=dropout)
    return decoders.build(options, WORDS, CHANNELS)


def double(batch: Batch) -> Batch:
    return batch._replace(features=batch.features.each(torch.Tensor.double))


@EVERY_MODEL
def test_gradients_agree_with_finite_differences(name, cell, batch):
    """The sums over time steps are hand-made in decoder.model.recurrence."""
    model, batch = build(name, cell).double(), double(batch)
    cross_entropy(model, batch).loss.backward()
    step = 1e-6
    for parameter in model.parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(step * direction)
            above = cross_entropy(model, batch).loss
            parameter.sub_(2 * step * direction)
            below = cross_entropy(model, batch).loss
            parameter.add_(step * direction)
        expected = (above - below) / (2 * step)
        torch.testing.assert_close(
            (parameter.grad * direction).sum(), expected, rtol=1e-4, atol=1e-8
        )


@EVERY_MODEL
def test_plain_operations_have_the_loss_and_gradient_of_the_hand_made_ones(name, cell, batch):
    model, found = build(name, cell).double(), []
    for operations in (HAND_MADE, PLAIN):
        model.use_operations(operations)
        model.zero_grad()
        loss = cross_entropy(model, double(batch)).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*found)


@EVERY_MODEL
def test_a_decoder_to_be_loaded_draws_nothing(name, cell):
    before = torch.get_rng_state()
    decoders.allocate(ModelOptions(model=name, cell=cell, hidden=8, attention=8), WORDS, CHANNELS)
    assert torch.equal(before, torch.get_rng_state())


def test_up_down_agrees_with_a_plainly_written_one(batch):
    model = build("updown")
    plain = PlainUpDown(model)
    ours = cross_entropy(model, batch).loss
    theirs = plain(*batch.features[:2], batch.tokens_BT, batch.image_B)
    torch.testing.assert_close(ours, theirs)

    ours.backward()
    embeddings = [model.region_embedding.weight, model.pooled_embedding.weight, model.output.weight]
    found = [weight.grad.clone() for weight in embeddings]
    model.zero_grad()
    theirs.backward()
    for gradient, weight in zip(found, embeddings, strict=True):
        torch.testing.assert_close(gradient, weight.grad, atol=1e-5, rtol=1e-5)


@EVERY_MODEL
def test_every_weight_receives_a_gradient(name, cell, batch):
    model = build(name, cell)
    cross_entropy(model, batch).loss.backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@EVERY_MODEL
def test_a_caption_is_read_the_same_alone_and_in_a_batch(name, cell, batch):
    model = build(name, cell).eval()
    memory = model.encode(batch.features)
    words = pack(batch.tokens_BT, batch.image_B)
    together = model(memory, words)
    for i, tokens in enumerate(batch.tokens_BT):
        features = batch.features.each(lambda t, row=batch.image_B[i]: t[row][None])
        alone = model(model.encode(features), pack(tokens[None], torch.tensor([0])))
        torch.testing.assert_close(together[words.caption_P == i], alone)


@EVERY_MODEL
def test_steps_of_generation_agree_with_teacher_forcing(name, cell, batch):
    model = build(name, cell).eval()
    caption = [5, 9, 7, EOS]
    memory = model.encode(batch.features.each(lambda t: t[:1]))
    words = pack(pad([caption]), torch.tensor([0]))
    state, stepwise = model.start(memory, 1), []
    for word in words.inputs_P:
        logits, state = model.next_word(word[None], memory, state)
        stepwise.append(logits)
    torch.testing.assert_close(model(memory, words), torch.cat(stepwise))


@pytest.mark.parametrize("name", ["show_tell", "att2in", "updown"])
def test_each_model_looks_at_its_own_features_only(name, batch):
    """Show and Tell sees the pooled feature, Att2in the grid, Up-Down both."""
    model = build(name)
    features = batch.features.each(lambda t: t.clone().requires_grad_())
    cross_entropy(model, batch._replace(features=features)).loss.backward()
    sees_grid, sees_pooled = (t.grad is not None and bool(t.grad.any()) for t in features[:2])
    assert (sees_grid, sees_pooled) == (name != "show_tell", name != "att2in")


@pytest.mark.parametrize("name", ["att2in", "updown"])
def test_attention_weights_of_each_word_sum_to_one(name, batch):
    model = build(name)
    words = pack(batch.tokens_BT, batch.image_B)
    for _, weights_BR in model.read(model.encode(batch.features), words):
        torch.testing.assert_close(weights_BR.sum(1), torch.ones(len(weights_BR)))


def test_no_special_word_but_the_end_has_an_output(batch):
    model = build("updown")
    assert model.output.out_features == WORDS - EOS
    logits = model(model.encode(batch.features), pack(batch.tokens_BT, batch.image_B))
    assert logits.shape[1] == WORDS - EOS


def test_an_unknown_target_adds_nothing_to_the_loss(batch):
    """Otherwise the model would learn a word that it cannot generate."""
    model = build("updown")
    features = batch.features.each(lambda t: t[:1])
    one = batch._replace(features=features, image_B=torch.tensor([0]))
    words = pack(torch.tensor([[5, UNK, EOS]]), one.image_B)
    log_probability = model(model.encode(features), words).log_softmax(1)
    expected = -(log_probability[0, 5 - EOS] + log_probability[2, 0]) / 2
    found = cross_entropy(model, one._replace(tokens_BT=torch.tensor([[5, UNK, EOS]]))).loss
    torch.testing.assert_close(found, expected)


def test_memory_of_a_step_is_freed_without_the_garbage_collector(batch):
    """A cycle between the tapes and the graph once let memory grow by gigabytes."""
    model = build("updown")
    gc.collect()
    gc.disable()
    try:
        cross_entropy(model, batch).loss.backward()
        left = [item for item in gc.get_objects() if type(item) is Tape]
    finally:
        gc.enable()
    assert left == []
