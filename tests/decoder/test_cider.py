"""The reward against the official toolkit's scorers, on the same token ids."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from torch.utils._python_dispatch import TorchDispatchMode

from decoder.cider import CiderD, References, Reward, all_words_encoded
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


class Captured(TorchDispatchMode):
    """Refuses operations that wait for a GPU, and notes the shapes of all others' results.

    A CUDA graph can capture only what passes, and replay it only if the shapes stay the same.
    """

    WAITING = ("nonzero", "unique", "is_nonzero", "_local_scalar_dense", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        name = func.overloadpacket.__name__
        assert not name.startswith(self.WAITING), f"{name} waits for the GPU"
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not masks, f"{name} by a mask waits for the GPU"
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple) else (results,):
            self.shapes.append((name, result.shape))
        return results


@pytest.mark.parametrize(
    "reward_of", [CiderD, Bleu4, lambda references: MixedReward(references, 0.5)]
)
def test_scoring_can_be_captured_for_any_samples_of_one_size(
    reward_of: Callable[[dict[int, list[list[int]]]], Reward],
) -> None:
    references, samples = random_case(seed=2)
    reward, ids, tokens = reward_of(references), torch.tensor(list(references)), as_tensor(samples)
    expected = reward(ids, tokens, EOS).view(len(ids), -1)
    shapes = []
    for chosen in ([3, 11, 4, 20], [25, 0, 7, 4]):  # with other numbers of references
        rows = reward.references.rows(ids[chosen], tokens.device)
        given = tokens.view(len(ids), -1, LONGEST)[chosen].flatten(0, 1)
        with Captured() as captured:
            rewards = reward.score(rows, given, EOS)
        assert torch.equal(rewards.view(len(chosen), -1), expected[chosen])
        shapes.append(captured.shapes)
    assert shapes[0] == shapes[1]
