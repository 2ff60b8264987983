"""Greedy, beam search and sampling, against plainly written ones and against enumeration."""

import itertools

import pytest
import torch
from torch import Tensor

from decoder import models
from decoder.batches import Features, pack, pad
from decoder.generate import beam_search, generate, greedy, sample
from decoder.models import Decoder
from decoder.options import GenerateOptions, ModelOptions
from pipeline.vocabulary import BOS, EOS, PAD, UNK

CHANNELS, REGIONS, IMAGES = 6, 4, 3
EVERY_MODEL = pytest.mark.parametrize("name", ["show_tell", "att2in", "updown"])


def build(name: str, words: int = 12, sharpness: float = 8.0) -> Decoder:
    """A decoder whose random distribution is far enough from flat for searches to differ."""
    torch.manual_seed(3)
    model = models.build(ModelOptions(model=name, hidden=8, attention=8), words, CHANNELS).eval()
    with torch.no_grad():
        model.word_embedding.weight.mul_(sharpness)
        model.output.weight.mul_(sharpness)
    return model


@pytest.fixture
def features() -> Features:
    torch.manual_seed(4)
    return Features(torch.rand(IMAGES, REGIONS, CHANNELS) * 3, torch.rand(IMAGES, CHANNELS) * 3)


@torch.no_grad()
def log_probabilities(model: Decoder, features: Features, captions: list[list[int]]) -> Tensor:
    """Score captions of every image under teacher forcing: [images, captions]."""
    memory = model.encode(features)
    rows = pad(captions * IMAGES)
    words = pack(rows, torch.arange(IMAGES).repeat_interleave(len(captions)))
    chosen = model(memory, words).log_softmax(1).gather(1, (words.targets_P - EOS)[:, None])
    total = torch.zeros(len(rows)).index_add(0, words.caption_P, chosen.squeeze(1))
    return total.view(IMAGES, -1)


def every_caption(words: int, longest: int) -> list[list[int]]:
    """All captions of at most `longest` words, and those cut off one word later."""
    known = range(EOS + 1, words)
    ended = [
        [*caption, EOS]
        for length in range(longest + 1)
        for caption in itertools.product(known, repeat=length)
    ]
    return ended + [list(caption) for caption in itertools.product(known, repeat=longest + 1)]


@EVERY_MODEL
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_captions(name, length_penalty, features):
    model = build(name, words=EOS + 4)
    captions = every_caption(words=EOS + 4, longest=3)
    scores = log_probabilities(model, features, captions)
    scores = scores / torch.tensor([float(len(c)) for c in captions]) ** length_penalty
    found = beam_search(model, model.encode(features), len(captions), 3, length_penalty)
    for image in range(IMAGES):
        best = captions[int(scores[image].argmax())]
        assert [t for t in found.tokens_IKT[image, 0].tolist() if t != PAD] == best


@EVERY_MODEL
def test_a_narrow_beam_equals_one_written_plainly(name, features):
    model, width, longest = build(name), 3, 6
    found = beam_search(model, model.encode(features), width, longest)
    for image in range(IMAGES):
        one = Features(*(t[image][None] for t in features))
        beam: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(longest + 1):
            candidates = []
            for score, tokens in beam:
                if tokens[-1:] == [EOS]:
                    candidates.append((score, tokens))
                    continue
                next_words = _next(model, one, tokens)
                candidates += [(score + next_words[w].item(), [*tokens, w + EOS]) for w in range(9)]
            beam = sorted(candidates, reverse=True)[:width]
        for rank, (score, tokens) in enumerate(beam):
            assert [t for t in found.tokens_IKT[image, rank].tolist() if t != PAD] == tokens
            assert found.log_probability_IK[image, rank].item() == pytest.approx(score, abs=1e-4)


@torch.no_grad()
def _next(model: Decoder, features: Features, tokens: list[int]) -> Tensor:
    memory = model.encode(features)
    state = model.start(memory, 1)
    for word in [BOS, *tokens]:
        logits, state = model.next_word(torch.tensor([word]), memory, state)
    return logits[0].log_softmax(0)


@EVERY_MODEL
def test_an_image_has_the_same_caption_alone_and_in_a_batch(name, features):
    """Images leave the batch as they finish; the others must not notice."""
    model = build(name)
    together = beam_search(model, model.encode(features), 4, 8)
    for image in range(IMAGES):
        one = Features(*(t[image][None] for t in features))
        alone = beam_search(model, model.encode(one), 4, 8)
        assert torch.equal(alone.tokens_IKT[0], together.tokens_IKT[image])


@EVERY_MODEL
def test_sampling_follows_the_model(name, features):
    """The share of each caption among many samples is its probability."""
    model, count = build(name, words=EOS + 3, sharpness=3.0), 4000
    captions = every_caption(words=EOS + 3, longest=1)
    expected = log_probabilities(model, features, captions).exp()
    torch.testing.assert_close(expected.sum(1), torch.ones(IMAGES))
    torch.manual_seed(5)
    with torch.no_grad():
        drawn = sample(model, model.encode(features), count, 1)
    for image in range(IMAGES):
        found = [tuple(t for t in row if t != PAD) for row in drawn.tokens_IKT[image].tolist()]
        shares = torch.tensor([found.count(tuple(c)) / count for c in captions])
        assert (shares - expected[image]).abs().max() < 4 * (0.25 / count) ** 0.5


@EVERY_MODEL
def test_log_probabilities_are_those_of_teacher_forcing(name, features):
    model = build(name)
    torch.manual_seed(6)
    with torch.no_grad():
        memory = model.encode(features)
        for found in (beam_search(model, memory, 2, 6), sample(model, memory, 2, 6)):
            for image, k in itertools.product(range(IMAGES), range(2)):
                tokens = [t for t in found.tokens_IKT[image, k].tolist() if t != PAD]
                expected = log_probabilities(model, features, [tokens])[image, 0]
                torch.testing.assert_close(found.log_probability_IK[image, k], expected)


def test_greedy_takes_the_most_probable_word_at_each_step(features):
    model = build("updown")
    found = greedy(model, model.encode(features), 6).tokens_IKT[:, 0]
    for image in range(IMAGES):
        one = Features(*(t[image][None] for t in features))
        tokens: list[int] = []
        while len(tokens) < 7 and tokens[-1:] != [EOS]:
            tokens.append(int(_next(model, one, tokens).argmax()) + EOS)
        assert [t for t in found[image].tolist() if t != PAD] == tokens


def test_no_way_of_writing_gives_a_special_word(features):
    model = build("updown", sharpness=0.1)  # nearly flat: every word that can come, comes
    for options in (
        GenerateOptions(beam=4),
        GenerateOptions(sample=True),
        GenerateOptions(sample=True, temperature=5.0, top_k=8, top_p=0.99),
    ):
        for _ in range(30):
            tokens = generate(model, features, options, 8).tokens_IKT
            for caption in tokens.flatten(0, 1).tolist():
                written = list(itertools.takewhile(lambda t: t != EOS, caption))
                padding = caption[len(written) + 1 :]
                assert not {PAD, BOS, UNK} & set(written)
                assert set(padding) <= {PAD}


def test_top_k_and_top_p_leave_only_the_probable_words(features):
    model = build("updown")
    first = torch.stack(
        [_next(model, Features(*(t[i][None] for t in features)), []) for i in range(IMAGES)]
    )
    order = first.argsort(1, descending=True)
    torch.manual_seed(7)
    with torch.no_grad():
        memory = model.encode(features)
        top_2 = sample(model, memory, 200, 0, top_k=2).tokens_IKT[:, :, 0] - EOS
        nucleus = sample(model, memory, 200, 0, top_p=0.6).tokens_IKT[:, :, 0] - EOS
    for image in range(IMAGES):
        assert set(top_2[image].tolist()) == set(order[image, :2].tolist())
        falling = first[image, order[image]].exp().cumsum(0)
        holds_enough = int((falling < 0.6).sum()) + 1
        assert set(nucleus[image].tolist()) <= set(order[image, :holds_enough].tolist())


def test_a_low_temperature_is_greedy(features):
    model = build("updown")
    with torch.no_grad():
        memory = model.encode(features)
        cold = sample(model, memory, 2, 6, temperature=1e-3).tokens_IKT
        assert torch.equal(cold[:, 0], greedy(model, memory, 6).tokens_IKT[:, 0])


def test_captions_are_cut_off_at_the_longest_length(features):
    model = build("updown")
    with torch.no_grad():
        model.output.bias[0] = -1e4  # never ends
        for found in (
            beam_search(model, model.encode(features), 3, 5),
            sample(model, model.encode(features), 3, 5),
        ):
            assert found.tokens_IKT.shape[2] == 6
            assert (found.tokens_IKT > EOS).all()
