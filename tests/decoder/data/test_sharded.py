"""Training, captioning, scoring and the rest on the features and captions of shards."""

import json
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder import caption, export, train
from decoder.cider import CiderD, all_words_encoded
from decoder.data import frequencies
from decoder.data.sharded import ShardedReader
from decoder.ranking.consensus import count_frequencies
from decoder.runs import checkpoints
from decoder.training.rewards import MixedReward
from decoder.training.streamed_reward import StreamedReward
from evaluation import report, score
from pipeline import captions, prepare, vocabulary
from pipeline.caption_database import open_database
from pipeline.doctor.workdir import check_work_directory
from pipeline.vocabulary import EOS
from pipeline.work import WorkFolder
from tests.conftest import MakeOnce
from tests.decoder.conftest import BOTH_PHASES, SMALL, hide_java
from tests.decoder.training import ranked
from tests.decoder.training.processes import End, run, unlike
from tests.shards import divide


@pytest.fixture(scope="module")
def sharded(extracted_shapes: Path, make_once: MakeOnce) -> Path:
    """The drawn scenes in shards of 5, prepared; the run "small" of both phases is trained."""

    def make(folder: Path) -> None:
        folder.mkdir()
        out = divide(extracted_shapes, folder / "out", 5)
        work = ["--work", str(folder / "work")]
        assert prepare.main(["--dataset", "shards", "--root", str(out), *work]) == 0
        assert train.main([*work, "--run", "small", *BOTH_PHASES]) == 0

    with pytest.MonkeyPatch.context() as patch:
        hide_java(patch)
        return make_once("sharded", make) / "work"


def reader_of(work: Path, size: int = 4) -> ShardedReader:
    folder = WorkFolder(work)
    table = open_database(folder.captions)
    words = vocabulary.load(folder.vocabulary)
    return ShardedReader(table.stores(), table, words, size, seed=1)


def test_batches_have_the_captions_and_features_of_their_images(sharded, extracted_shapes):
    reader = reader_of(sharded)
    one = WorkFolder(extracted_shapes)
    by_id = {image.id: image for image in captions.load(one.captions).images}
    stores = open_database(WorkFolder(sharded).captions).stores()
    words = vocabulary.load(WorkFolder(sharded).vocabulary)
    seen = []
    for batch in reader.epoch("xe", 0):
        ids = batch.image_ids.tolist()
        seen += ids
        expected = [words.encode(c.tokens) for i in ids for c in by_id[i].captions]
        assert [[t for t in row if t] for row in batch.tokens_BT.tolist()] == expected
        np.testing.assert_array_equal(batch.features.grid_IRC, stores.grid(stores.rows(ids)))
    assert sorted(seen) == sorted(i for i, image in by_id.items() if image.split == "train")
    counts = reader.word_counts()
    every = [
        words.encode(c.tokens) for i in by_id.values() if i.split == "train" for c in i.captions
    ]
    assert counts[0] == len(every)
    assert counts.sum() == sum(token >= EOS for caption in every for token in caption)


def test_rewards_and_frequencies_are_those_of_all_references_in_memory(
    sharded, tmp_path, monkeypatch
):
    train_split = open_database(WorkFolder(sharded).captions).split("train")
    words = vocabulary.load(WorkFolder(sharded).vocabulary)
    # Half of the words become unknown, so n-grams of unknown words occur.
    words = vocabulary.Vocabulary(words.words[:40], words.counts[:40], 2, 20, words.tokenizer)
    images = list(train_split)
    ids = torch.tensor([image.id for image in images[:6]])
    random = torch.Generator().manual_seed(0)
    samples = torch.randint(EOS, len(words), (18, 9), generator=random)
    references = all_words_encoded(images, words)
    for place, image in enumerate(images[:6]):
        own = references[image.id][0][:9]
        samples[3 * place, : len(own)] = torch.tensor(own).clamp(max=len(words) - 1)
    for weight in (0.0, 0.5):
        expected = MixedReward(references, weight)(ids, samples, EOS)
        found = StreamedReward(train_split, words, weight)(ids, samples, EOS)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert expected.max() > 1
    table = open_database(WorkFolder(sharded).captions)
    found_frequencies = count_frequencies(table, words)
    in_memory = CiderD(references).references.frequencies
    assert found_frequencies.images == in_memory.images
    torch.testing.assert_close(
        found_frequencies.images_U.sort().values, in_memory.images_U.sort().values
    )
    monkeypatch.setattr(frequencies, "_IN_MEMORY", 500)
    monkeypatch.setattr(frequencies, "_BLOCK", 7)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    on_disk = count_frequencies(table, words)
    assert on_disk.images == found_frequencies.images
    assert torch.equal(on_disk.key_U, found_frequencies.key_U)
    assert torch.equal(on_disk.images_U, found_frequencies.images_U)
    assert list(tmp_path.glob("caption-pipeline-*")) == []


def test_a_run_over_shards_stopped_in_each_phase_ends_as_one_never_stopped(sharded, tmp_path):
    work = Path(shutil.copytree(sharded, tmp_path / "work"))
    shutil.move(work / "runs" / "small", tmp_path / "never_stopped")
    options = ["--work", str(work), "--run", "small", *BOTH_PHASES, "--resume"]
    options += ["--save-minutes", "0"]
    for moment, count in (("cross-entropy", 11), ("searching", 1), ("REINFORCE", 4)):
        end = End(moment, count, by=signal.SIGKILL)
        assert run(options, tmp_path / "output", end) == -signal.SIGKILL
    assert run(options, tmp_path / "output") == 0, (tmp_path / "output").read_text()
    assert unlike(work / "runs" / "small", tmp_path / "never_stopped") == []


def test_two_processes_divide_the_shards_and_train(sharded, tmp_path, capsys):
    images: list[int] = []
    for rank in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORLD_SIZE", "2")
            patch.setenv("RANK", rank)
            batches = list(reader_of(sharded).epoch("xe", 0))
        images += [i for batch in batches if not batch.idle for i in batch.image_ids.tolist()]
    train_split = open_database(WorkFolder(sharded).captions).split("train")
    assert sorted(images) == sorted(image.id for image in train_split)
    work = Path(shutil.copytree(sharded, tmp_path / "work"))
    options = ["--work", str(work), "--run", "two", *SMALL, "--xe.epochs", "1", "--rl.epochs", "1"]
    output = tmp_path / "output"
    assert ranked.end(ranked.start(ranked.train, 2, [*options, "--rl.samples", "2"], output)) == [
        0,
        0,
    ], output.with_suffix(".rank0").read_text()
    lines = (work / "runs" / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["xe", "rl"]
    state = WorkFolder(work).run("two").state
    tensors, header = checkpoints.load(state, torch.device("cpu"))
    header["progress"] |= {"epoch": 0, "batch": 1}  # as if it had been stopped there
    checkpoints.save(state, tensors, header)
    (work / "runs" / "two" / ".done" / "train.json").unlink()
    capsys.readouterr()
    assert train.main([*options, "--rl.samples", "2", "--resume"]) == 0
    said = "this epoch was begun by 2 processes and is divided among 1 now"
    assert said in capsys.readouterr().out


def test_a_run_over_shards_is_captioned_scored_reported_exported_and_examined(
    sharded, tmp_path, capsys
):
    work = WorkFolder(Path(shutil.copytree(sharded, tmp_path / "work")))
    small = work.run("small")
    assert caption.main(["--run", str(small.path), "--split", "val"]) == 0
    results = json.loads(small.captions("val").read_text())
    val = open_database(work.captions).split("val")
    assert [result["image_id"] for result in results] == [image.id for image in val]
    scoring = ["--captions", str(work.captions), "--results", str(small.captions("val"))]
    assert score.main(scoring) == 0
    scores = json.loads(small.scores("val").read_text())
    assert scores["split"] == "val"
    assert scores["images"] == len(val)
    assert 0 <= scores["diagnostics"]["new_captions"] <= 1
    assert report.main(["--run", str(small.path), "--split", "val"]) == 0
    assert "nearest" in json.loads(work.baselines("val").read_text())
    assert caption.main(["--run", str(small.path), "--split", "val", "--force", "--consensus"]) == 0
    assert export.main(["--run", str(small.path), "--out", str(tmp_path / "c"), "--no-scores"]) == 0
    about = json.loads((tmp_path / "c" / "captioner.json").read_text())
    train_split = open_database(work.captions).split("train")
    assert about["data"]["images"] == len(train_split)
    assert about["data"]["captions"] == train_split.captions
    capsys.readouterr()
    checked = list(check_work_directory(work))
    assert not [result for result in checked if result.level == "problem"], checked
    assert any("match their checksums" in result.text for result in checked)


def test_features_that_were_extracted_otherwise_since_are_refused(sharded, tmp_path, capsys):
    work = Path(shutil.copytree(sharded, tmp_path / "work"))
    original = open_database(WorkFolder(sharded).captions).folder
    out = Path(shutil.copytree(original, tmp_path / "out"))
    assert prepare.main(["--dataset", "shards", "--root", str(out), "--work", str(work)]) == 0
    (out / "00000.h5").write_bytes((out / "00001.h5").read_bytes()[:-1])
    capsys.readouterr()
    options = ["--work", str(work), "--run", "new", *SMALL, "--xe.epochs", "1"]
    assert train.main(options) == 2
    assert "00000.h5" in capsys.readouterr().err
    (out / "00000.h5").unlink()
    assert train.main(options) == 2
    assert "00000.h5 is not there" in capsys.readouterr().err
