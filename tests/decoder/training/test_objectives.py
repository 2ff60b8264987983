"""Cross-entropy, scheduled sampling and REINFORCE against their definitions in the papers."""

import pytest
import torch
from torch import Tensor

from decoder.data.batches import Batch, pack
from decoder.model import decoders
from decoder.model.decoders import Decoder
from decoder.model.options import ModelOptions
from decoder.training.objectives import cross_entropy, draw, mix_in_own_words, reinforce
from decoder.training.options import ReinforceOptions
from pipeline.vocabulary import BOS, EOS, PAD
from tests.decoder.conftest import CHANNELS, WORDS

LONGEST = 6


def build(dropout: float = 0.0) -> Decoder:
    torch.manual_seed(1)
    options = ModelOptions(hidden=16, attention=12, dropout=dropout)
    return decoders.build(options, WORDS, CHANNELS)


def test_label_smoothing_spreads_over_the_words_that_can_be_written(batch):
    model = build()
    words = pack(batch.tokens_BT, batch.image_B)
    log_probability = model(model.encode(batch.features), words).log_softmax(1)
    known = words.targets_P >= EOS
    target = log_probability[known].gather(1, words.targets_P[known][:, None] - EOS).squeeze(1)
    expected = -(0.9 * target + 0.1 * log_probability[known].mean(1)).mean()
    torch.testing.assert_close(cross_entropy(model, batch, label_smoothing=0.1).loss, expected)


def test_own_words_replace_inputs_only_by_what_the_model_would_write(batch):
    """With an almost certain model, each own word is the model's choice for that very place."""
    model = build()
    with torch.no_grad():
        model.output.weight.mul_(1e4)
    memory, words = model.encode(batch.features), pack(batch.tokens_BT, batch.image_B)
    choice_P = model(memory, words).argmax(1) + EOS
    mixed = mix_in_own_words(model, memory, words, probability=1.0)
    assert torch.equal(mixed.targets_P, words.targets_P)
    for caption in range(len(batch.tokens_BT)):
        mine = words.caption_P == caption
        assert mixed.inputs_P[mine].tolist() == [BOS, *choice_P[mine][:-1].tolist()]


def test_own_words_have_the_given_probability(batch):
    model = build()
    tokens = batch.tokens_BT.repeat(400, 1)
    words = pack(tokens, batch.image_B.repeat(400))
    torch.manual_seed(2)
    mixed = mix_in_own_words(model, model.encode(batch.features), words, probability=0.25)
    later = words.inputs_P != BOS
    changed = (mixed.inputs_P != words.inputs_P)[later].float().mean().item()
    # A flat model draws the same word as the caption's about once in 17.
    assert changed == pytest.approx(0.25 * (1 - 1 / (WORDS - EOS)), abs=0.02)


class CountWord:
    """Rewards each occurrence of one word; stands in for CIDEr-D, whose own tests are elsewhere."""

    def __init__(self, word: int) -> None:
        self.word = word

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        assert (samples != eos).any()
        return (samples == self.word).sum(1).float()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("baseline", ["greedy", "mean"])
def test_the_gradient_is_that_of_the_expected_reward(baseline, temperature, batch: Batch):
    """REINFORCE estimates d E[reward]; compared with its exact value over all short captions."""
    model, reward, longest = build(), CountWord(5), 2
    one = batch._replace(
        image_ids=batch.image_ids[:1],
        features=batch.features.each(lambda t: t[:1]),
    )
    known = range(EOS + 1, WORDS)
    every = [[EOS, PAD]] + [[w, EOS] for w in known] + [[w, v] for w in known for v in known]
    tokens = torch.tensor(every)
    words = pack(tokens, torch.zeros(len(every), dtype=torch.int64))
    chosen = (model(model.encode(one.features), words) / temperature).log_softmax(1)
    chosen = chosen.gather(1, words.targets_P[:, None] - EOS).squeeze(1)
    log_probability = torch.zeros(len(every)).index_add(0, words.caption_P, chosen)
    expected_reward = (log_probability.exp() * reward(one.image_ids, tokens, EOS)).sum()
    (exact,) = torch.autograd.grad(expected_reward, model.output.bias)

    options = ReinforceOptions(samples=20_000, baseline=baseline, temperature=temperature)
    torch.manual_seed(2)
    estimate = reinforce(model.eval(), one, reward, options, longest)
    (found,) = torch.autograd.grad(estimate.loss, model.output.bias)
    mean_length = 2 - log_probability.exp()[0].item()  # the loss is a mean over words
    torch.testing.assert_close(-found * mean_length, exact, atol=2e-3, rtol=0.05)
    assert estimate.reward.item() == pytest.approx(expected_reward.item(), abs=0.01)


def test_the_end_token_is_part_of_what_is_rewarded_and_learned(batch):
    """Without it in the loss, captions end in mid-sentence and the score rises."""
    seen: list[Tensor] = []

    def reward(image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        seen.append(samples)
        return (samples == eos).any(1).float()

    model = build().eval()
    torch.manual_seed(2)
    options = ReinforceOptions(samples=200)
    result = reinforce(model, batch, reward, options, LONGEST)
    assert (seen[0] == EOS).any()
    (gradient,) = torch.autograd.grad(result.loss, model.output.bias)
    assert gradient[0] < 0, "the end token must become more probable where it is rewarded"


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["show_tell", "att2in", "updown"])
def test_samples_are_learned_as_if_read_again_under_teacher_forcing(name, cell, batch: Batch):
    """Gradients flow through the sampling pass, from which samples that have ended drop out."""
    torch.manual_seed(1)
    options = ModelOptions(model=name, cell=cell, hidden=16, attention=12)
    model = decoders.build(options, WORDS, CHANNELS).double().eval()
    features = batch.features.each(torch.Tensor.double)
    torch.manual_seed(2)
    drawn = draw(model, model.encode(features), 5, LONGEST, temperature=0.7)
    weight_S = torch.randn(len(drawn.tokens_ST), dtype=torch.float64)
    loss = (weight_S[drawn.sample_P] * drawn.surprise_P).sum()
    found = torch.autograd.grad(loss, list(model.parameters()))

    lengths = (drawn.tokens_ST != PAD).sum(1)
    assert len(set(lengths.tolist())) > 2
    memory = model.encode(features)
    words = pack(drawn.tokens_ST, memory.rows(len(drawn.tokens_ST)).image_B)
    log_probability_PV = (model(memory, words) / 0.7).log_softmax(1)
    read = log_probability_PV.gather(1, words.targets_P[:, None] - EOS).squeeze(1)
    expected = -(weight_S[words.caption_P] * read).sum()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_equal_rewards_teach_nothing(batch):
    model = build().eval()
    options = ReinforceOptions(samples=3, baseline="mean")
    result = reinforce(model, batch, lambda ids, samples, eos: torch.ones(len(samples)), options, 6)
    result.loss.backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())
