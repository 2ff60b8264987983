"""Scores of each data set of a work directory that holds several."""

import json

import pytest

from evaluation.score import main
from evaluation.toolkit import score
from pipeline import captions


def test_scores_of_a_source_are_those_of_its_images_alone(work, write_results, written, capsys):
    """Their document frequencies, too, are those of the source's own references."""
    content = json.loads((work / "captions.json").read_text())
    for image in content["images"]:
        if image["id"] <= 5:
            image["source"] = "mine"
    (work / "captions.json").write_text(json.dumps(content))
    results = write_results(written)
    given = ["--captions", str(work / "captions.json"), "--results", str(results)]
    assert main([*given, "--bootstrap", "10"]) == 0
    assert "mine, 5 images: Bleu_1 " in capsys.readouterr().out
    sources = json.loads(results.with_name("scores_val.json").read_text())["sources"]
    assert {name: record["images"] for name, record in sources.items()} == {"mine": 5, "drawn": 7}
    references = {
        image.id: [caption.text for caption in image.captions]
        for image in captions.load(work / "captions.json").split("val")
        if image.source == "mine"
    }
    candidates = {image: written[image] for image in references}
    alone = score(references, candidates, ("Bleu", "ROUGE_L", "CIDEr")).corpus
    assert {name: sources["mine"]["corpus"][name] for name in alone} == pytest.approx(alone)
    low, high = sources["mine"]["intervals"]["CIDEr"]
    assert low <= sources["mine"]["corpus"]["CIDEr"] <= high
