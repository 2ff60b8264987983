"""decoder.load: captions from Python are those of the command, whatever form a picture has."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import decoder
from decoder import caption
from decoder.captioning.writer import Caption
from decoder.generation.options import GenerateOptions
from features.errors import UserError
from pipeline.shapes import draw

PROJECT = Path(__file__).parents[2]
# With these, the decoder of four units writes something else for most pictures.
VARIED = {"length_penalty": 1.5, "no_repeat_ngram": 2, "no_bad_endings": True}
OPTIONS = ["--length-penalty", "1.5", "--no-repeat-ngram", "2", "--no-bad-endings"]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captioner of version 0.2, with a confidence estimate."""
    folder = tmp_path_factory.mktemp("load") / "captioner"
    shutil.copytree(PROJECT / "tests" / "data" / "version_0_2" / "captioner", folder)
    about = json.loads((folder / "captioner.json").read_text())
    about["confidence"] = {"slope": 1.0, "intercept": 2.0, "good": 0.3, "images": 100}
    (folder / "captioner.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many kinds: large, rotated, transparent, 16-bit, CMYK, plain, broken."""
    folder = tmp_path_factory.mktemp("pictures")
    draw(folder, 2, seed=0)
    scene, other = (Image.open(folder / f"00000{i}.jpg") for i in range(2))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    other.resize((2600, 1900)).save(folder / "large.jpg", exif=exif)
    scene.save(folder / "turned.tiff", exif=exif)
    scene.convert("CMYK").save(folder / "cmyk.jpg")
    clear = other.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "clear.png")
    gray = np.asarray(scene.convert("L")).astype(np.uint16) * 257
    Image.fromarray(gray).save(folder / "deep.png")
    Image.new("RGB", (99, 99), "green").save(folder / "plain.png")
    (folder / "broken.jpg").write_bytes((folder / "large.jpg").read_bytes()[:9000])
    return folder


def test_a_picture_has_the_caption_that_the_command_writes(captioner, pictures, capsys):
    """As a path, as bytes, and as an image of Pillow, before and after its pixels are decoded."""
    assert caption.main(["--run", str(captioner), "--json", *OPTIONS, str(pictures)]) == 1
    lines = {}
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        lines[Path(line.pop("path"))] = line
    c = decoder.load(captioner, GenerateOptions(**VARIED))
    paths = list(lines)
    opened = [Image.open(path) for path in paths]
    for form in (paths, [str(p) for p in paths], [p.read_bytes() for p in paths], opened):
        for path, found in zip(paths, c.caption(form), strict=True):
            assert {**found.as_json(), "error": found.error} == lines[path], path
    for path, image in zip(paths, opened, strict=True):
        if path.name not in ("broken.jpg", "large.jpg"):  # a large file is decoded at half its size
            image.load()
            found = c.caption(image)
            assert {**found.as_json(), "error": found.error} == lines[path], path
    for image in opened:
        image.close()
    assert len({line["caption"] for line in lines.values()}) > 2
    assert [path.name for path in paths if lines[path]["error"]] == ["broken.jpg", "plain.png"]


def test_a_list_gives_a_list_and_errors_are_values(captioner, tmp_path):
    c = decoder.load(str(captioner))
    assert c.caption([]) == []
    (missing,) = c.caption([tmp_path / "none.jpg"])
    assert missing == Caption(None, None, None, None, "no such file")
    assert c.caption(b"").error == "the file is empty"
    for wrong in ([5], 5, None, io.BytesIO(b"a\nb"), bytearray(b"ab"), [["a.jpg"]]):
        with pytest.raises(TypeError, match="or an image of Pillow, found "):
            c.caption(wrong)
    with pytest.raises(UserError, match="unsure must be from 0 to 1, found 60"):
        decoder.load(captioner, unsure=60)
    with pytest.raises(UserError, match="there is no run"):
        decoder.load(tmp_path / "none")


def test_samples_repeat_and_leave_the_callers_random_numbers_alone(captioner, pictures):
    c = decoder.load(captioner, GenerateOptions(sample=True, captions=3))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (c.caption(pictures / "000000.jpg") for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert first == second
    assert len(first.alternatives) == 2


def test_the_included_captioner_knows_how_sure_it_is(pictures):
    found = decoder.load().caption(pictures / "000001.jpg")
    assert found.caption
    assert found.caption.endswith(".")
    assert found.confidence is not None
    assert found.unsure is (found.confidence < 0.6)


def test_the_notebook_runs(work, monkeypatch, capsys):
    """Its code cells, in order; the work directory, which it would prepare, is there already."""
    monkeypatch.chdir(work.parent)
    notebook = json.loads((PROJECT / "tests" / "decoder" / "api.ipynb").read_text())
    names: dict[str, object] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "broken.jpg not a picture" in printed
    assert "40 images; " in printed
    assert "(4, 49, 1280) (4, 1280)" in printed
    assert (work / "runs" / "notebook" / "best.safetensors").exists()


def test_a_folder_is_searched(captioner, pictures, tmp_path, monkeypatch):
    """The search itself is tested with decoder.ranking.albums."""
    c = decoder.load(captioner)
    with pytest.raises(UserError, match="expected a folder of pictures, found nothing"):
        c.search(tmp_path / "none", "a dog")
    with pytest.raises(UserError, match="cannot search: it was exported without the embedding"):
        c.search(pictures, "a dog")
