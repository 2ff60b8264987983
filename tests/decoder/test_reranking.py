"""The choice by neighbours' captions and the joint embedding, against a plain computation."""

import json
import shutil

import numpy as np
import pytest
import torch

from decoder import caption, reranking
from decoder.batches import SplitReader
from decoder.consensus import agreement
from decoder.generate import Generated
from decoder.reranking import Reranker
from decoder.reward import References
from decoder.runs import RunFolder
from features.store import FeatureStore
from pipeline import captions as tables
from pipeline import vocabulary as vocabularies
from pipeline.vocabulary import EOS, PAD
from tests.decoder.test_consensus import CANDIDATES, generated, official, random_case


@pytest.fixture(scope="module")
def work(captioner, tmp_path_factory):
    """The captioner's work directory, where a search may be learnt."""
    return shutil.copytree(captioner, tmp_path_factory.mktemp("reranking") / "work")


def test_agreement_with_what_others_wrote_is_the_weighted_mean_of_the_toolkits_cider():
    training, candidates = random_case(seed=3)
    captions = [training[i] for i in (5, 0, 7, 9)]  # of unlike numbers
    torch.manual_seed(0)
    weights = [torch.rand(len(told)).softmax(0).tolist() for told in captions]
    found = agreement(generated(candidates), captions, weights, References(training).frequencies)
    expected = [
        sum(w * official(training, c, other) for w, other in zip(of, told, strict=True))
        for several, told, of in zip(candidates, captions, weights, strict=True)
        for c in several
    ]
    assert found.shape == (len(candidates), CANDIDATES)
    assert max(expected) > 0.5, "the case is too easy: no candidate resembles a caption"
    np.testing.assert_allclose(found.flatten(), expected, atol=1e-5)


def test_neighbours_are_those_that_look_alike_and_a_caption_of_theirs_wins(work, monkeypatch):
    """With the picture itself among the training images, its own captions agree best."""
    monkeypatch.setattr(reranking, "NEIGHBOURS", 1)
    run = RunFolder(work / "runs" / "captioner")
    vocabulary = vocabularies.load(run.vocabulary)
    reranker = Reranker(run, vocabulary, json.loads(run.config.read_text())["features"])
    table, store = tables.load(work / "captions.json"), FeatureStore(work / "features.h5")
    reader = SplitReader(store, table, "train")
    places = [0, 3, 5]
    own = [vocabulary.encode(reader.images[place].captions[0].tokens) for place in places]
    longest = max(map(len, own))
    rows = [[*ids, *[PAD] * (longest - len(ids))] for ids in own]
    strange = [[EOS, *[PAD] * (longest - 1)] for _ in places]
    tokens_IKT = torch.tensor([[empty, right] for empty, right in zip(strange, rows, strict=True)])
    found = Generated(tokens_IKT, torch.tensor([[-1.0, -9.0]] * len(places)))
    _, by_neighbours_IK, cosine_IK = reranker.judge(found, reader.features(places), 1, False)
    assert (by_neighbours_IK[:, 1] > 1).all()
    assert (by_neighbours_IK[:, 0] == 0).all()
    assert (cosine_IK[:, 1] > cosine_IK[:, 0]).all()
    ordered = reranker(found, reader.features(places), 1, False)
    assert ordered.tokens_IKT[:, 0].tolist() == rows


def test_reranking_is_chosen_on_the_command_line_and_needs_the_work_directory(
    work, tmp_path, capsys
):
    run = work / "runs" / "captioner"
    stage = ["--split", "val", "--rerank", "--out", str(tmp_path / "out.json")]
    for options in (["--beam", "8"], ["--sample", "--samples", "8"]):
        assert caption.main(["--run", str(run), *stage, *options]) == 0
        results = json.loads((tmp_path / "out.json").read_text())
        assert len(results) == len(tables.load(work / "captions.json").split("val"))
    capsys.readouterr()
    assert caption.main(["--run", str(run), *stage, "--beam", "2"]) == 2
    assert "--rerank chooses among" in capsys.readouterr().err
    assert caption.main(["--run", str(run), *stage, "--consensus"]) == 2
    assert "give one" in capsys.readouterr().err
    alone = shutil.copytree(run, tmp_path / "alone" / "runs" / "captioner")
    picture = next(iter(sorted((work / "images").rglob("*.png"))), None) or work / "no.png"
    assert caption.main(["--run", str(alone), "--rerank", str(picture)]) == 2
    assert "use the run where it was trained" in capsys.readouterr().err
