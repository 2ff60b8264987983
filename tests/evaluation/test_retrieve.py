"""`python -m evaluation.retrieve`, with rankings whose recall is known."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from evaluation import retrieve


def ranking(**changed) -> dict[str, np.ndarray]:
    """Three images, the first with two captions; three candidates for each query.

    The correct image of the four captions has the ranks 1, 3, 2, 1 in the first pass and 1, 1, 1, 1
    in the second. The first correct caption of the three images has the ranks 2, 4 (not kept), 1
    in the first pass and 1, 1, 1 in the second.
    """
    arrays = {
        "image_id": [70, 20, 50],
        "caption_image_id": [70, 70, 20, 50],
        "images_first": [[0, 1, 2], [1, 2, 0], [0, 1, 2], [2, 0, 1]],
        "images_second": [[0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 0, 1]],
        "captions_first": [[2, 0, 1], [0, 1, 3], [3, 0, 1]],
        "captions_second": [[1, 0, 2], [2, 1, 0], [3, 0, 1]],
    }
    return {name: np.array(value, np.int32) for name, value in {**arrays, **changed}.items()}


def test_recall_and_median_rank_are_those_of_the_ranking(tmp_path, capsys):
    file = tmp_path / "ranking_val.npz"
    np.savez_compressed(file, **ranking())
    assert retrieve.main(["--ranking", str(file)]) == 0
    record = json.loads((tmp_path / "retrieval_val.json").read_text())
    first, second = record["text to image"]["first"], record["text to image"]["second"]
    assert [first["R@1"], first["R@5"], first["median_rank"]] == [0.5, 1, 1.5]
    assert [second["R@1"], second["median_rank"]] == [1, 1]
    first, second = record["image to text"]["first"], record["image to text"]["second"]
    assert [first["R@1"], first["R@5"]] == pytest.approx([1 / 3, 2 / 3])
    assert [first["queries"], first["median_rank"], second["R@1"]] == [3, 2, 1]
    assert first["R@1 interval"] == [0, 1]
    printed = capsys.readouterr().out
    assert "NIC, Flickr8k test" in printed
    assert printed.count("R@10") >= 2


def test_a_median_rank_beyond_the_candidates_is_not_invented(tmp_path, capsys):
    file = tmp_path / "ranking_val.npz"
    wrong = [[1], [2], [0], [2]]
    arrays = ranking(images_first=wrong, images_second=wrong)
    np.savez_compressed(file, **arrays)
    assert retrieve.main(["--ranking", str(file), "--bootstrap", "0"]) == 0
    record = json.loads((tmp_path / "retrieval_val.json").read_text())
    assert record["text to image"]["first"]["median_rank"] is None
    assert "R@10 interval" not in record["text to image"]["first"]
    assert "over 1" in capsys.readouterr().out


def test_the_recall_of_another_ranking_and_the_ranking_itself_are_not_overwritten(tmp_path, capsys):
    for name in ("ranking_val.npz", "val.npz"):
        np.savez_compressed(tmp_path / name, **ranking())
    ranked = (tmp_path / "val.npz").read_bytes()
    assert retrieve.main(["--ranking", str(tmp_path / "ranking_val.npz"), "--bootstrap", "0"]) == 0
    assert retrieve.main(["--ranking", str(tmp_path / "val.npz"), "--bootstrap", "0"]) == 2
    assert "retrieval_val.json belongs to --ranking" in capsys.readouterr().err
    (tmp_path / "retrieval_val.json").write_text('{"R@1": 20.4}')
    assert retrieve.main(["--ranking", str(tmp_path / "ranking_val.npz")]) == 2
    assert "was not written by this command" in capsys.readouterr().err
    own = str(tmp_path / "val.npz")
    assert retrieve.main(["--ranking", own, "--out", own]) == 2
    assert "is the file of --ranking" in capsys.readouterr().err
    assert (tmp_path / "val.npz").read_bytes() == ranked


@pytest.mark.parametrize(
    "changed",
    [
        {"image_id": [70, 20, 70]},
        {"caption_image_id": [70, 70, 20, 51]},
        {"images_first": [[0, 1], [1, 2], [0, 3], [2, 0]]},
        {"images_first": [[0, 1], [1, 1], [0, 1], [2, 0]]},
        {"images_second": [[0, -1], [1, 2], [0, 1], [2, 0]]},
        {"captions_first": [[2, 0, 1], [0, 1, 3]]},
        {"captions_second": [2, 0, 1]},
    ],
)
def test_a_file_that_is_not_a_ranking_is_refused(changed, tmp_path, capsys):
    file = tmp_path / "ranking_val.npz"
    np.savez_compressed(file, **ranking(**changed))
    assert retrieve.main(["--ranking", str(file)]) == 2
    assert "is not a ranking" in capsys.readouterr().err
    assert not (tmp_path / "retrieval_val.json").exists()


def test_a_missing_damaged_or_pickled_file_is_named(tmp_path, capsys):
    file = tmp_path / "ranking_val.npz"
    assert retrieve.main(["--ranking", str(file)]) == 2
    assert "create it with python -m decoder.search --split" in capsys.readouterr().err
    np.savez_compressed(file, **ranking())
    file.write_bytes(file.read_bytes()[:200])
    assert retrieve.main(["--ranking", str(file)]) == 2
    assert "is not a ranking" in capsys.readouterr().err
    np.savez(file, **{**ranking(), "image_id": np.array([{}, 2, 3], dtype=object)})
    assert retrieve.main(["--ranking", str(file)]) == 2
    assert "is not a ranking" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_ranking_that_cannot_be_read_now_is_not_called_wrong(
    number, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "ranking_val.npz"
    np.savez_compressed(file, **ranking())

    def fail(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "open", fail)
    assert retrieve.main(["--ranking", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"cannot read {file}: {os.strerror(number)}" in error
    assert "is not a ranking" not in error
    assert "create it" not in error
