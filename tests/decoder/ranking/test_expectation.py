"""The expected CIDEr-D of captions, against the toolkit's CIDEr-D and a plain regression."""

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
    """Captions of some images, without repeated words, whose counts CIDEr-D would clip."""
    draw = random.Random(seed)

    def one() -> list[int]:
        return [*draw.sample(WORDS, draw.randint(1, 9)), EOS]

    return {i: [one() for _ in range(draw.randint(1, 5))] for i in range(IMAGES)}


def fit(pooled_NC: torch.Tensor, training: dict[int, list[list[int]]]) -> Expectation:
    return Expectation(pooled_NC, list(training.values()), References(training).frequencies)


def candidates_of(captions: list[list[int]]) -> Generated:
    longest = max(map(len, captions))
    tokens_KT = torch.tensor([[*c, *[PAD] * (longest - len(c))] for c in captions])
    return Generated(tokens_KT[None], torch.zeros(1, len(captions)))


def unpenalised(training: dict[int, list[list[int]]], candidate: list[int]) -> list[float]:
    """The mean CIDEr-D of a caption for each training image, without the penalty on length."""

    def of(other: list[int]) -> float:
        penalty = np.exp(-((len(candidate) - len(other)) ** 2) / (2 * SIGMA**2))
        return official(training, candidate, other) / penalty

    return [float(np.mean([of(other) for other in others])) for others in training.values()]


def test_the_expectation_is_a_regression_from_pictures_to_the_toolkits_cider():
    torch.manual_seed(0)
    training = training_captions(seed=1)
    pooled_NC = torch.rand(IMAGES, CHANNELS)
    expectation = fit(pooled_NC, training)
    picture_1C = torch.rand(1, CHANNELS)
    strange = [[EOS + 40, EOS + 41, EOS], [EOS]]  # words of no training caption; no words
    captions = [training[3][0], training[7][0], *strange]
    (expected_K,) = expectation.cider(candidates_of(captions), picture_1C)

    root_NC = pooled_NC.double().sqrt()
    deviation_C = root_NC.std(0, unbiased=False) + 1e-3
    scaled_NC = (root_NC - root_NC.mean(0)) / deviation_C
    scaled_C = (picture_1C[0].double().sqrt() - root_NC.mean(0)) / deviation_C
    covariance = scaled_NC.T @ scaled_NC
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(CHANNELS)
    for caption, expected in zip(captions, expected_K.tolist(), strict=True):
        cider_N = torch.tensor(unpenalised(training, caption), dtype=torch.float64)
        slope_C = torch.linalg.solve(covariance, scaled_NC.T @ (cider_N - cider_N.mean()))
        plain = cider_N.mean() + scaled_C @ slope_C
        np.testing.assert_allclose(expected, plain.item(), atol=1e-4)
    assert expected_K[0] > 1, "the case is too easy: no expectation is above 1"


def test_identical_pictures_give_the_mean_over_all_images():
    training = training_captions(seed=2)
    expectation = fit(torch.ones(IMAGES, CHANNELS), training)
    candidates = candidates_of([training[0][0], training[1][0]])
    (expected_K,) = expectation.cider(candidates, torch.ones(1, CHANNELS))
    mean_K = [
        np.mean(unpenalised(training, caption)) for caption in (training[0][0], training[1][0])
    ]
    np.testing.assert_allclose(expected_K, mean_K, atol=1e-4)


def test_images_of_a_batch_do_not_affect_each_other():
    torch.manual_seed(0)
    training = training_captions(seed=3)
    expectation = fit(torch.rand(IMAGES, CHANNELS), training)
    pooled_IC = torch.rand(3, CHANNELS)
    one = candidates_of([training[0][0], training[5][0]])
    three = Generated(one.tokens_IKT.repeat(3, 1, 1), one.log_probability_IK.repeat(3, 1))
    together = expectation.cider(three, pooled_IC)
    apart = [expectation.cider(one, pooled_1C) for pooled_1C in pooled_IC.split(1)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-6, rtol=0)
    assert (together[0] - together[1]).abs().min() > 1e-3


@pytest.mark.parametrize("count", [2, 40])
def test_full_rank_changes_nothing_and_8_bits_little(count, tmp_path):
    torch.manual_seed(0)
    training = training_captions(seed=4)
    full = fit(torch.rand(IMAGES, CHANNELS), training)
    one = candidates_of([c for captions in training.values() for c in captions])
    pooled_IC = torch.rand(count, CHANNELS)
    candidates = Generated(
        one.tokens_IKT.repeat(count, 1, 1), one.log_probability_IK.repeat(count, 1)
    )
    reduced = full.reduced(rank=CHANNELS)
    expected_IK = full.cider(candidates, pooled_IC)
    torch.testing.assert_close(reduced.cider(candidates, pooled_IC), expected_IK, atol=1e-4, rtol=0)

    file, provenance = tmp_path / "expectation.safetensors", {"vocabulary": "v", "fingerprint": "f"}
    reduced.save(file, provenance)
    frequencies = References(training).frequencies
    again = ReducedExpectation.load(file, provenance, frequencies, CHANNELS)
    error_IK = again.cider(candidates, pooled_IC) - expected_IK
    assert error_IK.abs().max() < 0.02 * expected_IK.abs().max()
    with pytest.raises(UserError, match="belongs to another captioner"):
        ReducedExpectation.load(file, {**provenance, "fingerprint": "g"}, frequencies, CHANNELS)
    with pytest.raises(UserError, match="expected 5 channels"):
        ReducedExpectation.load(file, provenance, frequencies, 5)


def test_few_n_grams_are_those_of_most_images():
    usual, rare = EOS + 1, EOS + 2
    training = {i: [[usual if i % 2 else rare + i, EOS]] for i in range(IMAGES)}
    few = fit(torch.ones(IMAGES, CHANNELS), training).reduced(ngrams=3)
    candidates = candidates_of([[usual, EOS + 40, EOS], [rare, EOS + 40, EOS]])
    (expected_K,) = few.cider(candidates, torch.ones(1, CHANNELS))
    assert expected_K[0] > 0
    assert expected_K[1] == 0


@pytest.mark.parametrize("name", ["key", "words", "words.scale", "directions", "feature_mean"])
def test_a_damaged_file_is_refused(name, tmp_path):
    training = training_captions(seed=6)
    file = tmp_path / "expectation.safetensors"
    fit(torch.rand(IMAGES, CHANNELS), training).reduced().save(file, {})
    tensors, header = checkpoints.load(file, torch.device("cpu"))
    tensors[name] = tensors[name][1:].clone()
    checkpoints.save(file, tensors, header)
    with pytest.raises(UserError, match=r"expectation\.safetensors does not fit"):
        ReducedExpectation.load(file, {}, References(training).frequencies, CHANNELS)
