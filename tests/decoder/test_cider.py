"""The reward against the official toolkit's scorers, on the same token ids."""

import random

import numpy as np
import pytest
import torch
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer

from decoder.cider import CiderD, References, all_words_encoded
from decoder.training.rewards import Bleu4, MixedReward
from pipeline.captions import Caption, Image
from pipeline.vocabulary import EOS, PAD, Vocabulary

LONGEST = 19
WORDS = range(4, 16)


def as_text(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def random_case(seed: int) -> tuple[dict[int, list[list[int]]], list[list[list[int]]]]:
    """Return references of 30 images, and for each image the same kinds of samples."""
    draw = random.Random(seed)

    def caption(most: int = 14) -> list[int]:
        return [draw.choice(WORDS) for _ in range(draw.randint(0, most))] + [EOS]

    references = {
        7 * i + 3: [caption() for _ in range(draw.randint(1, 6))]
        for i in draw.sample(range(99), 30)
    }
    samples = [
        [
            caption(),
            [EOS],  # empty
            captions[0],
            [draw.choice(WORDS)] * LONGEST,  # maximal, one word over and over, never ended
            [draw.choice(WORDS) for _ in range(LONGEST - 1)] + [EOS],
            [99, 98, 97, EOS],  # words that no reference has
        ]
        for captions in references.values()
    ]
    return references, samples


def as_tensor(samples: list[list[list[int]]]) -> torch.Tensor:
    return torch.tensor(
        [[*s, *[PAD] * (LONGEST - len(s))] for of_image in samples for s in of_image]
    )


def official(scorer_class, references, samples, **settings) -> np.ndarray:
    """Score the k-th samples of all images together, as the toolkit scores a results file."""
    columns = []
    for column in zip(*samples, strict=True):
        scorer = scorer_class(n=4)
        for sample, captions in zip(column, references.values(), strict=True):
            scorer += (as_text(sample), [as_text(caption) for caption in captions])
        _, per_image = scorer.compute_score(**settings)
        columns.append(per_image if scorer_class is CiderScorer else per_image[3])
    return np.array(columns).T.ravel()


@pytest.mark.parametrize("seed", range(5))
def test_cider_d_equals_the_toolkits_for_every_kind_of_sample(seed):
    references, samples = random_case(seed)
    ids = torch.tensor(list(references))
    rewards = CiderD(references)(ids, as_tensor(samples), EOS)
    assert rewards.dtype == torch.float32
    expected = official(CiderScorer, references, samples)
    assert expected.max() > 1, "the case is too easy: no sample resembles a reference"
    np.testing.assert_allclose(rewards, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_bleu_4_equals_the_toolkits_for_every_kind_of_sample(seed):
    references, samples = random_case(seed)
    ids = torch.tensor(list(references))
    rewards = Bleu4(References(references))(ids, as_tensor(samples), EOS)
    expected = official(BleuScorer, references, samples, option="closest", verbose=0)
    np.testing.assert_allclose(rewards, expected, atol=1e-6)


def test_a_part_of_the_images_in_another_order_has_the_same_rewards():
    references, samples = random_case(seed=0)
    ids = torch.tensor(list(references))
    cider = CiderD(references)
    rewards = cider(ids, as_tensor(samples), EOS).view(len(ids), -1)
    chosen = torch.tensor([17, 2, 9])
    part = cider(ids[chosen], as_tensor([samples[i] for i in chosen]), EOS).view(3, -1)
    torch.testing.assert_close(part, rewards[chosen])


def test_the_mixed_reward_weighs_bleu_on_the_scale_of_cider():
    references, samples = random_case(seed=1)
    ids, tokens = torch.tensor(list(references)), as_tensor(samples)
    mixed = MixedReward(references, bleu_weight=0.25)(ids, tokens, EOS)
    expected = 0.75 * CiderD(references)(ids, tokens, EOS)
    expected += 0.25 * 10 * Bleu4(References(references))(ids, tokens, EOS)
    torch.testing.assert_close(mixed, expected)


def test_an_image_without_references_is_refused():
    cider = CiderD({1: [[5, EOS]], 2: [[6, EOS]]})
    with pytest.raises(ValueError, match="no references"):
        cider(torch.tensor([1, 3]), torch.tensor([[5, EOS], [6, EOS]]), EOS)


def test_references_without_an_image_or_a_caption_are_refused():
    for references in ({}, {1: []}):
        with pytest.raises(ValueError, match="reference for each image"):
            CiderD(references)


def test_an_unknown_word_earns_nothing_but_counts_in_the_length():
    """With one id for all unknown words, a caption full of them would match any rare word."""
    vocabulary = Vocabulary(("<pad>", "<bos>", "<unk>", "<eos>", "dog"), (0,) * 5, 1, 20)

    def image(number: int, text: str) -> Image:
        return Image(number, f"{number}.jpg", "train", (Caption(text, tuple(text.split())),))

    references = all_words_encoded([image(1, "aardvark dog"), image(2, "zebu dog")], vocabulary)
    (one,), (two,) = references.values()
    assert len(one) == len(two) == 3
    assert one[1:] == two[1:] == [vocabulary.ids["dog"], EOS]
    assert one[0] != two[0]
    assert min(one[0], two[0]) >= len(vocabulary), "a sampler could write it"
