"""Consensus against a plain computation with the toolkit's CIDEr-D."""

import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs

from decoder import caption
from decoder.cider import Frequencies, References
from decoder.generation.generate import Generated
from decoder.ranking.consensus import (
    by_consensus,
    count_frequencies,
    expected_cider,
    frequencies_of,
    load_frequencies,
    save_frequencies,
)
from decoder.runs import checkpoints
from features.errors import UserError
from pipeline import captions as tables
from pipeline import vocabulary as vocabularies
from pipeline.vocabulary import EOS, PAD
from pipeline.work import RunFolder

LONGEST, CANDIDATES = 12, 5


def as_text(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def random_case(seed: int) -> tuple[dict[int, list[list[int]]], list[list[list[int]]]]:
    """Training captions, and for some images candidates that are similar, empty or cut off."""
    draw = random.Random(seed)
    words = range(EOS + 1, 14)

    def one() -> list[int]:
        return [draw.choice(words) for _ in range(draw.randint(1, 9))] + [EOS]

    training = {i: [one() for _ in range(draw.randint(1, 5))] for i in range(12)}
    candidates = []
    for _ in range(4):
        base = one()
        changed = [draw.choice(words), *base[1:]]
        candidates.append([base, changed, one(), [EOS], [draw.choice(words)] * LONGEST])
    return training, candidates


def generated(candidates: list[list[list[int]]]) -> Generated:
    padded = [[c + [PAD] * (LONGEST - len(c)) for c in of_image] for of_image in candidates]
    tokens = torch.tensor(padded)
    return Generated(tokens, -torch.rand(tokens.shape[:2]))


def official(training: dict[int, list[list[int]]], candidate: list[int], other: list[int]) -> float:
    """CIDEr-D of one caption against one reference, by the toolkit.

    A scorer takes document frequencies and the number of images from its own references. So it gets
    as many images as the training captions have, and their document frequencies.
    """
    scorer = CiderScorer(n=4)
    for _ in training:
        scorer += (as_text(candidate), [as_text(other)])
    frequencies: dict[tuple[str, ...], float] = defaultdict(float)
    for references in training.values():
        for ngram in {n for r in cook_refs([as_text(c) for c in references]) for n in r}:
            frequencies[ngram] += 1
    scorer.document_frequency = frequencies
    return float(scorer.compute_cider()[0])


@pytest.mark.parametrize("seed", range(2))
def test_expected_cider_is_the_mean_of_the_toolkits_cider_against_the_other_candidates(seed):
    training, candidates = random_case(seed)
    torch.manual_seed(seed)
    weight_IK = torch.rand(len(candidates), CANDIDATES)
    cider_IK = expected_cider(generated(candidates), weight_IK, References(training).frequencies)
    expected = []
    for of_image, weights in zip(candidates, weight_IK.tolist(), strict=True):
        for i, candidate in enumerate(of_image):
            others = [j for j in range(CANDIDATES) if j != i]
            each = [weights[j] * official(training, candidate, of_image[j]) for j in others]
            expected.append(sum(each) / sum(weights[j] for j in others))
    assert max(expected) > 1, "the case is too easy: no candidate resembles another"
    np.testing.assert_allclose(cider_IK.flatten(), expected, atol=1e-5)


@pytest.mark.parametrize("sampled", [True, False])
def test_the_candidate_that_agrees_best_is_first_and_an_unused_beam_last(sampled):
    """Samples have equal weights, beams the third root of their probability."""
    training, candidates = random_case(seed=8)  # one without ties
    torch.manual_seed(0)
    frequencies = References(training).frequencies
    unsorted = generated(candidates)
    unsorted.log_probability_IK[1, 2] = -torch.inf
    unsorted.log_probability_IK.mul_(9)
    ordered = by_consensus(unsorted, frequencies, sampled)
    for image, of_image in enumerate(candidates):
        used = [k for k in range(CANDIDATES) if (image, k) != (1, 2)]
        real = [of_image[k] for k in used]
        weights = [1.0] * len(real)
        if not sampled:
            weights = (unsorted.log_probability_IK[image, used] / 3).exp().tolist()
        agreement = [
            np.average(
                [official(training, c, o) for j, o in enumerate(real) if j != i],
                weights=[w for j, w in enumerate(weights) if j != i],
            )
            for i, c in enumerate(real)
        ]
        best, second = sorted(agreement)[:-3:-1]
        assert best > second + 0.01, "the case is too close to call"
        expected = [real[i] for i in np.argsort(agreement, kind="stable")[::-1]]
        rows = [[t for t in row if t != PAD] for row in ordered.tokens_IKT[image].tolist()]
        assert rows[0] == expected[0]
        # A caption keeps its log-probability.
        place = of_image.index(rows[0])
        assert ordered.log_probability_IK[image, 0] == unsorted.log_probability_IK[image, place]
    assert ordered.log_probability_IK[1, -1] == -torch.inf


def test_document_frequencies_leave_out_only_n_grams_of_a_single_image():
    training, _ = random_case(seed=2)
    references = References(training)
    frequencies = references.frequencies
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    for captions in training.values():
        for ngram in {n for r in cook_refs([as_text(c) for c in captions]) for n in r}:
            counts[ngram] += 1
    assert sorted(frequencies.images_U.tolist()) == sorted(n for n in counts.values() if n > 1)
    assert frequencies.images == len(training)
    assert set(frequencies.of(torch.tensor([1, -5])).tolist()) == {1}


def test_document_frequencies_survive_their_file_and_a_broken_one_is_named(tmp_path):
    training, _ = random_case(seed=2)
    frequencies = References(training).frequencies
    path = tmp_path / "document_frequencies.safetensors"
    save_frequencies(frequencies, path)
    again = load_frequencies(path)
    assert torch.equal(again.key_U, frequencies.key_U)
    assert torch.equal(again.images_U, frequencies.images_U)
    assert again.images == frequencies.images

    key, images = frequencies.key_U, frequencies.images_U.int()
    for tensors, header in (
        ({"ngram": key.flip(0), "images": images}, {"images": 12}),
        ({"ngram": key, "images": images[1:]}, {"images": 12}),
        ({"ngram": key.double(), "images": images}, {"images": 12}),
        ({"ngram": key, "images": images}, {"images": 2}),
        ({"ngram": key}, {"images": 12}),
        ({"ngram": key, "images": images}, None),
        ({"ngram": key, "images": images}, {"images": "many"}),
    ):
        checkpoints.save(path, tensors, header)
        with pytest.raises(UserError, match="does not hold document frequencies"):
            load_frequencies(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        load_frequencies(path)


def test_a_run_without_its_work_directory_needs_a_file_of_frequencies(captioner, tmp_path, capsys):
    run = RunFolder(captioner / "runs" / "captioner")
    vocabulary = vocabularies.load(run.vocabulary)
    counted = frequencies_of(run, vocabulary)
    table = tables.load(captioner / "captions.json")
    assert counted.images == len(table.split("train"))
    assert torch.equal(counted.key_U, count_frequencies(table, vocabulary).key_U)

    alone = Path(shutil.copytree(run.path, tmp_path / "alone" / "deep"))
    pictures = sorted((captioner / "images").iterdir())[:3]
    stage = ["--run", str(alone), "--consensus", "--captions", "2", *map(str, pictures)]
    assert caption.main(stage) == 2
    error = capsys.readouterr().err
    assert "document_frequencies.safetensors" in error
    assert "captions.json" in error
    save_frequencies(counted, alone / "document_frequencies.safetensors")
    assert caption.main(stage) == 0
    written = capsys.readouterr().out
    assert caption.main(["--run", str(run.path), *stage[2:]]) == 0
    assert capsys.readouterr().out == written


def test_empty_frequencies_make_every_n_gram_rare():
    empty = Frequencies(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 9)
    assert empty.of(torch.tensor([4, 7])).tolist() == [1, 1]


def test_the_command_line_offers_consensus_of_beams_and_of_samples(captioner, tmp_path):
    run = str(captioner / "runs" / "captioner")
    for options in (["--beam", "8"], ["--sample", "--samples", "8", "--temperature", "0.7"]):
        out = tmp_path / "out.json"
        stage = ["--run", run, "--split", "val", "--out", str(out), "--consensus", *options]
        assert caption.main(stage) == 0
        assert all(result["caption"] for result in json.loads(out.read_text()))
    assert caption.main(["--run", run, "--split", "val", "--consensus", "--beam", "2"]) == 2
