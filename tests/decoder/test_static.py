"""What a GPU computes, in fixed shapes, is what a CPU computes; here both run on the CPU."""

import itertools
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from decoder.data.batches import Batch, Features
from decoder.data.layout import (
    captions_in_slots,
    captions_of_a_slot,
    images_in_slots,
    padded,
    static_on_cpu,
    without_waiting,
)
from decoder.generation.constraints import constraints, no_repeated_phrase
from decoder.generation.generate import NotFinite, draw_words, generate
from decoder.generation.options import GenerateOptions
from decoder.model import decoders
from decoder.model.decoders import MODELS, Decoder
from decoder.model.options import ModelOptions
from decoder.training import objectives
from decoder.training.objectives import Loss, cross_entropy, draw, mix_in_own_words, reinforce
from decoder.training.options import ReinforceOptions
from pipeline.vocabulary import BOS, EOS, PAD, SPECIAL, Vocabulary
from tests.decoder.conftest import CHANNELS, REGIONS, WORDS

IMAGES, EACH, LONGEST = 6, 2, 7  # of the padded batch, whose first image needs two slots
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
BOTH_CELLS = pytest.mark.parametrize("cell", ["lstm", "gru"])
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def static() -> Iterator[None]:
    with static_on_cpu():
        yield


def build(name: str, cell: str = "lstm") -> Decoder:
    torch.manual_seed(1)
    options = ModelOptions(model=name, cell=cell, hidden=16, attention=12, dropout=0.0)
    model = decoders.build(options, WORDS, CHANNELS)
    with torch.no_grad():
        model.word_embedding.weight.mul_(8)  # so that captions differ
        model.output.weight.mul_(4)
        model.output.bias[0] += 2.0
    return model


def masked(batch: Batch) -> Batch:
    """Return the batch with a number of regions that varies."""
    mask = torch.arange(REGIONS) < torch.tensor([1, REGIONS, 4, 6])[:, None]
    return batch._replace(features=Features(*batch.features[:2], mask))


def gradients(model: Decoder, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))


@EVERY_MODEL
@BOTH_CELLS
@pytest.mark.parametrize("varying", [False, True])
def test_padded_words_teach_as_packed_ones(name, cell, varying, batch: Batch) -> None:
    """The padded batch has empty slots, an image in two slots and more steps than words."""
    batch = masked(batch) if varying else batch
    model = build(name, cell)
    expected = cross_entropy(model, batch, 0.1)
    wanted = gradients(model, expected.loss)
    with static_on_cpu():
        slots = captions_in_slots(batch, IMAGES, EACH, 9)
        assert slots.tokens_BT.shape == (IMAGES * EACH, 8)
        found = cross_entropy(model, slots, 0.1)
        torch.testing.assert_close(gradients(model, found.loss), wanted, **CLOSE)
    assert_same(found, expected)


def assert_same(found: Loss, expected: Loss) -> None:
    for name, value in expected._asdict().items():
        if value is not None:
            torch.testing.assert_close(getattr(found, name), value, **CLOSE, msg=name)


class Given:
    """Draws given captions; later captions, of slots that do not count, are drawn at random."""

    def __init__(self, tokens_ST: Tensor) -> None:
        self.tokens_ST = tokens_ST

    def __call__(self, probability_BV: Tensor, sample_B: Tensor, t: int) -> Tensor:
        known = sample_B < len(self.tokens_ST)
        given = self.tokens_ST[sample_B.clamp(max=len(self.tokens_ST) - 1), t] - EOS
        return torch.where(known, given, draw_words(probability_BV)).clamp(min=0)


def samples(images: int, count: int) -> Tensor:
    """Return samples of 1 to `LONGEST` words, some of them cut off, padded."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(EOS + 1, WORDS, (images * count, LONGEST), generator=generator)
    ends = torch.randint(1, LONGEST + 2, (images * count, 1), generator=generator)
    place = torch.arange(1, LONGEST + 1)
    return tokens.masked_fill(place == ends, EOS).masked_fill(place > ends, PAD)


@EVERY_MODEL
@BOTH_CELLS
def test_full_length_samples_teach_the_same(name, cell, batch: Batch) -> None:
    model, given = build(name, cell).eval(), samples(4, 3)
    weight_S = torch.linspace(-1, 1, len(given))

    def taught() -> tuple[Tensor, list[Tensor]]:
        memory = model.encode(batch.features)
        drawn = draw(model, memory, 3, LONGEST, 0.7, Given(given))
        loss = (weight_S[drawn.sample_P] * drawn.surprise_P).sum()
        return drawn.tokens_ST, [loss, *gradients(model, loss)]

    expected = taught()
    with static_on_cpu():
        found = taught()
    assert torch.equal(found[0], given)
    assert torch.equal(expected[0], given)
    torch.testing.assert_close(found[1], expected[1], **CLOSE)


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
def test_empty_slots_count_for_nothing(baseline, batch: Batch, monkeypatch) -> None:
    """In REINFORCE; in a batch that is not idle, and in one that is."""
    model, options = build("updown").eval(), ReinforceOptions(samples=3, baseline=baseline)
    monkeypatch.setattr(objectives, "_at_random", Given(samples(4, 3)))

    def reward(image_ids: Tensor, tokens: Tensor, eos: int) -> Tensor:
        return (tokens == 5).sum(1) + image_ids.repeat_interleave(len(tokens) // len(image_ids)) / 9

    expected = reinforce(model, batch, reward, options, LONGEST)
    with static_on_cpu():
        found = reinforce(model, images_in_slots(batch, IMAGES), reward, options, LONGEST)
        idle = batch._replace(idle=True)
        nothing = reinforce(model, images_in_slots(idle, IMAGES), reward, options, LONGEST)
        unread = cross_entropy(model, captions_in_slots(idle, IMAGES, EACH, 9))
    assert_same(found, expected)
    torch.testing.assert_close(
        gradients(model, found.loss), gradients(model, expected.loss), **CLOSE
    )
    for loss in (nothing, unread):
        assert loss.loss == loss.words == loss.captions == 0


def test_slots_hold_every_caption_once(batch: Batch) -> None:
    assert captions_of_a_slot([5, 5, 6, 5, 7]) == 5
    slots = captions_in_slots(batch, 2, EACH, 99)
    assert len(slots.image_ids) == 5, "two slots are added, one by one, where a batch is small"
    captions = slots.tokens_BT.view(5, EACH, -1).tolist()
    found = [
        (int(image), [token for token in caption if token != PAD])
        for image, of_slot in zip(slots.image_ids, captions, strict=True)
        for caption in of_slot
    ]
    wanted = [
        (int(batch.image_ids[image]), [token for token in caption if token != PAD])
        for image, caption in zip(batch.image_B, batch.tokens_BT.tolist(), strict=True)
    ]
    assert [pair for pair in found if pair[1]] == wanted
    assert slots.features.pooled_IC.equal(batch.features.pooled_IC[[0, 0, 1, 2, 3]])


def test_own_words_replace_inputs_by_what_the_model_would_write(static, batch: Batch) -> None:
    model = build("updown")
    with torch.no_grad():
        model.output.weight.mul_(1e4)  # almost certain of each word
    memory = model.encode(batch.features)
    words = padded(captions_in_slots(batch, 4, EACH, 9).tokens_BT[: 4 * EACH], 4)
    choice_TB = (model(memory, words).argmax(1) + EOS).view(-1, 4 * EACH)
    every = mix_in_own_words(model, memory, words, torch.tensor(1.0))
    inputs_TB = every.inputs_P.view_as(choice_TB)
    assert (inputs_TB[0] == BOS).all()
    assert torch.equal(inputs_TB[1:], choice_TB[:-1])
    none = mix_in_own_words(model, memory, words, torch.tensor(0.0))
    assert torch.equal(none.inputs_P, words.inputs_P)


SEARCHES = [
    {"beam": 1},
    {"beam": 4},
    {"beam": 4, "groups": 2, "diversity": 1.0},
    {"beam": 3, "no_repeat_ngram": 2, "no_bad_endings": True},
    {"beam": 8, "repeat_phrases": True},
]


@EVERY_MODEL
def test_a_beam_in_which_all_stay_is_equal(name, batch: Batch) -> None:
    names = (*SPECIAL, "and", "a", "of", *(f"word{i}" for i in range(WORDS - len(SPECIAL) - 3)))
    vocabulary = Vocabulary(names, (0,) * WORDS, 1, LONGEST)
    model, features = build(name).eval(), masked(batch).features
    unlike = [30 * (values - 0.5) for values in features[:2]]  # so that captions differ
    features = Features(*unlike, features.mask_IR)
    varying = 0
    for bias, options in itertools.product((0.0, 1.0, 2.0), SEARCHES):
        with torch.no_grad():
            model.output.bias[0] = bias  # of EOS
        chosen = GenerateOptions(**options)
        forbidden = constraints(chosen, vocabulary, LONGEST)
        expected = generate(model, features, chosen, LONGEST, forbidden)
        with static_on_cpu():
            found = generate(model, features, chosen, LONGEST, forbidden)
        scores = found.log_probability_IK, expected.log_probability_IK
        torch.testing.assert_close(*scores, **CLOSE, msg=str(options))
        used = scores[1] > -torch.inf
        assert torch.equal(found.tokens_IKT[used], expected.tokens_IKT[used]), options
        lengths_I = (expected.tokens_IKT != PAD).sum(2).amax(1)
        varying += int(lengths_I.min() < lengths_I.max())
    assert varying > 3, "the cases are too easy: no image leaves before another"


@pytest.mark.parametrize("options", [{"beam": 3}, {"beam": 1}, {"sample": True, "samples": 2}])
def test_outside_of_graphs_a_search_stops_soon_after_its_last_caption(
    options, static, batch: Batch, monkeypatch
) -> None:
    model, chosen = build("updown").eval(), GenerateOptions(**options)
    with torch.no_grad():
        model.output.bias[0] = 9.0  # of EOS
    taken, next_word = [], Decoder.next_word
    monkeypatch.setattr(Decoder, "next_word", lambda *given: taken.append(0) or next_word(*given))
    found = []
    for context, steps in ((without_waiting(), 12), (nullcontext(), 4)):
        taken.clear()
        torch.manual_seed(0)
        with context:
            found.append(generate(model, batch.features, chosen, 11 + chosen.sample))
        assert len(taken) == steps
    assert torch.equal(found[0].tokens_IKT, found[1].tokens_IKT)
    assert torch.equal(found[0].log_probability_IK, found[1].log_probability_IK)


def test_a_search_with_scores_that_are_nan_is_refused_at_its_end(static, batch: Batch) -> None:
    model = build("updown").eval()
    with torch.no_grad():
        model.output.bias[3] = float("nan")
        for options in (GenerateOptions(beam=2), GenerateOptions(sample=True)):
            with pytest.raises(NotFinite):
                generate(model, batch.features, options, LONGEST)


@pytest.mark.parametrize("joining", [None, 5])
def test_phrases_by_run_length_are_equal(joining) -> None:
    """To the rule in words: the last words would equal those before them, or before "and"."""
    words, forbidden = 8, no_repeated_phrase(joining, 8)
    for length in range(9):
        so_far = torch.randint(EOS + 1, words, (200, length), generator=torch.manual_seed(length))
        found = forbidden(so_far)
        for caption, mask in zip(so_far.tolist(), found.tolist(), strict=True):
            for word in range(EOS, words):
                text, repeats = [*caption, word], False
                for n, gap in itertools.product(range(1, len(text)), (0, 1)):
                    before = text[-2 * n - gap : len(text) - n - gap]
                    between = text[len(text) - n - gap : len(text) - n]
                    joined = not gap or (joining is not None and between == [joining])
                    repeats |= len(before) == n and before == text[-n:] and joined
                assert mask[word - EOS] == (repeats and word > EOS), (text, joining)


def test_gumbel_draws_with_the_probabilities(static) -> None:
    torch.manual_seed(0)
    probability = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0, 0.9]])
    drawn = draw_words(probability.repeat(20_000, 1)).view(-1, 2)
    for column, expected in zip(drawn.T, probability, strict=True):
        share = column.bincount(minlength=6) / len(column)
        assert (share[expected == 0] == 0).all()
        torch.testing.assert_close(share, expected, atol=0.015, rtol=0)
