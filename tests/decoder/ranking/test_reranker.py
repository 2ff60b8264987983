"""The choice by what people would write of a picture, and by the joint embedding."""

import json
import shutil

import pytest
import torch

from decoder import caption
from decoder.data.readers import SplitReader
from decoder.generation.generate import Generated
from decoder.ranking.reranker import Reranker
from features.store import FeatureStore
from pipeline import captions as tables
from pipeline import vocabulary as vocabularies
from pipeline.vocabulary import PAD
from pipeline.work import RunFolder


@pytest.fixture(scope="module")
def work(captioner, tmp_path_factory):
    """The captioner's work directory, where a search may be learnt."""
    return shutil.copytree(captioner, tmp_path_factory.mktemp("reranking") / "work")


def test_of_a_training_picture_its_own_caption_wins_against_those_of_others(work):
    """The regression has seen it; the decoder finds all of the captions equally likely."""
    run = RunFolder(work / "runs" / "captioner")
    vocabulary = vocabularies.load(run.vocabulary)
    reranker = Reranker.of(run, vocabulary, json.loads(run.config.read_text())["features"])
    table, store = tables.load(work / "captions.json"), FeatureStore(work / "features.h5")
    reader = SplitReader(store, table, "train")
    told = [vocabulary.encode(image.captions[0].tokens) for image in reader.images]
    places = [0, 3, 5, 8]
    # Those of two other images first: an image's own one is the last.
    others = [[told[place - 1], told[place + 1], told[place]] for place in places]
    longest = max(len(caption) for several in others for caption in several)
    rows = [[[*c, *[PAD] * (longest - len(c))] for c in several] for several in others]
    found = Generated(torch.tensor(rows), torch.full((len(places), 3), -1.0))
    _, expected_IK, cosine_IK = reranker.judge(found, reader.features(places), 1, False)
    assert (expected_IK.argmax(1) == 2).all()
    assert (cosine_IK.argmax(1) == 2).all()
    ordered = reranker(found, reader.features(places), 1, False)
    assert ordered.tokens_IKT[:, 0].tolist() == [several[2] for several in rows]


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
