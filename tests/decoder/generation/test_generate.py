"""Greedy decoding, beam search and sampling, against plain code and against enumeration."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from decoder.data.batches import Features, pack, pad
from decoder.generation.constraints import constraints, no_endings, no_repeated_ngram
from decoder.generation.generate import (
    Forbidden,
    Generated,
    NotFinite,
    beam_search,
    draw_words,
    generate,
    greedy,
    sample,
)
from decoder.generation.options import GenerateOptions
from decoder.model import decoders
from decoder.model.decoders import Decoder
from decoder.model.options import ModelOptions
from evaluation.diagnostics import BAD_ENDINGS, diagnose
from pipeline.vocabulary import BOS, EOS, PAD, SPECIAL, UNK, Vocabulary
from tests.decoder.generation import plain_search as plain

CHANNELS, REGIONS, IMAGES = 6, 4, 3
EVERY_MODEL = pytest.mark.parametrize("name", ["show_tell", "att2in", "updown"])


def build(name: str, words: int = 12, sharpness: float = 8.0) -> Decoder:
    """A random decoder whose distribution is far enough from flat for searches to differ."""
    torch.manual_seed(3)
    model = decoders.build(ModelOptions(model=name, hidden=8, attention=8), words, CHANNELS).eval()
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
    """Score captions of every image under teacher forcing, [images, captions]."""
    memory = model.encode(features)
    rows = pad(captions * IMAGES)
    words = pack(rows, torch.arange(IMAGES).repeat_interleave(len(captions)))
    chosen = model(memory, words).log_softmax(1).gather(1, (words.targets_P - EOS)[:, None])
    total = torch.zeros(len(rows)).index_add(0, words.caption_P, chosen.squeeze(1))
    return total.view(IMAGES, -1)


def every_caption(words: int, longest: int) -> list[list[int]]:
    """All captions of at most `longest` words, each ending in EOS."""
    return [
        [*caption, EOS]
        for length in range(longest + 1)
        for caption in itertools.product(range(EOS + 1, words), repeat=length)
    ]


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
def test_a_narrow_beam_equals_the_plain_search(name, features):
    model, width, longest = build(name), 3, 6
    found = beam_search(model, model.encode(features), width, longest)
    for image in range(IMAGES):
        (expected,) = plain.beams(partial(plain.next_word, model, of(features, image)), 3, longest)
        assert_beams(found, image, expected)


@EVERY_MODEL
@pytest.mark.parametrize(("width", "groups", "penalty"), [(4, 2, 0.0), (3, 3, 0.7), (6, 3, 0.0)])
def test_a_diverse_beam_equals_the_plain_search(name, width, groups, penalty, features):
    model, longest, diversity = build(name), 5, 1.5
    search = (width, longest, penalty, groups, diversity)
    found = beam_search(model, model.encode(features), *search)
    differs = []
    for image in range(IMAGES):
        following = partial(plain.next_word, model, of(features, image))
        each = plain.beams(following, width, longest, groups, diversity, penalty)
        expected = []
        for place in zip(*each, strict=True):  # the best of each group comes first
            expected += sorted(place, key=lambda b: -plain.rank(*b, penalty))
        assert_beams(found, image, expected)
        differs.append(len({tuple(tokens) for _, tokens in expected[:groups]}) > 1)
    assert any(differs), "the case is too easy: no group avoids another's words"


def test_groups_without_diversity_all_equal_a_smaller_beam(features):
    model = build("updown")
    memory = model.encode(features)
    one = beam_search(model, memory, 2, 6)
    both = beam_search(model, memory, 4, 6, groups=2, diversity=0.0)
    assert torch.equal(both.tokens_IKT, one.tokens_IKT.repeat_interleave(2, 1))


def of(features: Features, image: int) -> Features:
    return features.each(lambda t: t[image][None])


def assert_beams(found: Generated, image: int, expected: list[tuple[float, list[int]]]) -> None:
    for k, (score, tokens) in enumerate(expected):
        assert plain.stripped(found.tokens_IKT[image, k]) == tokens
        assert found.log_probability_IK[image, k].item() == pytest.approx(score, abs=1e-4)


@EVERY_MODEL
def test_an_image_has_the_same_caption_alone_and_in_a_batch(name, features):
    """Images leave the batch as they finish, which must not change the others."""
    model = build(name)
    together = beam_search(model, model.encode(features), 4, 8)
    for image in range(IMAGES):
        one = of(features, image)
        alone = beam_search(model, model.encode(one), 4, 8)
        assert torch.equal(alone.tokens_IKT[0], together.tokens_IKT[image])


@EVERY_MODEL
def test_sampling_follows_the_model(name, features):
    """The share of each caption among many samples is its probability, cut off or not."""
    model, count = build(name, words=EOS + 3, sharpness=3.0), 4000
    captions = every_caption(words=EOS + 3, longest=1)
    captions += [c[:2] for c in every_caption(words=EOS + 3, longest=2) if len(c) == 3]
    expected = log_probabilities(model, features, captions).exp()
    torch.testing.assert_close(expected.sum(1), torch.ones(IMAGES))
    torch.manual_seed(5)
    with torch.no_grad():
        drawn = sample(model, model.encode(features), count, 2)
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
        one = of(features, image)
        tokens: list[int] = []
        while len(tokens) < 6 and tokens[-1:] != [EOS]:
            tokens.append(int(plain.next_word(model, one, tokens).argmax()) + EOS)
        tokens += [EOS] * (tokens[-1] != EOS)
        assert [t for t in found[image].tolist() if t != PAD] == tokens


def test_no_method_generates_a_special_word(features):
    model = build("updown", sharpness=0.1)  # nearly flat: every possible word is drawn
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
    first = torch.stack([plain.next_word(model, of(features, i), []) for i in range(IMAGES)])
    order = first.argsort(1, descending=True)
    torch.manual_seed(7)
    with torch.no_grad():
        memory = model.encode(features)
        top_2 = sample(model, memory, 200, 1, top_k=2).tokens_IKT[:, :, 0] - EOS
        nucleus = sample(model, memory, 200, 1, top_p=0.6).tokens_IKT[:, :, 0] - EOS
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
        assert torch.equal(cold[:, 0], greedy(model, memory, 6).tokens_IKT[:, 0, :6])


def test_no_caption_is_longer_than_the_maximum(features):
    """A search ends it there; a sample is cut off, so that its distribution stays the model's."""
    model = build("updown")
    with torch.no_grad():
        model.output.bias[0] = -1e4  # never ends by itself
        memory = model.encode(features)
        searched = beam_search(model, memory, 3, 5).tokens_IKT
        sampled = sample(model, memory, 3, 5).tokens_IKT
    assert searched.shape[2] == 6
    assert (searched[:, :, :5] > EOS).all()
    assert (searched[:, :, 5] == EOS).all()
    assert sampled.shape[2] == 5
    assert (sampled > EOS).all()


# Constraints, each compared with a plain predicate on captions.

BAD = [EOS + 1, EOS + 3]


def repeats(tokens: list[int], n: int) -> bool:
    words = [token for token in tokens if token != EOS]
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) < len(ngrams)


def ends_badly(tokens: list[int]) -> bool:
    words = [token for token in tokens if token != EOS]
    return not words or words[-1] in BAD


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_caption_that_keeps_the_constraints(length_penalty, features):
    model = build("updown", words=EOS + 4)
    captions = every_caption(words=EOS + 4, longest=4)
    scores = log_probabilities(model, features, captions)
    scores = scores / torch.tensor([float(len(c)) for c in captions]) ** length_penalty
    memory = model.encode(features)
    for forbidden, breaks in (
        (no_repeated_ngram(2, EOS + 4), partial(repeats, n=2)),
        (no_endings(BAD, EOS + 4, 4), ends_badly),
    ):
        search = (len(captions), 4, length_penalty)
        found = beam_search(model, memory, *search, forbidden=forbidden)
        kept = torch.tensor([not breaks(c) for c in captions])
        for image in range(IMAGES):
            best = captions[int(scores[image].where(kept, -torch.inf).argmax())]
            assert plain.stripped(found.tokens_IKT[image, 0]) == best
            finite = found.log_probability_IK[image] > -torch.inf
            assert int(finite.sum()) == int(kept.sum()), (
                "exactly the captions that keep it have a probability"
            )


def test_samples_follow_the_model_among_the_words_that_are_left(features):
    """At each step the probabilities of the words left are renormalised."""
    model, count, words = build("updown", words=EOS + 4, sharpness=3.0), 4000, EOS + 4
    forbidden = no_endings(BAD, words, 2)
    torch.manual_seed(5)
    with torch.no_grad():
        drawn = sample(model, model.encode(features), count, 2, forbidden=forbidden)
    for image in range(IMAGES):
        found = [tuple(plain.stripped(row)) for row in drawn.tokens_IKT[image]]
        expected: dict[tuple[int, ...], float] = {}
        following = partial(plain.next_word, model, of(features, image))
        first = following([]).exp()
        first[0] = 0  # an empty caption ends badly
        for word in range(1, 4):
            second = following([word + EOS]).exp()
            second[[w - EOS for w in BAD]] = 0
            if word + EOS in BAD:
                second[0] = 0
            for last in range(4):
                share = first[word] / first.sum() * second[last] / second.sum()
                expected[(word + EOS, last + EOS)] = share.item()
        assert sum(expected.values()) == pytest.approx(1)
        for caption, share in expected.items():
            assert abs(found.count(caption) / count - share) < 4 * (0.25 / count) ** 0.5
            if share == 0:
                assert caption not in found


def named_vocabulary() -> Vocabulary:
    """A vocabulary with enough words that may end a caption for one to be always left."""
    words = (*SPECIAL, *sorted(BAD_ENDINGS)[:5], *(f"word{i}" for i in range(9)))
    return Vocabulary(words, (0,) * len(words), 1, 20)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"beam": 1},
        {"beam": 4},
        {"beam": 4, "groups": 4, "diversity": 9.0},
        {"sample": True, "samples": 20},
        {"sample": True, "samples": 20, "temperature": 0.1, "top_k": 1},
        {"sample": True, "samples": 20, "top_p": 0.1},
    ],
    ids=str,
)
def test_no_weights_break_the_constraints(options, seed, features):
    """Bad words are ten thousand times as probable as others, and EOS is forced or avoided."""
    vocabulary, longest = named_vocabulary(), 8
    bad = [vocabulary.ids[word] for word in BAD_ENDINGS & set(vocabulary.words)]
    model = build("updown", words=len(vocabulary), sharpness=20.0)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.output.bias[0] = (-50.0, 50.0)[seed % 2]
        model.output.bias[[word - EOS for word in bad]] += 9.0

    def written(**constrained: object) -> list[list[int]]:
        chosen = GenerateOptions(**options, **constrained)
        forbidden = constraints(chosen, vocabulary, longest)
        tokens = generate(model, features, chosen, longest, forbidden).tokens_IKT
        return [vocabulary.strip(caption) for caption in tokens.flatten(0, 1).tolist()]

    def broken(captions: list[list[int]]) -> bool:
        return any(not c or c[-1] in bad or repeats(c, 3) for c in captions)

    def phrases_repeated(captions: list[list[int]]) -> float:
        return diagnose(vocabulary.decode(caption) for caption in captions)["repeated_phrases"]

    free = written(repeat_phrases=True)
    easy = "the case is too easy: nothing is broken without constraints"
    assert broken(free), easy
    assert not broken(written(repeat_phrases=True, no_bad_endings=True, no_repeat_ngram=3))
    assert not phrases_repeated(written())
    if seed % 2 == 0:  # the other seeds end at once
        assert phrases_repeated(free), easy


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("dog", ["dog"]),
        ("a dog", ["dog"]),
        ("a dog a", ["a", "dog"]),
        ("a dog and", ["and", "dog"]),
        ("a dog and a", ["a", "dog"]),
        ("a dog runs a dog", ["dog", "runs"]),
        ("a dog and a cat and", ["and", "cat"]),
        ("in a dog and in a", ["a", "dog"]),
    ],
)
def test_immediate_repetitions_are_forbidden(text: str, forbidden: list[str]) -> None:
    words = ("a", "and", "cat", "dog", "in", "runs")
    vocabulary = Vocabulary((*SPECIAL, *words), (0,) * (len(words) + len(SPECIAL)), 1, 20)
    rule = constraints(GenerateOptions(), vocabulary, 20)
    assert rule is not None
    so_far = torch.tensor([vocabulary.encode(text.split())[:-1]])
    (mask,) = rule(so_far).tolist()
    found = {word for word in words if mask[vocabulary.ids[word] - EOS]}
    assert found == set(forbidden)
    for word in words:
        repeated = diagnose([f"{text} {word}"])["repeated_phrases"] > 0
        assert repeated == (word in found)


def test_a_caption_that_cannot_go_on_ends(features):
    """All words are bad endings here, so a caption has to end with one."""
    vocabulary = Vocabulary((*SPECIAL, "a", "the"), (0,) * 6, 1, 20)
    model = build("updown", words=len(vocabulary))
    for options in (
        GenerateOptions(beam=3, no_bad_endings=True, no_repeat_ngram=2),
        GenerateOptions(sample=True, no_bad_endings=True, no_repeat_ngram=2),
    ):
        forbidden = constraints(options, vocabulary, 6)
        found = generate(model, features, options, 6, forbidden)
        assert (found.log_probability_IK[:, 0] > -torch.inf).all()
        for caption in found.tokens_IKT[:, 0]:
            assert len(plain.stripped(caption)) > 1
            assert not repeats(plain.stripped(caption), 2)


def test_without_constraints_nothing_is_computed():
    assert constraints(GenerateOptions(repeat_phrases=True), named_vocabulary(), 8) is None


def test_a_constraint_sees_the_captions_so_far(features):
    """Those of the current beams, after other images have left the batch."""
    model, seen = build("updown"), []

    def watch(so_far_Bt: Tensor) -> Tensor:
        seen.append(so_far_Bt)
        return torch.zeros(len(so_far_Bt), 9, dtype=torch.bool)

    watching: Forbidden = watch
    memory = model.encode(features)
    found = beam_search(model, memory, 2, 6, forbidden=watching)
    assert torch.equal(found.tokens_IKT, beam_search(model, memory, 2, 6).tokens_IKT)
    assert [tokens.shape[1] for tokens in seen] == list(range(len(seen)))
    final = {tuple(row) for row in found.tokens_IKT.flatten(0, 1)[:, : len(seen) - 1].tolist()}
    assert final & {tuple(row) for row in seen[-1].tolist()}


def test_words_are_drawn_with_their_probabilities_and_impossible_ones_never():
    torch.manual_seed(0)
    probability = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0, 0.9]])
    drawn = draw_words(probability.repeat(20_000, 1)).view(-1, 2)
    for column, expected in zip(drawn.T, probability, strict=True):
        share = column.bincount(minlength=6) / len(column)
        assert (share[expected == 0] == 0).all()
        torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_the_largest_random_number_draws_no_impossible_word(monkeypatch):
    """1 is never drawn, but a product with the number just below it may be rounded up."""
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)
    assert draw_words(torch.tensor([[0.3, 0.7, 0.0]])).tolist() == [1]


def test_probabilities_that_are_nan_are_refused():
    with pytest.raises(NotFinite):
        draw_words(torch.tensor([[0.3, float("nan"), 0.0]]))
