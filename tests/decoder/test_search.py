"""The search by its command line: pictures for a sentence, captions for a picture, a split."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder import export, search
from decoder.data.batches import Features, pack, pad
from decoder.model.decoders import build
from decoder.model.options import ModelOptions
from decoder.ranking import embedding_file, nearest
from decoder.ranking.embedding import train_embedding
from decoder.ranking.likelihood import log_likelihood
from decoder.runs import checkpoints
from evaluation import retrieve
from features.errors import UserError
from pipeline.vocabulary import BOS, EOS, UNK
from tests.decoder.conftest import CHANNELS, REGIONS, WORDS


@pytest.fixture(scope="module")
def searched(captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the captioner's work directory with a trained embedding and a ranked split."""
    work = Path(shutil.copytree(captioner, tmp_path_factory.mktemp("searched") / "work"))
    assert search.main(["--run", str(run_of(work)), "--split", "train"]) == 0
    return work


def run_of(work: Path) -> Path:
    return work / "runs" / "captioner"


def printed(capsys, *arguments: str) -> list[dict]:
    capsys.readouterr()
    assert search.main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def table_of(work: Path) -> dict:
    return json.loads((work / "captions.json").read_text())


def test_a_caption_finds_its_own_picture_far_more_often_than_chance(searched, capsys):
    ranking = run_of(searched) / "ranking_train.npz"
    assert retrieve.main(["--ranking", str(ranking), "--bootstrap", "0"]) == 0
    record = json.loads((run_of(searched) / "retrieval_train.json").read_text())
    for direction in ("text to image", "image to text"):
        for which in ("first", "second"):
            # Chance gives 5 of 32 images, and no more for captions.
            assert record[direction][which]["R@5"] > 0.4, (direction, which)


def test_the_second_pass_ranks_the_candidates_of_the_first(searched):
    with np.load(run_of(searched) / "ranking_train.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for kind in ("images", "captions"):
        first, second = arrays[f"{kind}_first"], arrays[f"{kind}_second"]
        np.testing.assert_array_equal(np.sort(first, 1), np.sort(second, 1))
        assert (first != second).any(), "the decoder changes nothing"
    owners = {image["id"] for image in table_of(searched)["images"] if image["split"] == "train"}
    assert set(arrays["image_id"].tolist()) == owners
    assert set(arrays["caption_image_id"].tolist()) <= owners


def test_pictures_are_printed_best_first_and_only_those_of_the_split(searched, capsys):
    table = table_of(searched)
    splits = {image["id"]: image["split"] for image in table["images"]}
    sentence = table["annotations"][0]["caption"]
    results = printed(capsys, sentence, "--run", str(run_of(searched)), "--top", "4")
    assert len(results) == 4
    scores = [one["score"] for one in results]
    assert scores == sorted(scores, reverse=True)
    assert all(Path(one["path"]).is_file() for one in results)
    # Separate words form one sentence, and plain lines print the same results.
    capsys.readouterr()
    assert search.main([*sentence.split(), "--run", str(run_of(searched)), "--top", "4"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [path for path, _ in lines] == [one["path"] for one in results]
    inside = printed(capsys, sentence, "--run", str(run_of(searched)), "--split", "val")
    assert {splits[one["image_id"]] for one in inside} == {"val"}


def test_an_index_gives_the_same_pictures(searched, capsys, monkeypatch):
    pytest.importorskip("usearch", reason="needs the extra search")
    run = ["--run", str(run_of(searched))]
    sentence = "a small red circle"
    exact = printed(capsys, sentence, *run)
    monkeypatch.setattr(nearest, "EXACT", 5)
    for _ in range(2):
        assert printed(capsys, sentence, *run) == exact
    (file,) = (searched / "search").glob("images-*.usearch")
    of_split = printed(capsys, sentence, *run, "--split", "val")
    assert {one["image_id"] for one in of_split} <= {
        image["id"] for image in table_of(searched)["images"] if image["split"] == "val"
    }
    store = searched / "features.h5"
    os.utime(store)  # as if the features had been extracted again
    assert printed(capsys, sentence, *run) == exact
    (renewed,) = (searched / "search").glob("images-*.usearch")
    assert renewed != file


def test_captions_for_a_picture_are_distinct_and_often_its_own(searched, capsys):
    table = table_of(searched)
    names = {image["id"]: image["file_name"] for image in table["images"]}
    texts = {}
    for annotation in table["annotations"]:
        texts.setdefault(annotation["image_id"], set()).add(annotation["caption"])
    run, own = str(run_of(searched)), 0
    chosen = [image["id"] for image in table["images"] if image["split"] == "train"][:6]
    for image_id in chosen:
        picture = searched / "images" / names[image_id]
        results = printed(capsys, "--image", str(picture), "--run", run, "--split", "train")
        captions = [one["caption"] for one in results]
        assert len(set(captions)) == len(captions) == 10
        own += bool(texts[image_id] & set(captions))
    assert own >= 3


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """End where an embedding would be trained, which takes seconds."""

    def stop(*_: object) -> None:
        raise UserError("an embedding is trained")

    monkeypatch.setattr(embedding_file, "_train", stop)


def test_the_embedding_is_kept_until_the_captions_change(searched, tmp_path, capsys, no_training):
    work = Path(shutil.copytree(searched, tmp_path / "work"))
    kept = work / "search" / "embedding.safetensors"
    sentence = table_of(work)["annotations"][0]["caption"]
    first = printed(capsys, sentence, "--run", str(run_of(work)))
    written = kept.stat().st_mtime_ns
    assert printed(capsys, sentence, "--run", str(run_of(work))) == first
    assert kept.stat().st_mtime_ns == written

    table = table_of(work)
    del table["annotations"][-1]
    (work / "captions.json").write_text(json.dumps(table))
    assert search.main([sentence, "--run", str(run_of(work))]) == 2
    assert "an embedding is trained" in capsys.readouterr().err


def test_a_ranked_split_is_not_ranked_again_unless_something_changed(searched, capsys):
    run = run_of(searched)
    capsys.readouterr()
    assert search.main(["--run", str(run), "--split", "train"]) == 0
    assert "unchanged, skipped" in capsys.readouterr().out
    changed = ["--run", str(run), "--split", "train", "--weights", "best"]
    assert search.main(changed) == 0
    assert "unchanged, skipped" not in capsys.readouterr().out


def test_unknown_words_are_named_and_a_query_without_known_words_is_refused(searched, capsys):
    run = ["--run", str(run_of(searched))]
    known = table_of(searched)["annotations"][0]["tokens"]
    assert search.main([*known, "xylophone", *run]) == 0
    assert "ignored unknown words: xylophone" in capsys.readouterr().err
    assert search.main(["xylophone quokka", *run]) == 2
    assert "no word of the sentence is known (xylophone, quokka)" in capsys.readouterr().err
    assert search.main(["?!", *run]) == 2
    assert "found no word" in capsys.readouterr().err
    assert search.main(run) == 2
    assert "expected a sentence to search for" in capsys.readouterr().err


def test_unreadable_pictures_and_damaged_files_are_named(searched, tmp_path, capsys):
    work = Path(shutil.copytree(searched, tmp_path / "work"))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    assert search.main(["--image", str(broken), "--run", str(run_of(work))]) == 2
    assert "broken.jpg" in capsys.readouterr().err
    file = run_of(work) / "best_xe.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert search.main(["a red circle", "--run", str(run_of(work))]) == 2
    assert "best_xe.safetensors is not a complete safetensors file" in capsys.readouterr().err


def test_pictures_without_features_yet_are_not_left_out_silently(searched, tmp_path, capsys):
    work = Path(shutil.copytree(searched, tmp_path / "work"))
    table = table_of(work)
    table["images"].append({**table["images"][0], "id": 10**6, "file_name": "new.png"})
    (work / "captions.json").write_text(json.dumps(table))
    assert search.main(["a red circle", "--run", str(run_of(work))]) == 2
    error = capsys.readouterr().err
    assert "1 images are not in the store: 1000000; run" in error
    assert "extract again with the same options" in error


def test_a_damaged_cache_is_made_again(searched, tmp_path, capsys, caplog, no_training):
    work = Path(shutil.copytree(searched, tmp_path / "work"))
    query = ["a", "small", "red", "circle", "--run", str(run_of(work))]
    results = printed(capsys, *query)
    images, embedding = (
        work / "search" / f"{name}.safetensors" for name in ("images", "embedding")
    )
    images.write_bytes(images.read_bytes()[:100])
    assert printed(capsys, *query) == results
    assert "images.safetensors is not a complete safetensors file" in caplog.text
    embedding.write_bytes(embedding.read_bytes()[:100])
    assert search.main(query) == 2
    assert "an embedding is trained" in capsys.readouterr().err
    assert "embedding.safetensors is not a complete safetensors file" in caplog.text


def test_grades_of_another_method_are_measured_again_once(searched, tmp_path, capsys, monkeypatch):
    work = Path(shutil.copytree(searched, tmp_path / "work"))
    file = work / "search" / "embedding.safetensors"
    query = ["a", "red", "circle", "--run", str(run_of(work))]
    monkeypatch.setattr(embedding_file, "METHOD", 1000)
    results, written = printed(capsys, *query), file.stat().st_mtime_ns
    assert checkpoints.load(file, torch.device("cpu"))[1]["grades_method"] == 1000
    assert printed(capsys, *query) == results
    assert file.stat().st_mtime_ns == written


def test_a_captioner_without_its_work_directory_searches_another(searched, tmp_path, capsys):
    """It brings the vocabulary; pictures and training captions are those of --work."""
    alone = tmp_path / "alone"
    stage = ["--run", str(run_of(searched)), "--out", str(alone), "--no-scores"]
    assert export.main(stage) == 0
    assert search.main(["a red circle", "--run", str(alone)]) == 2
    assert "or a work directory (--work), found neither" in capsys.readouterr().err
    sentence = table_of(searched)["annotations"][0]["caption"]
    assert printed(capsys, sentence, "--run", str(alone), "--work", str(searched))


def test_a_captioner_exported_with_its_search_finds_pictures_without_captions(
    searched, tmp_path, capsys, monkeypatch
):
    alone = tmp_path / "alone"
    exported = ["--run", str(run_of(searched)), "--out", str(alone), "--search", "--no-scores"]
    assert export.main(exported) == 0
    sentence = table_of(searched)["annotations"][0]["caption"]
    options = ["--run", str(run_of(searched)), "--weights", "best", "--top", "3"]
    expected = [one["image_id"] for one in printed(capsys, sentence, *options)]

    work = tmp_path / "mine"
    work.mkdir()
    shutil.copy(searched / "features.h5", work)
    table = {**table_of(searched), "annotations": []}
    table["info"]["image_root"] = str(searched / "images")
    (work / "captions.json").write_text(json.dumps(table))
    options = ["--run", str(alone), "--work", str(work), "--top", "3"]
    image_ids = [one["image_id"] for one in printed(capsys, sentence, *options)]
    assert len(set(image_ids) & set(expected)) >= 2, "8 bits may change a rank, not more"
    # A folder of pictures needs no store either; its order is that of the embedding alone.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ["--run", str(alone), "--folder", str(searched / "images")]
    names = [Path(one["path"]).name for one in printed(capsys, sentence, *options)]
    files = {image["id"]: Path(image["file_name"]).name for image in table["images"]}
    assert len(names) == 10
    assert len({files[image_id] for image_id in expected} & set(names)) >= 2
    assert not (work / "search" / "embedding.safetensors").exists()

    (alone / "embedding.safetensors").unlink()
    assert search.main([sentence, "--run", str(alone), "--work", str(work)]) == 2
    assert "decoder.search learns from training captions" in capsys.readouterr().err


def test_log_likelihood_is_the_sum_over_known_words_fed_one_by_one():
    torch.manual_seed(0)
    model = build(ModelOptions(hidden=16, attention=8), WORDS, CHANNELS).eval()
    features = Features(torch.rand(3, REGIONS, CHANNELS), torch.rand(3, CHANNELS))
    captions = [[5, 6, UNK, 7, EOS], [8, EOS], [9, 10, 11, EOS], [5, 6]]
    images = [2, 0, 1, 1]
    with torch.inference_mode():
        memory = model.encode(features)
        totals = log_likelihood(model, memory, pad(captions), torch.tensor(images)).tolist()
        for caption, image, total in zip(captions, images, totals, strict=True):
            one, word, expected = memory.select(torch.tensor([image])), BOS, 0.0
            state = model.start(one, 1)
            for following in caption:
                logits, state = model.next_word(torch.tensor([word]), one, state)
                if following != UNK:
                    expected += logits.log_softmax(-1)[0, following - EOS].item()
                word = following
            assert total == pytest.approx(expected, abs=1e-5)
    assert pack(pad(captions), torch.tensor(images)).targets_P.eq(UNK).any()


def test_an_embedding_learns_which_words_match_which_picture():
    """With twelve kinds of pictures and a word for each, a word is nearest to its own kind."""
    random = torch.Generator().manual_seed(0)
    kinds = torch.randn(12, 40, generator=random)
    pooled = kinds[:, None] + 0.1 * torch.randn(12, 2, 40, generator=random)
    captions = [[[4 + kind, EOS], [4 + kind, 16, EOS]] for kind in range(12)]
    calls: list[tuple[int, int]] = []
    model = train_embedding(pooled.half(), captions, 17, lambda *steps: calls.append(steps))
    words = model.sentences(torch.arange(4, 16)[:, None])
    assert (words @ model.pictures(kinds).T).argmax(1).tolist() == list(range(12))
    assert calls[-1] == (len(calls), len(calls))
    again = train_embedding(pooled.half(), captions, 17)
    assert torch.equal(again.picture.weight, model.picture.weight), "a seed fixes it"
    with pytest.raises(UserError, match="2 images with captions"):
        train_embedding(pooled[:1].half(), captions[:1], 17)
