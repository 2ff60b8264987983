"""The included captioner on real photographs, through the command line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from decoder import caption
from decoder.runs.packaged import packaged_captioner
from evaluation.validation import Validator
from tests.pictures import read_flickr8k


def test_it_is_at_most_20_mb_and_the_card_describes_its_weights():
    folder = packaged_captioner()
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    about = json.loads((folder / "captioner.json").read_text())
    weights = (folder / "best.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == about["weights_sha256"]
    cider = about["scores"]["val"]["corpus"]["CIDEr"]
    card = "".join(file.read_text() for file in folder.glob("*.md"))  # README or MODEL_CARD
    assert f"{cider:.3f}" in card
    assert "non-commercial" in card


def test_a_photograph_is_captioned_without_a_run_and_from_any_folder(flickr8k, tmp_path):
    photo = sorted((flickr8k / "Flicker8k_Dataset").glob("*.jpg"))[0]
    command = [sys.executable, "-m", "decoder.caption", "--json", str(photo)]
    # Offline: any connection goes to a port where nobody listens.
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "https_proxy": nowhere, "http_proxy": nowhere}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    described = json.loads(line)
    assert described["path"] == str(photo)
    assert len(described["caption"].split()) >= 4
    assert 0 <= described["confidence"] <= 1


def test_weights_that_it_does_not_include_are_refused(capsys):
    for weights in ("best_xe", "both"):
        assert caption.main(["photo.jpg", "--weights", weights]) == 2
        assert "holds no weights from before REINFORCE" in capsys.readouterr().err


def test_captions_of_photographs_not_trained_on_agree_with_people(flickr8k, capsys):
    """On 20 validation pictures; broken weights, words or features would score close to 0."""
    captions = read_flickr8k(flickr8k, "Flickr_8k.devImages.txt")
    pictures = sorted(captions)[:20]
    assert caption.main(["--json", *(str(picture) for picture in pictures)]) == 0
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    written = {pictures.index(Path(line["path"])): line["caption"] for line in lines}
    references = {n: captions[picture] for n, picture in enumerate(pictures)}
    assert Validator(references).score(written)["CIDEr"] > 0.3


def test_a_captioner_that_lost_what_it_reranks_by_is_refused(tmp_path, capsys):
    copy = shutil.copytree(packaged_captioner(), tmp_path / "copy")
    (copy / "expectation.safetensors").unlink()
    assert caption.main(["--run", str(copy), "photo.jpg"]) == 2
    assert "expectation.safetensors is not there" in capsys.readouterr().err
