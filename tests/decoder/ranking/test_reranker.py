"""Reranking by the regression on training captions and by the joint embedding."""

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
    """A copy of the captioner's work directory, in which an embedding may be trained."""
    return shutil.copytree(captioner, tmp_path_factory.mktemp("reranking") / "work")


def test_the_caption_of_a_training_picture_wins_against_those_of_others(work):
    """The regression was fitted to it. All captions are equally likely for the decoder."""
    run = RunFolder(work / "runs" / "captioner")
    vocabulary = vocabularies.load(run.vocabulary)
    reranker = Reranker.of(run, vocabulary, json.loads(run.config.read_text())["features"])
    table, store = tables.load(work / "captions.json"), FeatureStore(work / "features.h5")
    reader = SplitReader(store, table, "train")
    captions = [vocabulary.encode(image.captions[0].tokens) for image in reader.images]
    places = [0, 3, 5, 8]
    # An image's own caption is the last, after those of two other images.
    chosen = [[captions[place - 1], captions[place + 1], captions[place]] for place in places]
    longest = max(len(caption) for of_image in chosen for caption in of_image)
    rows = [[[*c, *[PAD] * (longest - len(c))] for c in of_image] for of_image in chosen]
    candidates = Generated(torch.tensor(rows), torch.full((len(places), 3), -1.0))
    scores = reranker.scores(candidates, reader.features(places), 1, False)
    assert (scores.expectation_IK.argmax(1) == 2).all()
    assert (scores.cosine_IK.argmax(1) == 2).all()
    ordered, scores = reranker(candidates, reader.features(places), 1, False)
    assert ordered.tokens_IKT[:, 0].tolist() == [of_image[2] for of_image in rows]


def test_the_command_line_offers_reranking_which_needs_the_work_directory(work, tmp_path, capsys):
    run = work / "runs" / "captioner"
    stage = ["--split", "val", "--rerank", "--out", str(tmp_path / "out.json")]
    for options in (["--beam", "8"], ["--sample", "--samples", "8"]):
        assert caption.main(["--run", str(run), *stage, *options]) == 0
        results = json.loads((tmp_path / "out.json").read_text())
        assert len(results) == len(tables.load(work / "captions.json").split("val"))
    capsys.readouterr()
    assert caption.main(["--run", str(run), *stage, "--beam", "2"]) == 2
    assert "--rerank needs --beam or --samples of at least 3" in capsys.readouterr().err
    assert caption.main(["--run", str(run), *stage, "--consensus"]) == 2
    assert "give only --rerank" in capsys.readouterr().err
    alone = shutil.copytree(run, tmp_path / "alone" / "runs" / "captioner")
    picture = next(iter(sorted((work / "images").rglob("*.png"))), None) or work / "no.png"
    assert caption.main(["--run", str(alone), "--rerank", str(picture)]) == 2
    assert "use the run in the work directory where it was trained" in capsys.readouterr().err
