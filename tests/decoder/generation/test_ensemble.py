"""Ensembles of models and of views, against plain references."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageOps
from torch import Tensor

from decoder import caption
from decoder.captioning.captioner import Captioner
from decoder.captioning.writer import caption_pictures
from decoder.data.batches import Features
from decoder.generation.ensemble import Ensemble
from decoder.generation.generate import LanguageModel, beam_search, generate, sample
from decoder.generation.options import GenerateOptions
from decoder.model import decoders
from decoder.model.decoders import Decoder
from decoder.model.options import ModelOptions
from decoder.runs.folder import digest
from features.errors import UserError
from features.images import read_picture
from features.row_format import to_float16
from pipeline.vocabulary import EOS
from pipeline.work import RunFolder
from tests.decoder.generation import plain_search as plain

CHANNELS, REGIONS, IMAGES, WORDS = 6, 4, 3, 12
CPU = torch.device("cpu")


def build(name: str, seed: int, cell: str = "lstm") -> Decoder:
    torch.manual_seed(seed)
    options = ModelOptions(model=name, cell=cell, hidden=8, attention=8)
    model = decoders.build(options, WORDS, CHANNELS).eval()
    with torch.no_grad():
        model.word_embedding.weight.mul_(8.0)
        model.output.weight.mul_(8.0)
    return model


def random_features(rows: int) -> Features:
    torch.manual_seed(4)
    return Features(torch.rand(rows, REGIONS, CHANNELS) * 3, torch.rand(rows, CHANNELS) * 3)


def mean_of(members: list[tuple[Decoder, Features]]) -> Callable[[list[int]], Tensor]:
    """Return the log of the mean probability of each next word over pairs of model and features."""

    def following(tokens: list[int]) -> Tensor:
        each = [plain.next_word(model, features, tokens).exp() for model, features in members]
        return torch.stack(each).mean(0).log()

    return following


def assert_generates(
    model: LanguageModel, features: Features, members: list[list[tuple[Decoder, Features]]]
) -> None:
    """Compare a beam search with the plain one; `members` lists each image's members."""
    with torch.no_grad():
        found = beam_search(model, model.encode(features), 3, 6)
    for image, of_image in enumerate(members):
        (expected,) = plain.beams(mean_of(of_image), 3, 6)
        for k, (score, tokens) in enumerate(expected):
            assert plain.stripped(found.tokens_IKT[image, k]) == tokens
            assert found.log_probability_IK[image, k].item() == pytest.approx(score, abs=1e-4)


def row(features: Features, number: int) -> Features:
    return features.each(lambda tensor: tensor[number : number + 1])


@pytest.mark.parametrize("name", ["show_tell", "att2in", "updown"])
def test_an_ensemble_of_one_model_twice_equals_the_model(name):
    model, features = build(name, 3), random_features(IMAGES)
    both = Ensemble([model, model])
    for options in (GenerateOptions(beam=4), GenerateOptions(beam=4, groups=2)):
        alone = generate(model, features, options, 6)
        together = generate(both, features, options, 6)
        assert torch.equal(together.tokens_IKT, alone.tokens_IKT)
        torch.testing.assert_close(together.log_probability_IK, alone.log_probability_IK)


def test_an_ensemble_of_models_uses_the_mean_of_their_probabilities():
    """Even if their states differ in size and number of tensors."""
    chosen = [build("updown", 5), build("show_tell", 6, "gru"), build("att2in", 7)]
    features = random_features(IMAGES)
    members = [[(model, row(features, i)) for model in chosen] for i in range(IMAGES)]
    assert_generates(Ensemble(chosen), features, members)
    with torch.no_grad():
        memory = chosen[0].encode(features)
        alone = beam_search(chosen[0], memory, 3, 6).tokens_IKT
        together = generate(Ensemble(chosen), features, GenerateOptions(beam=3), 6).tokens_IKT
    assert not torch.equal(together, alone), "the case is too easy: the others change nothing"


def test_an_ensemble_of_views_uses_the_mean_of_their_probabilities():
    model, other, views = build("updown", 5), build("att2in", 7), 2
    features = random_features(IMAGES * views)
    members = [
        [(m, row(features, views * i + v)) for m in (model, other) for v in range(views)]
        for i in range(IMAGES)
    ]
    assert_generates(Ensemble([model, other], views), features, members)


def test_samples_of_an_ensemble_follow_the_mean():
    model, other, count = build("updown", 5), build("show_tell", 6), 4000
    features = random_features(IMAGES)
    both = Ensemble([model, other])
    torch.manual_seed(8)
    with torch.no_grad():
        drawn = sample(both, both.encode(features), count, 1).tokens_IKT[:, :, 0] - EOS
    for image in range(IMAGES):
        one = row(features, image)
        expected = mean_of([(model, one), (other, one)])([]).exp()
        shares = torch.bincount(drawn[image], minlength=WORDS - EOS) / count
        assert (shares - expected).abs().max() < 4 * (0.25 / count) ** 0.5


# With runs and pictures


def loaded(runs: list[Path], **options: object) -> Captioner:
    folders = [RunFolder(run) for run in runs]
    chosen = GenerateOptions(**options)  # type: ignore[arg-type]
    return Captioner([(folder, folder.best) for folder in folders], chosen, CPU)


@pytest.fixture(scope="module")
def two_runs(captioner: Path, trained: Path) -> list[Path]:
    """Two runs of different sizes, trained on the same captions and features."""
    return [captioner / "runs" / "captioner", trained / "runs" / "small"]


def test_attention_of_an_ensemble_is_the_mean_over_runs(two_runs):
    both = loaded(two_runs)
    channels, (height, width) = both.config["features"]["channels"], both.config["features"]["grid"]
    torch.manual_seed(1)
    features = Features(torch.rand(3, height * width, channels), torch.rand(3, channels))
    captions = both.caption(features)
    each = [loaded([run]).attention(features, captions) for run in two_runs]
    np.testing.assert_allclose(both.attention(features, captions), np.mean(each, 0), atol=1e-7)
    assert not np.allclose(each[0], each[1], atol=1e-5), (
        "the case is too easy: each run alone would pass"
    )


def test_attention_with_views_is_that_of_the_whole_picture(two_runs):
    one, two = loaded(two_runs[:1]), loaded(two_runs[:1], views=2)
    channels, (height, width) = one.config["features"]["channels"], one.config["features"]["grid"]
    torch.manual_seed(1)
    whole = Features(torch.rand(3, height * width, channels), torch.rand(3, channels))
    twice = whole.each(lambda t: torch.stack((t, t + 1), 1).flatten(0, 1))
    captions = two.caption(twice)
    expected = one.attention(whole, captions)
    np.testing.assert_allclose(two.attention(twice, captions), expected, atol=1e-6)


def test_an_ensemble_gives_a_split_and_its_pictures_the_same_captions(two_runs, tmp_path, capsys):
    out = tmp_path / "both.json"
    runs = [argument for run in two_runs for argument in ("--run", str(run))]
    assert caption.main([*runs, "--split", "val"]) == 2
    assert "name the file to write with --out" in capsys.readouterr().err
    assert caption.main([*runs, "--split", "val", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    work = two_runs[0].parents[1]
    table = json.loads((work / "captions.json").read_text())
    names = {image["id"]: image["file_name"] for image in table["images"]}
    pictures = [str(work / "images" / names[result["image_id"]]) for result in results]
    capsys.readouterr()
    assert caption.main([*runs, *pictures]) == 0
    lines = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    expected = [result["caption"] for result in results]
    agreeing = sum(a[:-1].lower() == b for a, b in zip(lines, expected, strict=True))
    assert agreeing >= len(expected) - 1, "float rounding may tip one beam, not more"


def test_both_weights_of_a_run_equal_an_ensemble_of_two_runs(captioner, tmp_path):
    run = captioner / "runs" / "captioner"
    before = Path(shutil.copytree(run, run.with_name("before")))
    shutil.copy(run / "best_xe.safetensors", before / "best.safetensors")
    out = tmp_path / "two.json"
    two = ["--run", str(run), "--run", str(before), "--split", "val", "--out", str(out)]
    assert caption.main(two) == 0
    assert caption.main(["--run", str(run), "--split", "val", "--weights", "both"]) == 0
    assert json.loads((run / "captions_val_both.json").read_text()) == json.loads(out.read_text())


def test_the_captions_of_a_picture_differ_and_the_best_comes_first(two_runs, capsys):
    picture = str(min((two_runs[0].parents[1] / "images").iterdir()))
    run = ["--run", str(two_runs[0])]
    # With a length penalty, a longer caption may come before a more probable one.
    arguments = [*run, "--length-penalty", "0", "--captions", "3", picture]
    assert caption.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == len(lines) == 3
    assert caption.main(["--json", *arguments]) == 0
    line = json.loads(capsys.readouterr().out)
    written = [line, *line["alternatives"]]
    assert [f"{picture}\t{one['caption']}" for one in written] == lines
    found = [one["log_probability"] for one in written]
    assert found == sorted(found, reverse=True)

    # Samples are unsorted, and at a low temperature many are equal.
    drawn = ["--sample", "--samples", "12", "--temperature", "0.3", "--json", *arguments]
    assert caption.main(drawn) == 0
    line = json.loads(capsys.readouterr().out)
    written = [line, *line["alternatives"]]
    assert len({one["caption"] for one in written}) == len(written)
    found = [one["log_probability"] for one in written]
    assert found == sorted(found, reverse=True)


def test_views_of_new_pictures_are_used(two_runs):
    """The mirror view of a picture is the whole view of its mirror image."""
    work, run = two_runs[0].parents[1], two_runs[0]
    picture = min((work / "images").iterdir())
    two = loaded([run], views=2)
    ((_, captioned),) = caption_pictures(two, [picture], 4, read_picture)
    captions = captioned.candidates  # type: ignore[union-attr]
    backbone = two.backbone()
    whole = read_picture(picture)
    pixels = torch.stack([backbone.transform(p) for p in (whole, ImageOps.mirror(whole))])
    parts = (to_float16(part.numpy()) for part in backbone.features(pixels))
    (expected,) = two.captions(Features(*(torch.from_numpy(part).float() for part in parts)))
    assert [c.text for c in captions] == [c.text for c in expected]
    assert captions[0].log_probability == pytest.approx(expected[0].log_probability, abs=1e-2)
    ((_, captioned),) = caption_pictures(loaded([run]), [picture], 4, read_picture)
    (single,) = captioned.candidates  # type: ignore[union-attr]
    assert single.log_probability != pytest.approx(expected[0].log_probability, abs=1e-2)


def test_runs_with_different_features_or_vocabularies_are_refused(two_runs, tmp_path):
    one = two_runs[0]
    other = Path(shutil.copytree(one, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    changed = {**config, "features": {**config["features"], "weights_sha256": "0" * 64}}
    (other / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"cannot form an ensemble.*weights_sha256"):
        loaded([one, other])
    vocabulary = json.loads((one / "vocabulary.json").read_text())
    *words, last = vocabulary["words"]
    for new, named in (
        ([*words, "zebra"], rf"{last}.*zebra"),
        ([*words[:-1], last, words[-1]], "order"),
    ):
        (other / "vocabulary.json").write_text(json.dumps({**vocabulary, "words": new}))
        changed = {**config, "vocabulary": digest(tuple(new))}
        (other / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=rf"cannot form an ensemble.*{named}"):
            loaded([one, other])


def test_more_views_than_are_stored_are_refused(two_runs, capsys):
    assert caption.main(["--run", str(two_runs[0]), "--split", "val", "--views", "2"]) == 2
    error = capsys.readouterr().err
    assert "holds 1 views of each image" in error
    assert "python -m pipeline.extract --views 2" in error
