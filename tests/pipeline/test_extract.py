import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from features import efficientnet_lite
from features.backbones import load_backbone
from features.efficientnet_lite import Variant
from features.errors import UserError
from features.images import read_picture
from features.parts import scan
from features.row_format import RowFormat
from features.store import FeatureStore
from features.views import VIEWS
from pipeline import captions
from pipeline.captions import Caption, CaptionTable, Image, save
from pipeline.extract import main

CAPTIONS = (Caption("a dog runs", ("a", "dog", "runs")),)
LITE0 = ("--backbone", "efficientnet_lite0")


def picture(seed: int, size: tuple[int, int] = (80, 60)) -> Picture.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Picture.fromarray(pixels).resize(size, Picture.Resampling.BICUBIC)


def prepare(work: Path, files: dict[str, bytes | None]) -> Path:
    """Create a work directory with these pictures; those without bytes are missing."""
    root = work / "pictures"
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if data is not None:
            (root / name).write_bytes(data)
    images = tuple(Image(i, name, "train", CAPTIONS) for i, name in enumerate(files, start=1))
    save(CaptionTable("test", root, images), work / "captions.json")
    return work


def encoded(picture: Picture.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def good_pictures(count: int) -> dict[str, bytes | None]:
    return {f"{i}.png": encoded(picture(i)) for i in range(count)}


def extract(work: Path, *options: str) -> int:
    """Run the stage with the backend that loads fastest; tests/features tests the others."""
    backend = () if "--backend" in options else ("--backend", "eager")
    size = () if "--batch-size" in options else ("--batch-size", "4")  # the last one is as large
    return main(["--work", str(work), *LITE0, "--workers", "1", *backend, *size, *options])


def test_store_has_the_features_that_the_network_computes(tmp_path: Path, capsys) -> None:
    work = prepare(tmp_path, good_pictures(3))
    assert extract(work, "--grid", "3", "--backend", "auto") == 0
    assert "3 pictures with efficientnet_lite0" in capsys.readouterr().out

    backbone = load_backbone("efficientnet_lite0", 3, torch.device("cpu"))
    grid, pooled = backbone.features(
        torch.stack(
            [backbone.transform(read_picture(work / f"pictures/{i}.png")) for i in range(3)]
        )
    )
    store = FeatureStore(work / "features.h5")
    assert store.description == backbone.description
    rows = store.rows([1, 2, 3])
    np.testing.assert_allclose(store.grid(rows), grid, atol=2e-3, rtol=1e-3)
    np.testing.assert_allclose(store.pooled(rows), pooled, atol=2e-3, rtol=1e-3)

    report = json.loads((work / "extract.json").read_text())
    size = (work / "features.h5").stat().st_size
    assert (report["images"], report["failed"], report["backend"]) == (3, 0, backbone.backend)
    assert (report["bytes"], report["bytes_per_image"]) == (size, round(size / 3))
    # The seconds are rounded to 0.001 and the rate to 0.01.
    seconds, rate = report["seconds"], report["images_per_second"]
    assert 3 / (seconds + 0.0005) - 0.005 <= rate <= 3 / (seconds - 0.0005) + 0.005


def unusual_and_broken_pictures() -> dict[str, bytes | None]:
    exif = Picture.Exif()
    exif[0x0112] = 6
    jpeg = encoded(picture(0), "JPEG", quality=95)
    frames = [picture(1), picture(2)]
    gray = np.asarray(picture(0).convert("L"))
    return {
        "good.jpg": jpeg,
        "gray.png": encoded(picture(0).convert("L")),
        "16-bit.png": encoded(Picture.fromarray(gray.astype(np.uint16) << 8)),
        "cmyk.jpg": encoded(picture(0).convert("CMYK"), "JPEG", quality=95),
        "transparent.png": encoded(picture(0).convert("RGBA")),
        "palette.png": encoded(picture(0).quantize(256)),
        "animated.webp": encoded(
            picture(0), "WEBP", lossless=True, save_all=True, append_images=frames
        ),
        "turned.jpg": encoded(picture(0).rotate(90, expand=True), "JPEG", quality=95, exif=exif),
        "huge.jpg": encoded(picture(0, (6000, 4500)), "JPEG"),
        "corrupt.jpg": jpeg[:300] + bytes(len(jpeg) - 300),
        "truncated.jpg": jpeg[: len(jpeg) * 2 // 3],
        "empty.jpg": b"",
        "text.jpg": b"this is not a picture",
        "missing.jpg": None,
    }


def test_unusual_pictures_are_read_correctly_and_broken_ones_marked_with_the_reason(
    tmp_path: Path, capsys
) -> None:
    files = unusual_and_broken_pictures()
    work = prepare(tmp_path, files)
    (work / "pictures" / "folder.jpg").mkdir()
    work = prepare(tmp_path, files | {"folder.jpg": None})
    assert extract(work) == 0
    output = capsys.readouterr().out
    assert "9 pictures stored; 6 failed and are left out: " in output
    assert len(json.loads((work / "extract.json").read_text())["unreadable"]) == 6
    assert f"{work}/pictures/corrupt.jpg (" in output
    assert "and 3 more" in output

    store = FeatureStore(work / "features.h5")
    names = dict(enumerate([*files, "folder.jpg"], start=1))
    reasons = {names[image_id]: reason for image_id, reason in store.failures().items()}
    assert reasons.pop("corrupt.jpg")
    assert "truncated" in reasons.pop("truncated.jpg")
    assert reasons == {
        "empty.jpg": "the file is empty",
        "text.jpg": "not a picture but a text file",
        "missing.jpg": "no such file",
        "folder.jpg": "not a file but a directory or a device",
    }

    pooled = store.pooled(store.rows(range(1, 10))).astype(np.float32)
    feature = dict(zip(files, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), strict=False))
    np.testing.assert_array_equal(feature["16-bit.png"], feature["gray.png"])
    similarity = {name: vector @ feature["good.jpg"] for name, vector in feature.items()}
    for name in ("cmyk.jpg", "transparent.png", "animated.webp", "turned.jpg", "huge.jpg"):
        assert similarity[name] > 0.9, similarity


def test_work_directory_without_a_readable_picture_is_an_error(tmp_path: Path, capsys) -> None:
    work = prepare(tmp_path, {"a.jpg": b"", "b.jpg": None})
    assert extract(work) == 2
    assert "none of the 2 pictures could be read" in capsys.readouterr().err
    assert extract(work) == 2  # and the stage does not count as finished


def test_unchanged_stage_is_skipped_and_a_repaired_picture_is_tried_again(
    tmp_path: Path, capsys
) -> None:
    work = prepare(tmp_path, {**good_pictures(2), "bad.png": b""})
    assert extract(work) == 0
    capsys.readouterr()
    assert extract(work) == 0
    output = capsys.readouterr().out
    assert output.startswith("extract: unchanged, skipped; 1 failed and are left out: ")
    assert output.endswith("bad.png (the file is empty)\n")

    (work / "pictures" / "bad.png").write_bytes(encoded(picture(9)))
    assert extract(work) == 0
    assert "3 pictures stored\n" in capsys.readouterr().out
    assert json.loads((work / "extract.json").read_text())["tried_in_this_run"] == 1


def test_new_images_are_added_without_extracting_the_old_ones_again(tmp_path: Path) -> None:
    assert extract(prepare(tmp_path, good_pictures(2))) == 0
    before = FeatureStore(tmp_path / "features.h5").grid(np.array([0, 1]))
    (tmp_path / "pictures" / "0.png").unlink()  # its stored features are enough
    files: dict[str, bytes | None] = {**good_pictures(3), "0.png": None}
    assert extract(prepare(tmp_path, files)) == 0
    store = FeatureStore(tmp_path / "features.h5")
    assert (store.status == 1).all()
    np.testing.assert_array_equal(store.grid(store.rows([1, 2])), before)
    assert json.loads((tmp_path / "extract.json").read_text())["tried_in_this_run"] == 1


def test_a_changed_picture_is_extracted_again_and_a_copied_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = prepare(tmp_path, good_pictures(3))
    assert extract(work) == 0
    pictures = work / "pictures"
    before = FeatureStore(work / "features.h5").pooled([0, 1, 2])
    (pictures / "0.png").write_bytes(encoded(picture(9)))
    os.utime(pictures / "1.png", (1, 1))  # as if it were copied
    capsys.readouterr()
    assert extract(work) == 0
    assert "1 pictures have changed since: " in capsys.readouterr().out
    assert json.loads((work / "extract.json").read_text())["tried_in_this_run"] == 1
    after = FeatureStore(work / "features.h5").pooled([0, 1, 2])
    assert (before == after).all(1).tolist() == [False, True, True]
    assert extract(work) == 0
    assert "unchanged, skipped" in capsys.readouterr().out


def test_another_backbone_is_refused_unless_forced(tmp_path: Path, capsys) -> None:
    work = prepare(tmp_path, good_pictures(1))
    assert extract(work) == 0
    assert extract(work, "--grid", "5") == 2
    error = capsys.readouterr().err
    assert "holds other features than requested: grid [7, 7] instead of [5, 5]; repeat" in error
    assert "to extend it (--grid 7), or use another --work; --force replaces these" in error
    assert extract(work, "--grid", "5", "--force") == 0
    assert FeatureStore(work / "features.h5").description["grid"] == [5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backbone", "resnet100"), "unknown backbone 'resnet100': did you mean resnet101"),
        (("--grid", "8"), "smaller than --grid 8"),
        (("--batch-size", "0"), "--batch-size must be at least 1"),
        (("--device", "gpu"), "--device"),
        (("--backend", "onnx"), "--backend"),
        (("--batchsize", "3"), "--batch-size"),
    ],
)
def test_invalid_options_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys
) -> None:
    work = prepare(tmp_path, good_pictures(1))
    lite0 = LITE0 if "--backbone" not in options else ()
    assert main(["--work", str(work), *lite0, *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert not (work / "features.h5").exists()


def test_too_small_a_disk_is_refused_before_extraction_starts(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = prepare(tmp_path, good_pictures(4))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 9 * 10**5, 10**5))
    assert extract(work) == 2
    error = capsys.readouterr().err
    assert "features.h5 needs 0.17 MB" in error
    assert "the disk has 0.10 MB free" in error
    assert not (work / "features.h5").exists()


def test_a_damaged_store_is_refused_and_force_replaces_it(tmp_path: Path, capsys) -> None:
    work = prepare(tmp_path, good_pictures(1))
    (work / "features.h5").write_bytes(b"\x89HDF\r\n\x1a\n and then nothing")
    assert extract(work) == 2
    assert "is not a feature store, or is damaged" in capsys.readouterr().err
    assert extract(work, "--force") == 0


def test_a_missing_caption_table_is_refused(tmp_path: Path, capsys) -> None:
    assert extract(tmp_path) == 2
    error = capsys.readouterr().err
    assert "captions.json is not there" in error
    assert "python -m pipeline.prepare" in error


def test_extraction_continued_after_a_kill_writes_the_same_store(tmp_path: Path) -> None:
    # test_extract_processes.py kills many more processes, at random moments.
    files = {**good_pictures(PICTURES), "bad.png": b""}
    work, reference = prepare(tmp_path / "work", files), prepare(tmp_path / "reference", files)
    # With this backend, the features of a picture do not depend on the others in its batch.
    options = ["--backend", "onnxruntime", "--batch-size", "4"]
    arguments = ["--work", work, *LITE0, "--workers", "1", *options]
    process = subprocess.Popen([sys.executable, "-m", "pipeline.extract", *arguments])
    parts = work / "features.parts"
    deadline = time.monotonic() + 60
    while not (done := stored(parts)) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    done = stored(parts)
    assert 0 < done < PICTURES

    for folder in (work, reference):
        assert extract(folder, *options) == 0
    report = json.loads((work / "extract.json").read_text())
    assert report["tried_in_this_run"] == PICTURES + 1 - done
    assert (work / "features.h5").read_bytes() == (reference / "features.h5").read_bytes()


PICTURES = 40


def stored(parts: Path) -> int:
    description = {"grid": [7, 7], "channels": 1280, "dtype": "float16"}
    return sum(place.stored for place in scan(parts, RowFormat(description)).values())


@pytest.mark.parametrize("options", [(), ("--dtype", "int8", "--views", "3")])
def test_verify_accepts_an_intact_store(options: tuple[str, ...], tmp_path: Path, capsys) -> None:
    work = prepare(tmp_path, {**good_pictures(6), "bad.png": b""})
    assert extract(work, *options) == 0
    before = (work / "features.h5").stat()
    for backend in ("auto", "eager"):
        assert extract(work, "--verify", "--backend", backend) == 0
        output = capsys.readouterr().out
        assert "verify: 6 rows read, 6 of 6 recomputed, 0 wrong; 1 failed" in output
    assert (work / "features.h5").stat() == before


def test_verify_names_the_damaged_images(tmp_path: Path, capsys) -> None:
    work = prepare(tmp_path, good_pictures(8))
    assert extract(work, "--views", "2") == 0
    (work / "pictures" / "0.png").write_bytes(encoded(picture(99)))  # another picture now
    (work / "pictures" / "1.png").unlink()  # this does not make the store wrong
    store = FeatureStore(work / "features.h5")
    with (work / "features.h5").open("r+b") as file:
        for row, view in ((2, 0), (3, 1)):
            file.seek(int(store._offsets[row, view]) + 1000)
            file.write(b"damage")
        file.seek(store._pooled_start + 9 * 2 * 1280)  # row 4, view 1
        file.write(b"damage")
    assert extract(work, "--verify") == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("verify: image")]
    assert [line.split()[2] for line in lines] == ["1", "3", "4", "5"]
    assert lines[0].startswith(f"verify: image 1 ({work}/pictures/0.png): view whole: its features")
    assert "differ from those of its picture by" in lines[0]
    assert "view whole" in lines[1]
    assert f"view {VIEWS[1]}" in lines[2]
    assert "pooled features do not match their checksum" in lines[3]
    assert "verify: 8 rows read, 4 of 5 recomputed, 4 wrong" in captured.out
    assert "4 images are wrong: 1, 3, 4, 5; --force with the options of the first" in captured.err
    with pytest.raises(UserError, match=r"image 3: .*--verify lists all damaged images"):
        store.grid([2])


def test_verify_needs_a_store_and_the_network_that_made_it(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = prepare(tmp_path, good_pictures(1))
    assert extract(work, "--verify") == 2
    assert "features.h5 is not there" in capsys.readouterr().err
    assert extract(work) == 0
    monkeypatch.setitem(efficientnet_lite.VARIANTS, "efficientnet_lite0", Variant(1.0, 1.0, 256))
    assert extract(work, "--verify") == 2
    assert "made by a different efficientnet_lite0: transform" in capsys.readouterr().err


def test_removed_images_are_kept_until_pruned(tmp_path: Path) -> None:
    files = good_pictures(3)
    work = prepare(tmp_path, files)
    assert extract(work) == 0
    seconds = json.loads((work / "extract.json").read_text())["seconds"]
    table = captions.load(work / "captions.json")
    save(CaptionTable("test", work / "pictures", table.images[1:]), work / "captions.json")
    assert extract(work) == 0
    assert FeatureStore(work / "features.h5").image_ids.tolist() == [2, 3, 1]
    assert extract(work, "--prune") == 0
    assert FeatureStore(work / "features.h5").image_ids.tolist() == [2, 3]
    report = json.loads((work / "extract.json").read_text())
    assert (report["images"], report["seconds"]) == (2, seconds)  # nothing was extracted


def test_views_are_stored_in_one_pass(tmp_path: Path) -> None:
    work = prepare(tmp_path, good_pictures(2))
    assert extract(work, "--views", "2") == 0
    store = FeatureStore(work / "features.h5")
    picture, mirror = (store.grid([0, 1], [view] * 2).reshape(2, 7, 7, -1) for view in (0, 1))
    # The features of a mirrored picture are closer to the mirrored features than to the original.
    assert np.linalg.norm(mirror - picture[:, :, ::-1]) < 0.8 * np.linalg.norm(mirror - picture)
    assert json.loads((work / "extract.json").read_text())["views"] == list(VIEWS[:2])
    assert extract(work, "--views", "99") == 2


def test_compression_and_int8_make_the_store_smaller(tmp_path: Path) -> None:
    work = prepare(tmp_path, good_pictures(4))
    shares = []
    for options in (("--compression", "none"), (), ("--dtype", "int8")):
        assert extract(work, "--force", *options) == 0
        shares.append(json.loads((work / "extract.json").read_text())["share_of_float16"])
    assert 1 <= shares[0] < 1.05
    assert shares[1] < 0.45
    assert shares[2] < 0.2
