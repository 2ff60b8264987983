"""pipeline.prepare --dataset shards: captions beside many stores become one database."""

import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoder.runs.folder import digest
from features.row_format import RowFormat
from features.shard_outputs import Outputs, make_shard
from features.shards import Shard, ShardError, find_shards
from pipeline import caption_database, captions, prepare, vocabulary
from pipeline.caption_database import CaptionDatabase, open_database, open_features
from pipeline.word_counts import WordCounts
from pipeline.work import WorkFolder
from tests.features.conftest import DESCRIPTION, extract
from tests.shards import divide

Entry = dict[str, Any]


def entry(image_id: int, **changes: Any) -> Entry:
    words = ("A dog", "Two cats", "<b>Boats</b> &amp; birds")[image_id % 3]
    default = {
        "id": image_id,
        "key": f"key{image_id}",
        "file_name": f"{image_id}.jpg",
        "captions": [f"{words} in the sun.", "  "],
    }
    return {**default, **changes}


def write_shard(out: Path, name: str, entries: list[Entry], compression: str = "deflate") -> None:
    out.mkdir(exist_ok=True)
    failed = {one["id"]: one["error"] for one in entries if one.get("error")}
    path = out / f"{name}.h5"
    kind = RowFormat(DESCRIPTION, compression=compression)
    extract(path, [one["id"] for one in entries], kind, failed)
    path.with_suffix(".jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*options: str) -> tuple[int, str]:
        root, work = str(tmp_path / "out"), str(tmp_path / "work")
        arguments = ["--dataset", "shards", "--root", root, "--work", work, *options]
        status = prepare.main(arguments)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def test_a_database_equals_the_table_that_its_shards_were_made_from(extracted_shapes, tmp_path):
    out = divide(extracted_shapes, tmp_path / "out", 7)
    arguments = ["--dataset", "shards", "--root", str(out), "--work", str(tmp_path / "work")]
    assert prepare.main([*arguments, "--min-count", "2"]) == 0
    one, many = WorkFolder(extracted_shapes), WorkFolder(tmp_path / "work")
    table, database = captions.load(one.captions), open_database(many.captions)
    assert vocabulary.load(many.vocabulary) == vocabulary.load(one.vocabulary)
    shard_of = {image.id: f"{n // 7:05}/" for n, image in enumerate(table.images)}
    for split in captions.SPLITS:
        images = table.split(split)
        found = database.split(split)
        assert len(found) == len(images) == len(list(found))
        for one_image, image in zip(images, found, strict=True):
            assert image.captions == one_image.captions
            assert image.file_name == shard_of[image.id] + one_image.file_name
        assert found[-1] == list(found)[-1] == found[len(found) - 1]
        assert found[1:3] == list(found)[1:3]
        assert found.at([2, 0, 2]) == [found[2], found[0], found[2]]
        assert found.digest == digest(list(found))
        assert found.captions == sum(len(image.captions) for image in images)
        assert found.count_S.sum() == len(images)
        with pytest.raises(IndexError):
            found[len(found)]
    every = [image for split in captions.SPLITS for image in database.split(split)]
    assert database.images[-2::-7] == every[-2::-7]
    assert database.images[-1] == every[-1]
    ids = [image.id for image in table.images]
    assert dict(database.file_names()) == {i.id: i.file_name for i in database.images}
    store, stores = open_features(one), open_features(many)
    np.testing.assert_array_equal(stores.pooled(stores.rows(ids)), store.pooled(store.rows(ids)))
    val = database.split("val")
    rows = val.rows[np.array([1, 0])]
    assert stores.image_ids[rows].tolist() == [val[1].id, val[0].id]
    assert [image.split for image in database.with_ids([val[1].id])] == ["val"]


def test_splits_follow_the_key_or_the_line_and_stay_when_pictures_are_added(run, tmp_path):
    out, work = tmp_path / "out", WorkFolder(tmp_path / "work")
    write_shard(out, "a", [entry(i) for i in range(300)])
    assert run()[0] == 0
    before = {i.id: i.split for i in open_database(work.captions).images}
    counts = {split: list(before.values()).count(split) for split in captions.SPLITS}
    assert sum(counts.values()) == 300
    assert 15 < counts["val"] < 45
    assert 15 < counts["test"] < 45
    own = [entry(300, split="validation"), entry(301, split="test"), entry(302, split=None)]
    write_shard(out, "b", [*own, *(entry(i) for i in range(303, 400))])
    status, printed = run("--val", "20", "--test", "20")
    assert status == 0
    assert "1 images are in no split, left out" in printed
    after = {i.id: i.split for i in open_database(work.captions).images}
    assert (after[300], after[301], 302 in after) == ("val", "test", False)
    moved = {(before[i], after[i]) for i in before if before[i] != after[i]}
    assert moved <= {("val", "train"), ("test", "train")}


def test_failed_pictures_and_empty_captions_are_counted_and_left_out(run, tmp_path):
    out, work = tmp_path / "out", WorkFolder(tmp_path / "work")
    write_shard(out, "a", [entry(0, split="train"), entry(1, split="val")])
    broken = entry(2, split="val", error="it is empty")
    write_shard(out, "b", [broken, entry(3, split="val", captions=[]), entry(4, split="val")])
    write_shard(out, "c", [entry(5)])
    (out / "c.h5").unlink()
    status, printed = run("--min-count", "1")
    assert status == 0
    assert "1 shards have no store yet, left out: c" in printed
    assert "1 images have no caption, left out: b/3.jpg" in printed
    assert "1 pictures could not be read, left out" in printed
    assert "3 captions are empty or have no word, left out" in printed
    assert "1 train, 2 val, 0 test images of shards" in printed
    table = open_database(work.captions)
    assert table.split("val").left_out == 1
    assert table.split("train")[0].captions[0].text == "A dog in the sun."
    assert not table.has_split("test")


def test_every_shard_that_was_begun_but_is_not_done_is_named(run, tmp_path):
    out = tmp_path / "out"
    write_shard(out, "a", [entry(i) for i in range(30)])
    outputs = Outputs(str(out), "pipeline.extract", {}, (".jsonl", ".h5"))
    captioning = replace(outputs, command="decoder.caption", suffixes=(".jsonl",))
    while_made, by_record, of_captions, broken = find_shards([f"{tmp_path}/{{1..4}}.tar"])

    def stop(*_: object) -> Any:
        raise KeyboardInterrupt

    def write(shard: Shard, folder: Path) -> dict[str, Any]:
        for suffix in outputs.suffixes:
            (folder / f"{shard.name}{suffix}").touch()
        return {}

    def refuse(*_: object) -> Any:
        raise ShardError("cut off")

    with pytest.raises(KeyboardInterrupt):
        make_shard(while_made, outputs, stop)
    assert make_shard(broken, outputs, refuse).state == "broken"
    assert make_shard(of_captions, captioning, write).state == "made"
    outputs.place.put = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        make_shard(by_record, outputs, write)
    (out / "notes.json").write_text('{"by": "another program"}')
    for _ in range(2):  # also when nothing has changed since
        assert "3 shards have no store yet, left out: 1, 2, 4; continue" in run()[1]


def test_paths_and_urls_of_lists_become_names_inside_their_shard(run, tmp_path):
    names = ["/data/1.jpg", "../../2.jpg", "https://x.org/a\n.jpg", "\\\\disk\\4.jpg"]
    entries = [entry(i, file_name=name, split="train") for i, name in enumerate(names)]
    write_shard(tmp_path / "out", "a", entries)
    assert run("--min-count", "1")[0] == 0
    images = open_database(WorkFolder(tmp_path / "work").captions).images
    expected = ["a/data/1.jpg", "a/2.jpg", "a/https:/x.org/a_.jpg", "a/disk/4.jpg"]
    assert [image.file_name for image in images] == expected
    assert all(captions.check_file_name(name) for name in expected)


def test_prepare_is_skipped_until_a_shard_or_an_option_changes(run, tmp_path):
    out = tmp_path / "out"
    write_shard(out, "a", [entry(i) for i in range(30)])
    assert "vocabulary of" in run("--min-count", "1")[1]
    assert "unchanged, skipped" in run("--min-count", "1")[1]
    assert "vocabulary of" in run("--min-count", "2")[1]
    written = [tmp_path / "work" / name for name in ("captions.db", "vocabulary.json")]
    before = [path.read_bytes() for path in written]
    refused = run("--min-count", "1000000", "--val", "0")
    assert refused[0] == 2
    assert "no word occurs 1000000 times" in refused[1]
    assert [path.read_bytes() for path in written] == before
    write_shard(out, "b", [entry(i) for i in range(30, 32)])
    assert "32" in run("--min-count", "2", "--val", "0", "--test", "0")[1]
    stale = sorted((tmp_path / "work").glob(".captions*"))
    assert stale == []


BAD = {
    "not json": (b'{"id": 1', "expected a JSON object"),
    "a list": (b"[]", "expected a JSON object, found list"),
    "no key": (json.dumps({"id": 1}).encode(), "found no key, file_name, captions"),
    "an unknown field": (json.dumps(entry(1, licence="x")).encode(), "found also 'licence'"),
    "an id in quotes": (json.dumps(entry(1, id="1")).encode(), "expected an integer"),
    "an unknown split": (json.dumps(entry(1, split="hold")).encode(), "unknown split 'hold'"),
    "a split of numbers": (json.dumps(entry(1, split=3)).encode(), "name of a split, found 3"),
    "a name of numbers": (json.dumps(entry(1, file_name=1)).encode(), "the file name of a picture"),
    "a caption of numbers": (json.dumps(entry(1, captions=[1])).encode(), "a string as caption"),
    "captions as text": (json.dumps(entry(1, captions="a")).encode(), "a list of captions"),
    "another image": (json.dumps(entry(5)).encode(), "is image 5, but row 1 of"),
    "an error that is none": (json.dumps(entry(1, error="x")).encode(), "an error exactly if"),
    "bytes": (b"\xff\xfe", "expected a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_line_that_is_not_understood_is_refused_by_file_and_line(name, run, tmp_path):
    out = tmp_path / "out"
    write_shard(out, "a", [entry(i) for i in range(4)])
    path = out / "a.jsonl"
    lines = path.read_bytes().splitlines()
    lines[1], expected = BAD[name]
    path.write_bytes(b"\n".join(lines) + b"\n")
    status, printed = run()
    assert status == 2
    assert expected in printed
    assert "a/1.jpg" in printed or f"{path}, line 2" in printed
    assert not WorkFolder(tmp_path / "work").database.exists()


def test_files_that_do_not_belong_together_are_refused(run, tmp_path):
    out = tmp_path / "out"
    write_shard(out, "a", [entry(i) for i in range(4)])
    path = out / "a.jsonl"
    text = path.read_text()
    path.write_text("\n".join(text.splitlines()[:3]) + "\n")
    assert "has 3 lines" in run()[1]
    path.write_text(text + json.dumps(entry(9)) + "\n")
    assert "is image 9, but row 4 of" in run()[1]
    path.unlink()
    assert "it has the captions of a.h5" in run()[1]
    path.write_text(text)
    write_shard(out, "b", [entry(9), entry(2)])
    status, printed = run()
    assert status == 2
    assert "'key2'" in printed
    assert "occurs twice" in printed
    (out / "b.h5").unlink()
    (out / "b.jsonl").unlink()
    assert run()[0] == 0


def test_shards_are_not_mixed_with_other_data_sets_and_need_stores(run, tmp_path, capsys):
    assert "there is no such folder" in run()[1]
    (tmp_path / "out").mkdir()
    assert "expected the stores of shards" in run()[1]
    assert "cannot be combined" in run("--dataset", "shapes")[1]
    assert prepare.main(["--dataset", "shapes", "--work", str(tmp_path / "w"), "--val", "3"]) == 2
    assert "--val is for --dataset shards" in capsys.readouterr().err


def test_a_damaged_database_is_refused_and_another_format_named(run, tmp_path):
    write_shard(tmp_path / "out", "a", [entry(i) for i in range(30)])
    assert run()[0] == 0
    path = WorkFolder(tmp_path / "work").captions
    with sqlite3.connect(path) as database:
        database.execute("UPDATE info SET value = '7' WHERE name = 'format'")
    with pytest.raises(captions.UserError, match="has format 7, this version reads format 1"):
        open_database(path)
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE info SET value = {caption_database.FORMAT} WHERE name = 'format'")
        database.execute("DELETE FROM shards")
    with pytest.raises(captions.UserError, match=r"or is damaged \(it has no shards\)"):
        open_database(path)
    os.truncate(path, 3000)
    with pytest.raises(captions.UserError, match="is not a caption database, or is damaged"):
        open_database(path)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(captions.UserError, match="is not a caption database, or is damaged"):
        open_database(path)


def test_another_store_of_the_same_size_is_noticed_unless_its_content_was_not_recorded(
    run, tmp_path
):
    out, work = tmp_path / "out", WorkFolder(tmp_path / "work")
    write_shard(out, "a", [entry(i) for i in range(30)], compression="none")
    assert run()[0] == 0
    open_features(work).pooled([0])
    size = (out / "a.h5").stat().st_size
    (out / "a.h5").unlink()
    write_shard(out, "a", [entry(i) for i in range(100, 130)], compression="none")
    assert (out / "a.h5").stat().st_size == size
    with pytest.raises(captions.UserError, match=r"a\.h5 has changed since"):
        open_features(work).pooled([0])
    with sqlite3.connect(work.captions) as database:
        database.execute("ALTER TABLE shards DROP COLUMN crc")
    open_features(work).pooled([0])


def test_another_data_set_takes_the_place_of_shards_and_back(run, tmp_path, extracted_shapes):
    write_shard(tmp_path / "out", "a", [entry(i) for i in range(30)])
    assert run()[0] == 0
    work = WorkFolder(tmp_path / "work")
    assert isinstance(caption_database.load(work.captions), CaptionDatabase)
    shapes = ["--dataset", "shapes", "--images", "20", "--work", str(work.path)]
    assert prepare.main(shapes) == 0
    assert work.captions.name == "captions.json"
    assert run()[0] == 0
    assert work.captions.name == work.features.name == "captions.db"


def test_word_counts_that_went_to_the_disk_are_exact(monkeypatch):
    monkeypatch.setattr("pipeline.word_counts._IN_MEMORY", 3)
    counts = WordCounts()
    for number in range(50):
        counts.add(["a", f"w{number % 7}", "é"])
    assert dict(counts) == {"a": 50, "é": 50, **{f"w{n}": 7 + (n == 0) for n in range(7)}}
