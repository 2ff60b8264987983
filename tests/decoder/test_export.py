"""Exporting a run as a captioner that stands alone and writes the same captions, and as ONNX."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from decoder import caption, export
from decoder.captioning.captioner import Captioner
from decoder.data.batches import Features
from decoder.generation.options import GenerateOptions
from decoder.model.decoders import MODELS, build
from decoder.model.options import ModelOptions
from decoder.sharing import calibration, front_matter
from decoder.sharing.card import markdown
from decoder.sharing.claims import count_claims
from decoder.sharing.onnx import decoder_files
from evaluation import score
from pipeline.work import RunFolder
from tests.decoder.conftest import CHANNELS, REGIONS, WORDS


@pytest.fixture(scope="module")
def run(captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with scored validation captions, in a copy of the work directory."""
    work = Path(shutil.copytree(captioner, tmp_path_factory.mktemp("export") / "work"))
    run = work / "runs" / "captioner"
    assert caption.main(["--run", str(run), "--split", "val", "--force"]) == 0
    files = ["--captions", str(work / "captions.json"), "--results", str(run / "captions_val.json")]
    assert score.main(files) == 0
    return run


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "captioner"
    assert export.main(["--run", str(run), "--out", str(out), "--onnx"]) == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, without the list of exported ones in captioner.json."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    if "captioner.json" in found:
        about = json.loads(found["captioner.json"])
        del about["files"]
        found["captioner.json"] = json.dumps(about).encode()
    return found


def test_a_captioner_captions_as_its_run_does(run, exported, tmp_path, capsys):
    """It needs no file of the work directory, and float16 changes few captions."""
    alone = Path(shutil.copytree(exported, tmp_path / "alone"))
    images = str(run.parents[1] / "images")
    capsys.readouterr()
    lines = []
    for folder in (run, alone):
        assert caption.main(["--run", str(folder), "--json", images]) == 0
        lines.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    same = [a["caption"] == b["caption"] for a, b in zip(*lines, strict=True)]
    assert np.mean(same) > 0.9
    differences = [
        abs(a["log_probability"] - b["log_probability"])
        for a, b in zip(*lines, strict=True)
        if a["caption"] == b["caption"]
    ]
    assert 0 < max(differences) < 0.1
    assert (alone / "best.safetensors").stat().st_size < 0.6 * run.joinpath(
        "best.safetensors"
    ).stat().st_size
    # The n-gram frequencies for --consensus are included.
    assert caption.main(["--run", str(alone), "--consensus", images]) == 0


def test_it_reranks_by_default_and_without_the_training_pictures(run, tmp_path, capsys):
    out = tmp_path / "captioner"
    stage = ["--run", str(run), "--out", str(out), "--int8", "--rerank", "--no-scores"]
    assert export.main(stage) == 0
    halved = run.joinpath("best.safetensors").stat().st_size / 2
    assert out.joinpath("best.safetensors").stat().st_size < 0.6 * halved
    card = (out / "README.md").read_text()
    assert "stored in 8 bits" in card
    assert "It reranks candidate captions" in card
    again = tmp_path / "again"
    stage = ["--run", str(out), "--out", str(again), "--int8", "--rerank", "--no-scores"]
    assert export.main(stage) == 0
    for name in ("best.safetensors", "expectation.safetensors"):
        assert (again / name).read_bytes() == (out / name).read_bytes()

    images = [str(path) for path in sorted((run.parents[1] / "images").iterdir())[:8]]
    written = {}
    rule = ["--max-length", "6"]
    ways = ([], ["--rerank", "--beam", "40"], ["--beam", "5"], ["--rerank", "--beam", "5"])
    for how in (*ways, rule, ["--rerank", *rule]):
        capsys.readouterr()
        assert caption.main(["--run", str(again), *how, *images]) == 0
        written[tuple(how)] = capsys.readouterr().out
    assert written[()] == written["--rerank", "--beam", "40"] != written["--beam", "5"]
    assert written["--rerank", "--beam", "5"] != written["--beam", "5"]
    assert written[tuple(rule)] == written["--rerank", *rule] != written[()]

    expectation = RunFolder(again).path / "expectation.safetensors"
    expectation.write_bytes(expectation.read_bytes()[:-8])
    assert caption.main(["--run", str(again), *images]) == 2
    assert "expectation.safetensors is not a complete safetensors file" in capsys.readouterr().err
    options = ["--run", str(run), "--out", str(out), "--rerank", "--no-frequencies"]
    assert export.main(options) == 2
    assert "--rerank needs what --no-frequencies leaves out" in capsys.readouterr().err


def test_the_same_run_gives_the_same_bytes_and_replaces_what_is_there(run, exported, tmp_path):
    out = tmp_path / "captioner"
    for _ in range(2):
        assert export.main(["--run", str(run), "--out", str(out)]) == 0
        expected = {k: v for k, v in contents(exported).items() if not k.startswith("onnx")}
        assert contents(out) == expected
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_not_a_captioner_is_not_replaced(run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert export.main(["--run", str(run), "--out", str(tmp_path)]) == 2
    assert (
        "expected a new or empty folder, or a captioner to replace, found other files"
        in capsys.readouterr().err
    )
    assert export.main(["--run", str(run), "--out", str(run.parent)]) == 2
    assert "is the folder of the run or contains it" in capsys.readouterr().err
    assert contents(tmp_path) == {"mine.txt": b"mine"}
    assert (run / "best.safetensors").exists()


def test_files_of_others_in_the_folder_are_kept(run, tmp_path, capsys):
    """Even an edited card; what an earlier export wrote and this one does not is removed."""
    out = tmp_path / "captioner"
    stage = ["--run", str(run), "--out", str(out)]
    out.mkdir()
    (out / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert export.main([*stage, "--rerank", "--no-scores"]) == 0
    (out / "notes.txt").write_text("mine")
    (out / "README.md").write_text("my card")
    (out / "LICENSE").write_text("my licence")
    (out / "MODEL_CARD.md").write_text("the card of version 0.2")
    capsys.readouterr()
    assert export.main(stage) == 0
    assert "README.md is not as an export wrote it; it is kept as README.old.md" in (
        capsys.readouterr().out
    )
    kept = {name: (out / name).read_text() for name in ("notes.txt", "README.old.md", "LICENSE")}
    assert kept == {"notes.txt": "mine", "README.old.md": "my card", "LICENSE": "my licence"}
    assert (out / ".gitattributes").exists()
    assert (out / "MODEL_CARD.md").exists()
    assert not (out / "expectation.safetensors").exists()
    assert (out / "README.md").read_text().startswith("---\nlanguage: en\n")
    assert list(tmp_path.iterdir()) == [out]


def test_a_card_has_the_metadata_of_hugging_face(exported):
    """As its own library reads them; see also its rules on licences and names of data sets."""
    about = json.loads((exported / "captioner.json").read_text())
    data = ModelCard.load(exported / "README.md").data
    assert (data.license, data.language, data.pipeline_tag) == ("mit", "en", "image-to-text")
    assert (data.library_name, data.datasets) == ("caption-pipeline", ["shapes"])
    assert {"bleu", "cider", "meteor", "rouge"} <= set(data.metrics)
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values["CIDEr-D"] == pytest.approx(about["scores"]["val"]["corpus"]["CIDEr"], abs=1e-4)
    assert data.eval_results[0].dataset_split == "val"
    assert data.model_name == about["name"]
    assert not (exported / "LICENSE").exists()


@pytest.mark.parametrize(
    ("dataset", "init", "licence"),
    [
        ("flickr8k", None, "non-commercial-research-and-education"),
        ("coco", {"dataset": "flickr8k"}, "non-commercial-research-and-education"),
        ("coco", {"dataset": "folder", "name": "mine"}, "unknown"),
        ('a "b": c/../d --- é', None, "unknown"),
        (None, {"dataset": "coco"}, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_a_licence_that_hugging_face_does_not_list_has_a_name_and_a_file(
    exported, dataset, init, licence
):
    config = {} if init is None else {"init": {"name": "other", "data": [init]}}
    about = json.loads((exported / "captioner.json").read_text())
    about["data"] = None if dataset is None else about["data"] | {"dataset": dataset}
    about["name"] = 'x: "y" #é'
    data = ModelCard(front_matter.front_matter(about, config)).data
    assert (data.license, data.license_name, data.license_link) == ("other", licence, "LICENSE")
    text = front_matter.licence(about, config)
    assert "These terms apply to the weights too" in text
    assert init is None or f"The terms of {init.get('name', init['dataset'])}: " in text
    for name in data.datasets or []:
        validate_repo_id(name)
    assert data.model_name == about["name"]


def test_a_run_without_weights_is_refused_and_leaves_nothing(run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "runs" / "copy"))
    (copy / "best.safetensors").unlink()
    assert export.main(["--run", str(copy), "--out", str(tmp_path / "out")]) == 2
    assert "best.safetensors is not there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_card_has_the_scores_and_terms_of_the_data(run, exported):
    card = (exported / "README.md").read_text()
    scores = json.loads((run / "scores_val.json").read_text())
    low, high = scores["intervals"]["CIDEr"]
    assert f"{scores['corpus']['CIDEr']:.3f} ({low:.3f}-{high:.3f})" in card
    assert "Trained on shapes" in card
    assert "MIT licence" in card
    about = json.loads((exported / "captioner.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert about["features"]["backbone"] == "efficientnet_lite0"
    assert about["fingerprint"] == config["fingerprint"]
    assert json.loads((exported / "config.json").read_text()) == config
    assert "features of efficientnet_lite0, trained on ImageNet and not included" in card
    about["features"] |= {"backbone": "files:cocobu_att", "weights": "unknown"}
    others = markdown(about, config)
    assert "features of cocobu_att, files of another program, not included" in others
    assert "THIS_FOLDER --split test --work WORK`" in others


def test_the_card_leaves_out_scores_of_other_weights(run, tmp_path, capsys):
    work = Path(shutil.copytree(run.parents[1], tmp_path / "work"))
    copy = work / "runs" / "captioner"
    shutil.copy(copy / "best_xe.safetensors", copy / "best.safetensors")
    tensors = (copy / "best.safetensors").read_bytes()
    (copy / "best.safetensors").write_bytes(tensors[:-4] + b"\0\0\0\0")
    stage = ["--run", str(copy), "--out", str(tmp_path / "out"), "--no-scores"]
    assert export.main(stage) == 0
    assert "because best.safetensors changed since" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "captioner.json").read_text())["scores"] == {}


def test_the_export_of_a_scored_run_knows_unfamiliar_pictures_and_keeps_other_scores(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(calibration, "LEAST", 2)  # of the few validation images here
    work = Path(shutil.copytree(run.parents[1], tmp_path / "work"))
    source, out = work / "runs" / "captioner", tmp_path / "out"
    shutil.copy(source / "scores_val.json", source / "scores_test.json")
    assert export.main(["--run", str(source), "--out", str(out)]) == 0
    about = json.loads((out / "captioner.json").read_text())
    assert about["confidence"]["novelty"] is not None
    assert sorted(about["scores"]) == ["test", "val"]


def test_scores_of_a_reranking_captioner_are_those_of_its_own_captions(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(calibration, "LEAST", 2)  # of the few validation images here
    work = Path(shutil.copytree(run.parents[1], tmp_path / "work"))
    source, out = work / "runs" / "captioner", tmp_path / "out"
    made = work / "runs" / "made"
    stage = ["--run", str(source), "--out", str(out), "--rerank"]
    assert export.main([*stage, "--no-scores"]) == 0
    assert "because of --no-scores" in capsys.readouterr().out
    about = json.loads((out / "captioner.json").read_text())
    assert (about["scores"], about["confidence"]) == ({}, None)

    assert export.main(stage) == 0
    about = json.loads((out / "captioner.json").read_text())
    scores = json.loads((source / "scores_val_exported.json").read_text())
    assert about["scores"]["val"]["corpus"] == scores["corpus"]
    assert about["confidence"] is not None
    shutil.copytree(out, made)  # in the work directory it captions the split as it did when scored
    assert caption.main(["--run", str(made), "--split", "val"]) == 0
    expected = json.loads((source / "captions_val_exported.json").read_text())
    assert json.loads((made / "captions_val.json").read_text()) == expected

    picture = str(min((work / "images").iterdir()))
    for how, known in (([], True), (["--rerank"], True), (["--beam", "5"], False)):
        capsys.readouterr()
        assert caption.main(["--run", str(out), "--json", *how, picture]) == 0
        written = json.loads(capsys.readouterr().out)
        assert (written["confidence"] is not None) is known

    assert caption.main(["--run", str(made), "--split", "val"]) == 0
    assert "unchanged, skipped" in capsys.readouterr().out
    shutil.copy(made / "vocabulary.json", made / "expectation.safetensors")
    assert caption.main(["--run", str(made), "--split", "val"]) == 2, (
        "the captions depend on it, too"
    )


def test_a_captioner_exported_again_elsewhere_keeps_its_record(run, exported, tmp_path, capsys):
    other = Path(shutil.copytree(run.parents[1], tmp_path / "other"))
    table = json.loads((other / "captions.json").read_text())
    table["info"]["dataset"] = "mine"
    table["annotations"] = [{**a, "tokens": ["red"]} for a in table["annotations"]]
    (other / "captions.json").write_text(json.dumps(table))
    shutil.rmtree(other / "runs")
    for place in (other / "runs" / "captioner", tmp_path / "alone" / "captioner"):
        shutil.copytree(exported, place)
        out = tmp_path / "out"
        assert export.main(["--run", str(place), "--out", str(out)]) == 0
        expected = {k: v for k, v in contents(exported).items() if not k.startswith("onnx")}
        assert contents(out) == expected
    assert export.main(["--run", str(place), "--out", str(out), "--search"]) == 2
    assert "decoder.search learns from training captions" in capsys.readouterr().err
    about = json.loads((place / "captioner.json").read_text())
    for damaged in ([], about | {"weights_sha256": "0"}, about | {"scores": {"val": 1}}):
        (place / "captioner.json").write_text(json.dumps(damaged))
        assert export.main(["--run", str(place), "--out", str(out)]) == 2
        assert "captioner.json is not what decoder.export writes" in capsys.readouterr().err


def test_claims_are_counted_and_confirmed_by_the_references():
    captions = {1: "a red dog", 2: "two dogs in the snow", 3: "a woman in blue and red"}
    references = {
        1: ["a dog in red", "an animal"],
        2: ["a puppy on the beach"],
        3: ["a girl wears blue"],
    }
    counts = count_claims(captions, references)
    assert counts["a colour"] == (2, 1)
    assert counts["a dog"] == (2, 2)
    assert counts["a number of two or more"] == (1, 0)
    assert counts["water, snow, sand or grass"] == (1, 0)
    assert counts["a man or boy, a woman or girl"] == (1, 1)
    assert "a child" not in counts


def session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", MODELS)
def test_steps_in_onnx_are_those_of_the_decoder(name: str, cell: str, batch) -> None:
    torch.manual_seed(0)
    options = ModelOptions(model=name, cell=cell, hidden=12, attention=10)
    model = build(options, WORDS, CHANNELS).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    one = batch.features.each(lambda part: part[:1])
    expected = []
    with torch.inference_mode():
        memory = model.encode(one)
        state = model.start(memory, 1)
        for word in (4, 9, 6, 11):
            logits, state = model.next_word(torch.tensor([word]), memory, state)
            expected.append(logits.log_softmax(-1).numpy())

    encode, step = map(session, decoder_files(model, REGIONS, CHANNELS).values())
    outputs = [output.name for output in encode.get_outputs()]
    given = {"grid": one.grid_IRC.numpy(), "pooled": one.pooled_IC.numpy()}
    read = {value.name for value in encode.get_inputs()}
    known = dict(zip(outputs, encode.run(None, {k: given[k] for k in read}), strict=True))
    for word, wanted in zip((4, 9, 6, 11), expected, strict=True):
        names = [output.name for output in step.get_outputs()]
        found = dict(zip(names, step.run(None, {**known, "word": np.array([word])}), strict=True))
        known |= {k.removeprefix("next_"): v for k, v in found.items() if k.startswith("next_")}
        np.testing.assert_allclose(found["log_probabilities"], wanted, atol=1e-5, rtol=1e-4)


def test_onnx_writes_the_same_greedy_captions_by_its_examples(run, exported, tmp_path):
    pictures = sorted((run.parents[1] / "images").iterdir())[:20]
    stage = [sys.executable, str(exported / "onnx" / "caption.py"), *map(str, pictures)]
    done = subprocess.run(stage, capture_output=True, text=True, check=True, timeout=120)
    chosen = RunFolder(exported)
    plain = GenerateOptions(beam=1, repeat_phrases=True)  # the loop has no rules
    ours = Captioner([(chosen, chosen.best)], plain, torch.device("cpu"))
    backbone = ours.backbone()
    expected = []
    for picture in pictures:
        images = backbone.transform(Image.open(picture).convert("RGB"))[None]
        grid, pooled = backbone.features(images)
        (found,) = ours.caption(Features(grid, pooled))
        expected.append(" ".join(ours.vocabulary.words_of(found.ids)))
    agreeing = sum(a == b for a, b in zip(done.stdout.splitlines(), expected, strict=True))
    assert agreeing >= len(pictures) - 1, "float rounding may tip one word, not more"
    assert len(set(expected)) > 1

    modules = node_modules()
    example = Path(shutil.copytree(exported / "onnx", tmp_path / "onnx")) / "caption.mjs"
    (tmp_path / "node_modules").symlink_to(modules)
    stage = ["node", str(example), *map(str, pictures)]
    done = subprocess.run(stage, capture_output=True, text=True, check=True, timeout=120)
    agreeing = sum(a == b for a, b in zip(done.stdout.splitlines(), expected, strict=True))
    assert agreeing >= 0.9 * len(pictures), "JPEG decoders may differ in the last bit"


def node_modules() -> Path:
    """The folder of the packages that the example in JavaScript needs, in NODE_PATH or global."""
    if shutil.which("node") is None:
        pytest.skip("the example in JavaScript needs node")
    folders = [Path(name) for name in os.environ.get("NODE_PATH", "").split(os.pathsep) if name]
    if shutil.which("npm") is not None:
        done = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=False)
        folders.append(Path(done.stdout.strip()))
    for folder in folders:
        if (folder / "onnxruntime-node").is_dir() and (folder / "sharp").is_dir():
            return folder
    pytest.skip("the example in JavaScript needs the npm packages onnxruntime-node and sharp")


def test_the_step_takes_several_captions_of_a_picture_at_once(exported):
    encode, step = (
        session((exported / "onnx" / f"{name}.onnx").read_bytes()) for name in ("encode", "step")
    )
    generator = np.random.default_rng(0)
    feeds = {given.name: generator.random(given.shape, np.float32) for given in encode.get_inputs()}
    names = [output.name for output in encode.get_outputs()]
    known = dict(zip(names, encode.run(None, feeds), strict=True))

    def log_probabilities(words: list[int]) -> np.ndarray:
        rows = {k: np.repeat(v, len(words), 0) for k, v in known.items() if k.startswith("state")}
        return step.run(None, {**known, **rows, "word": np.array(words)})[0]

    together = log_probabilities([1, 5, 9])
    alone = np.concatenate([log_probabilities([word]) for word in (1, 5, 9)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.exp(together).sum(1), 1, rtol=1e-5)
