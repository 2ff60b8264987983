"""`pipeline.extract --shards`: a store and captions for each shard, whatever the others hold."""

import json
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
import s3fs
import torch
from pyarrow import parquet

from features.backbones import load_backbone
from features.images import read_picture
from features.shard_samples import id_of_key
from features.store import FeatureStore
from pipeline.extract import main
from tests.object_store import object_store
from tests.tar_shards import jpeg, shard, tar

BACKBONE = ["--backbone", "efficientnet_lite0", "--backend", "eager", "--batch-size", "2"]


def extract(shards: object, out: object, *options: str) -> int:
    return main(["--shards", str(shards), "--out", str(out), *BACKBONE, *options])


def report(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def lines(out: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three shards: 0 has a broken picture, 1 is cut off, 2 is all right."""
    folder = tmp_path / "data"
    folder.mkdir()
    shard(folder / "0.tar", ["00", "01", "02"], broken=["01"])
    whole = shard(folder / "1.tar", ["10", "11"]).read_bytes()
    (folder / "1.tar").write_bytes(whole[: len(whole) // 2])
    shard(folder / "2.tar", ["20", "21"])
    return folder


def test_each_shard_becomes_a_store_with_its_captions(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert extract(f"{data}/{{0..2}}.tar", out) == 1
    printed = capsys.readouterr()
    assert re.search(rf"broken shard: 1 \({data}/1\.tar\): cut off", printed.err)
    figures = json.loads(printed.out.splitlines()[-1])
    assert (figures["made"], figures["broken"], figures["pictures"]) == (2, 1, 5)
    assert figures["failed"] == 1
    assert sorted(path.name for path in out.glob("*")) == sorted(
        [".claims", *(f"{name}.{suffix}" for name in "02" for suffix in ("h5", "json", "jsonl"))]
    )
    rows = lines(out, "0")
    assert [(row["key"], row["file_name"], row["captions"]) for row in rows] == [
        (key, f"{key}.jpg", [f"picture {key} of a collection"]) for key in ("00", "01", "02")
    ]
    assert [bool(row.get("error")) for row in rows] == [False, True, False]
    store = FeatureStore(out / "0.h5")
    assert store.image_ids.tolist() == [row["id"] for row in rows]
    assert store.image_ids.tolist() == [id_of_key(row["key"]) for row in rows]
    assert (store.status.tolist(), store.failures()) == (
        [1, 2, 1],
        {rows[1]["id"]: rows[1]["error"]},
    )
    with h5py.File(out / "0.h5") as file:
        assert file["key"].asstr()[:].tolist() == ["00", "01", "02"]
    (tmp_path / "02.jpg").write_bytes(jpeg(2))
    backbone = load_backbone("efficientnet_lite0", 7, torch.device("cpu"), "eager")
    pixels = backbone.transform(read_picture(tmp_path / "02.jpg"))[None]
    np.testing.assert_allclose(store.grid([2]), backbone.features(pixels)[0], rtol=0.01, atol=0.01)


def test_a_second_run_makes_only_what_is_missing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert extract(f"{data}/{{0..2}}.tar", out) == 1
    before = (out / "0.h5").stat().st_mtime_ns
    shard(data / "1.tar", ["10", "11"])
    (out / "2.h5").unlink()
    capsys.readouterr()
    assert extract(f"{data}/{{0..2}}.tar", out, "--quiet") == 0
    figures = report(capsys)
    assert (figures["done_before"], figures["made"], figures["broken"]) == (1, 2, 0)
    assert (out / "0.h5").stat().st_mtime_ns == before
    assert extract(f"{data}/*.tar", out, "--verify") == 0
    assert extract(f"{data}/*.tar", out, "--grid", "5") == 2
    assert "grid [7, 7] instead of [5, 5]" in capsys.readouterr().err
    assert extract(f"{data}/*.tar", out, "--prefix-keys") == 2
    assert "other outputs than requested: prefix_keys" in capsys.readouterr().err
    assert extract(f"{data}/*.tar", out, "--columns", "image=url") == 2
    assert "other outputs than requested: columns" in capsys.readouterr().err
    content = bytearray((out / "2.h5").read_bytes())
    content[-1] ^= 1
    (out / "2.h5").write_bytes(content)
    assert extract(f"{data}/*.tar", out, "--verify") == 1
    assert "verify: 2: 2.h5 has another SHA-256 than recorded" in capsys.readouterr().out
    assert extract(f"{data}/2.tar", out, "--force") == 0
    assert extract(f"{data}/*.tar", out, "--verify") == 0


def test_a_tar_a_folder_and_a_list_of_the_same_pictures_give_the_same_features(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a" / "0"
    folder.mkdir(parents=True)
    for number, key in enumerate("xyz"):
        (folder / f"{key}.jpg").write_bytes(jpeg(number))
        (folder / f"{key}.txt").write_text(f"caption {key}\nanother")
    files = sorted(folder.iterdir())
    (tmp_path / "b").mkdir()
    tar(tmp_path / "b" / "0.tar", [(file.name, file.read_bytes()) for file in files])
    (tmp_path / "c").mkdir()
    columns = {
        "path": [f"../a/0/{key}.jpg" for key in "xyz"],
        "caption": [[f"caption {key}", "another"] for key in "xyz"],
        "key": list("xyz"),
    }
    parquet.write_table(pa.table(columns), tmp_path / "c" / "0.parquet")
    for name, pattern in {"a": "*", "b": "*.tar", "c": "*.parquet"}.items():
        assert extract(f"{tmp_path}/{name}/{pattern}", tmp_path / f"out_{name}") == 0
    stores = [(tmp_path / f"out_{name}" / "0.h5").read_bytes() for name in "abc"]
    assert stores[0] == stores[1] == stores[2]
    texts = [[row["captions"] for row in lines(tmp_path / f"out_{name}", "0")] for name in "abc"]
    assert texts[0] == texts[1] == texts[2]


def test_a_file_of_scales_serves_all_shards(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scale = tmp_path / "out", tmp_path / "scale.json"
    int8 = ["--dtype", "int8", "--scale", str(scale)]
    assert extract(f"{data}/2.tar", out, *int8) == 0
    made = scale.read_bytes()
    (tmp_path / ".scale.json.lock").unlink(missing_ok=True)
    (tmp_path / ".scale.json.lock").mkdir()  # as if nothing could be written there
    assert extract(f"{data}/0.tar", out, *int8) == 0
    scales = [FeatureStore(out / f"{name}.h5").row_format.scale for name in "02"]
    np.testing.assert_array_equal(*scales)
    assert scale.read_bytes() == made
    other = ["--dtype", "int8", "--scale", str(tmp_path / "other.json")]
    capsys.readouterr()
    assert extract(f"{data}/{{0,2}}.tar", out, *other) == 2
    assert "other outputs than requested: scale" in capsys.readouterr().err
    assert extract(f"{data}/0.tar", out, *int8, "--grid", "5") == 2
    assert "--scale" in (error := capsys.readouterr().err)
    assert "expected the scale of features with the fingerprint" in error
    scale.write_text('{"scale": [1]}')
    assert extract(f"{data}/0.tar", out, *int8) == 2
    assert "is not a file of scales" in capsys.readouterr().err


def test_a_dry_run_measures_a_shard_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert extract(f"{data}/{{1,2}}.tar", out, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert f"extract --dry-run: 1 ({data}/1.tar) is broken: cut off" in printed
    assert f"the shard 2 ({data}/2.tar), the first of 2 to do" in printed
    assert "2 pictures with efficientnet_lite0" in printed
    assert list(out.iterdir()) == []
    assert extract(f"{data}/1.tar", out, "--dry-run") == 1
    assert "extract --dry-run: no shard to do can be read" in capsys.readouterr().out


def test_a_shard_without_any_readable_picture_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(tmp_path / "0.tar", ["a", "b"], broken=["a", "b"])
    assert extract(tmp_path / "0.tar", tmp_path / "out") == 1
    assert "none of its 2 pictures can be read: a.jpg: " in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.h5"))


def test_an_error_about_pictures_of_a_list_has_no_secret_of_their_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"url": f"http://{host}/a.jpg?token=secret"} for host in ("127.0.0.1:1", "me:secret@[x")
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    for options in ([], ["--dry-run"]):
        assert extract(tmp_path / "0.parquet", tmp_path / "out", *options)
        error = capsys.readouterr().err
        assert re.search(r"none of (its )?2 pictures can be read.* http://127.0.0.1:1/a.jpg", error)
        assert "secret" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "expected --work PATH, or --shards PATTERN and --out FOLDER"),
        ("--work w --shards a.tar", "expected --work or --shards, found both"),
        ("--shards a.tar", "--shards needs --out"),
        ("--work w --out o", "leave out --out: it has no use with --work"),
        ("--shards a.tar --out o --prune", "leave out --prune: it has no use with --shards"),
        ("--shards a.tar --out o --from f", "leave out --from: it has no use with --shards"),
        ("--shards a.tar --out o --dtype int8", "--dtype int8 and --scale FILE go together"),
        ("--shards a.tar --out o --gpus 0.5", "--gpus: expected --engine ray"),
        ("--shards a.tar --out o --columns x", "--columns: expected image=NAME"),
        ("--shards a.tar --out o --views 20", "--views must be at most 12"),
        ("--work w --retry", "leave out --retry: it has no use with --work"),
        ("--shards a.tar --out http://a/b", "a web server cannot be written to"),
        ("--shards {missing}/*.tar --out o", "matches nothing; check the path, and quote"),
    ],
)
def test_wrong_use_is_explained(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part.replace("{missing}", str(tmp_path)) for part in options.split()]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_shards_on_s3_become_stores_on_s3(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(f"{data}/{{0,2}}.tar", tmp_path / "local") == 0
    with object_store() as bucket:
        system = s3fs.S3FileSystem()
        for name in ("0.tar", "1.tar", "2.tar"):
            system.put_file(str(data / name), f"{bucket}/in/{name}")
        capsys.readouterr()
        assert extract(f"{bucket}/in/*.tar", f"{bucket}/out") == 1
        printed = capsys.readouterr()
        assert "broken shard: 1 (s3://bucket/in/1.tar): cut off" in printed.err
        names = {path.rpartition("/")[2] for path in system.find(f"{bucket}/out")}
        assert names == {f"{n}.{suffix}" for n in "02" for suffix in ("h5", "json", "jsonl")}
        for name in ("0.h5", "0.jsonl", "2.h5", "2.jsonl"):
            published = system.cat_file(f"{bucket}/out/{name}")
            assert published == (tmp_path / "local" / name).read_bytes()
        assert extract(f"{bucket}/in/{{0,2,3}}.tar", f"{bucket}/out") == 1
        printed = capsys.readouterr()
        assert "broken shard: 3 (s3://bucket/in/3.tar): it cannot be read: no such" in printed.err
        assert json.loads(printed.out.splitlines()[-1])["done_before"] == 2
        assert extract(f"{bucket}/in/{{0,2}}.tar", f"{bucket}/out", "--verify") == 0


class Pages(SimpleHTTPRequestHandler):
    """Files of a folder, and pages that a bad server sends."""

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        if self.path == "/short.tar":  # it ends before all was sent
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(bytes(10))
        elif self.path == "/late.jpg" and not Path(self.directory, "late.jpg").exists():
            self.send_error(503)
        elif self.path == "/endless.jpg":
            self.send_response(200)
            self.end_headers()
            for _ in range(2**10):
                self.wfile.write(bytes(2**12))
        else:
            super().do_GET()


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Pages, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_shards_and_lists_of_pictures_are_read_from_the_web(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("features.shard_samples.MAX_PICTURE_BYTES", 2**18)
    (data / "a.jpg").write_bytes(jpeg())
    out = tmp_path / "out"
    with web_server(data) as address:
        urls = [f"{address}/{name}.jpg" for name in ("a", "missing", "endless", "late")]
        urls[0] = urls[0].replace("http:", "HTTP:")
        urls.insert(2, "a.jpg")
        parquet.write_table(pa.table({"url": urls, "key": list("abcde")}), data / "list.parquet")
        assert extract(f"{address}/{{0,2,4,short}}.tar", out) == 1
        error = capsys.readouterr().err
        assert re.search(r"broken shard: 4 \(http:.*/4\.tar\): it cannot be read: no such", error)
        assert re.search(r"broken shard: short \(http:.*\): it cannot be read: ", error)
        capsys.readouterr()
        assert extract(f"{address}/list.parquet", out) == 0
        printed = capsys.readouterr().out
        assert "1 shard made, 5 pictures, 0 captions; 3 pictures could not be read" in printed
        assert "1 picture failed for reasons that may pass; run again with --retry" in printed
        assert "no picture has a caption" in printed
        (data / "late.jpg").write_bytes(jpeg())
        assert extract(f"{address}/list.parquet", out) == 0
        assert report(capsys)["done_before"] == 1
        assert lines(out, "list")[4]["error"] == "the server answered 503"
        assert extract(f"{address}/list.parquet", out, "--retry") == 0
        assert report(capsys)["failed"] == 2
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # like a full disk
        try:
            assert extract(f"{address}/0.tar", tmp_path / "another") == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "set TMPDIR to a folder on a larger disk" in capsys.readouterr().err
    assert [len(lines(out, name)) for name in ("0", "2")] == [3, 2]
    errors = [row.get("error") for row in lines(out, "list")]
    assert errors[:3] == [None, "no such file", None]
    assert errors[3:] == ["larger than 262,144 bytes", None]
