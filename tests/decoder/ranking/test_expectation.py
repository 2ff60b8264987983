"""The CIDEr-D that a caption can expect, against the toolkit's and a plain regression."""

import random

import numpy as np
import pytest
import torch

from decoder.cider import SIGMA, References
from decoder.generation.generate import Generated
from decoder.ranking.expectation import RIDGE, Expectation, ReducedExpectation
from decoder.runs import checkpoints
from features.errors import UserError
from pipeline.vocabulary import EOS, PAD
from tests.decoder.ranking.test_consensus import official

IMAGES, CHANNELS, WORDS = 12, 4, range(EOS + 1, 14)


def training_captions(seed: int) -> dict[int, list[list[int]]]:
    """Of each image some captions; no word twice in one, where CIDEr-D alone clips the count."""
    draw = random.Random(seed)

    def one() -> list[int]:
        return [*draw.sample(WORDS, draw.randint(1, 9)), EOS]

    return {i: [one() for _ in range(draw.randint(1, 5))] for i in range(IMAGES)}


def expectation_of(pooled_NC: torch.Tensor, told: dict[int, list[list[int]]]) -> Expectation:
    return Expectation(pooled_NC, list(told.values()), References(told).frequencies)


def candidates_of(captions: list[list[int]]) -> Generated:
    longest = max(map(len, captions))
    tokens_KT = torch.tensor([[*c, *[PAD] * (longest - len(c))] for c in captions])
    return Generated(tokens_KT[None], torch.zeros(1, len(captions)))


def unpenalised(told: dict[int, list[list[int]]], candidate: list[int]) -> list[float]:
    """Of each training image, the mean CIDEr-D of a caption but for its penalty on length."""

    def of(other: list[int]) -> float:
        penalty = np.exp(-((len(candidate) - len(other)) ** 2) / (2 * SIGMA**2))
        return official(told, candidate, other) / penalty

    return [float(np.mean([of(other) for other in several])) for several in told.values()]


def test_what_a_caption_can_expect_is_a_regression_of_the_toolkits_cider_on_the_pictures():
    torch.manual_seed(0)
    told = training_captions(seed=1)
    pooled_NC = torch.rand(IMAGES, CHANNELS)
    expectation = expectation_of(pooled_NC, told)
    picture_1C = torch.rand(1, CHANNELS)
    strange = [[EOS + 40, EOS + 41, EOS], [EOS]]  # words that nobody wrote, and none at all
    captions = [told[3][0], told[7][0], *strange]
    (found_K,) = expectation.cider(candidates_of(captions), picture_1C)

    root_NC = pooled_NC.double().sqrt()
    deviation_C = root_NC.std(0, unbiased=False) + 1e-3
    scaled_NC = (root_NC - root_NC.mean(0)) / deviation_C
    scaled_C = (picture_1C[0].double().sqrt() - root_NC.mean(0)) / deviation_C
    covariance = scaled_NC.T @ scaled_NC
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(CHANNELS)
    for caption, expected in zip(captions, found_K.tolist(), strict=True):
        earned_N = torch.tensor(unpenalised(told, caption), dtype=torch.float64)
        slope_C = torch.linalg.solve(covariance, scaled_NC.T @ (earned_N - earned_N.mean()))
        plain = earned_N.mean() + scaled_C @ slope_C
        np.testing.assert_allclose(expected, plain.item(), atol=1e-4)
    assert found_K[0] > 1, "the case is too easy: nothing can be expected"


def test_of_pictures_that_do_not_differ_the_mean_over_all_is_expected():
    told = training_captions(seed=2)
    expectation = expectation_of(torch.ones(IMAGES, CHANNELS), told)
    candidates = candidates_of([told[0][0], told[1][0]])
    (found_K,) = expectation.cider(candidates, torch.ones(1, CHANNELS))
    mean_K = [np.mean(unpenalised(told, caption)) for caption in (told[0][0], told[1][0])]
    np.testing.assert_allclose(found_K, mean_K, atol=1e-4)


def test_each_image_of_a_batch_has_its_own_expectation():
    torch.manual_seed(0)
    told = training_captions(seed=3)
    expectation = expectation_of(torch.rand(IMAGES, CHANNELS), told)
    pooled_IC = torch.rand(3, CHANNELS)
    one = candidates_of([told[0][0], told[5][0]])
    three = Generated(one.tokens_IKT.repeat(3, 1, 1), one.log_probability_IK.repeat(3, 1))
    together = expectation.cider(three, pooled_IC)
    apart = [expectation.cider(one, pooled_1C) for pooled_1C in pooled_IC.split(1)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-6, rtol=0)
    assert (together[0] - together[1]).abs().min() > 1e-3


@pytest.mark.parametrize("count", [2, 40])
def test_reduced_by_nothing_it_expects_the_same_and_8_bits_change_little(count, tmp_path):
    torch.manual_seed(0)
    told = training_captions(seed=4)
    whole = expectation_of(torch.rand(IMAGES, CHANNELS), told)
    found = candidates_of([c for several in told.values() for c in several])
    pooled_IC = torch.rand(count, CHANNELS)
    found = Generated(
        found.tokens_IKT.repeat(count, 1, 1), found.log_probability_IK.repeat(count, 1)
    )
    reduced = whole.reduced(rank=CHANNELS)
    expected_IK = whole.cider(found, pooled_IC)
    torch.testing.assert_close(reduced.cider(found, pooled_IC), expected_IK, atol=1e-4, rtol=0)

    file, made_of = tmp_path / "expectation.safetensors", {"vocabulary": "v", "fingerprint": "f"}
    reduced.save(file, made_of)
    frequencies = References(told).frequencies
    again = ReducedExpectation.load(file, made_of, frequencies, CHANNELS)
    error_IK = again.cider(found, pooled_IC) - expected_IK
    assert error_IK.abs().max() < 0.02 * expected_IK.abs().max()
    with pytest.raises(UserError, match="belongs to another captioner"):
        ReducedExpectation.load(file, {**made_of, "fingerprint": "g"}, frequencies, CHANNELS)
    with pytest.raises(UserError, match="expected 5 channels"):
        ReducedExpectation.load(file, made_of, frequencies, 5)


def test_reduced_to_few_n_grams_it_keeps_those_of_most_pictures():
    usual, rare = EOS + 1, EOS + 2
    told = {i: [[usual if i % 2 else rare + i, EOS]] for i in range(IMAGES)}
    few = expectation_of(torch.ones(IMAGES, CHANNELS), told).reduced(ngrams=3)
    candidates = candidates_of([[usual, EOS + 40, EOS], [rare, EOS + 40, EOS]])
    (found_K,) = few.cider(candidates, torch.ones(1, CHANNELS))
    assert found_K[0] > 0
    assert found_K[1] == 0


@pytest.mark.parametrize("name", ["key", "words", "words.scale", "directions", "feature_mean"])
def test_a_damaged_file_is_refused(name, tmp_path):
    told = training_captions(seed=6)
    file = tmp_path / "expectation.safetensors"
    expectation_of(torch.rand(IMAGES, CHANNELS), told).reduced().save(file, {})
    tensors, header = checkpoints.load(file, torch.device("cpu"))
    tensors[name] = tensors[name][1:].clone()
    checkpoints.save(file, tensors, header)
    with pytest.raises(UserError, match=r"expectation\.safetensors does not fit"):
        ReducedExpectation.load(file, {}, References(told).frequencies, CHANNELS)
