import json
import shutil
import signal
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

from features.backbones import load_backbone
from features.errors import UserError
from features.images import read_picture
from features.store import FeatureStore
from pipeline.captions import Caption, CaptionTable, Image, save
from pipeline.extract import main

CAPTIONS = (Caption("a dog runs", ("a", "dog", "runs")),)
LITE0 = ("--backbone", "efficientnet_lite0")


def picture(seed: int, size: tuple[int, int] = (80, 60)) -> Picture.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Picture.fromarray(pixels).resize(size, Picture.Resampling.BICUBIC)


def prepare(work: Path, files: dict[str, bytes | None]) -> Path:
    """Make a work directory of pictures, by file name; those without bytes are missing."""
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
    return main(["--work", str(work), *LITE0, "--workers", "1", *options])


def test_the_store_has_the_features_of_the_network(tmp_path: Path, capsys) -> None:
    work = prepare(tmp_path, good_pictures(3))
    assert extract(work, "--grid", "3") == 0
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
    assert (report["images"], report["failed"], report["backend"]) == (3, 0, "eager")
    assert (report["bytes"], report["bytes_per_image"]) == (size, round(size / 3))
    assert report["images_per_second"] == pytest.approx(3 / report["seconds"], rel=0.01)


def hostile_pictures() -> dict[str, bytes | None]:
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
        "text.jpg": b"this is no picture",
        "missing.jpg": None,
    }


def test_hostile_pictures_are_read_rightly_or_marked_with_the_reason(
    tmp_path: Path, capsys
) -> None:
    files = hostile_pictures()
    work = prepare(tmp_path, files)
    (work / "pictures" / "folder.jpg").mkdir()
    work = prepare(tmp_path, files | {"folder.jpg": None})
    assert extract(work) == 0
    output = capsys.readouterr().out
    assert "9 pictures stored; 6 failed and are left out: " in output
    assert f"{work}/pictures/corrupt.jpg (" in output
    assert "and 3 more" in output

    store = FeatureStore(work / "features.h5")
    names = dict(enumerate([*files, "folder.jpg"], start=1))
    reasons = {names[image_id]: reason for image_id, reason in store.failures().items()}
    assert reasons.pop("corrupt.jpg")
    assert "truncated" in reasons.pop("truncated.jpg")
    assert reasons == {
        "empty.jpg": "the file is empty",
        "text.jpg": "not a picture, or of an unknown format",
        "missing.jpg": "no such file",
        "folder.jpg": "not a file but a directory or a device",
    }

    pooled = store.pooled(store.rows(range(1, 10))).astype(np.float32)
    feature = dict(zip(files, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), strict=False))
    np.testing.assert_array_equal(feature["16-bit.png"], feature["gray.png"])
    likeness = {name: vector @ feature["good.jpg"] for name, vector in feature.items()}
    for name in ("cmyk.jpg", "transparent.png", "animated.webp", "turned.jpg", "huge.jpg"):
        assert likeness[name] > 0.9, likeness


def test_no_readable_picture_at_all_is_an_error(tmp_path: Path, capsys) -> None:
    work = prepare(tmp_path, {"a.jpg": b"", "b.jpg": None})
    assert extract(work) == 2
    assert "none of the 2 pictures could be read" in capsys.readouterr().err
    assert extract(work) == 2  # and that is not taken for finished


def test_unchanged_is_skipped_and_a_mended_picture_is_tried_again(tmp_path: Path, capsys) -> None:
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
    (tmp_path / "pictures" / "0.png").unlink()  # its features are all that is needed
    files: dict[str, bytes | None] = {**good_pictures(3), "0.png": None}
    assert extract(prepare(tmp_path, files)) == 0
    store = FeatureStore(tmp_path / "features.h5")
    assert (store.status == 1).all()
    np.testing.assert_array_equal(store.grid(store.rows([1, 2])), before)
    assert json.loads((tmp_path / "extract.json").read_text())["tried_in_this_run"] == 1


def test_another_backbone_is_refused_unless_forced(tmp_path: Path, capsys) -> None:
    work = prepare(tmp_path, good_pictures(1))
    assert extract(work) == 0
    assert extract(work, "--grid", "5") == 2
    error = capsys.readouterr().err
    assert "holds other features than asked for: grid [7, 7] instead of [5, 5]" in error
    assert "--force" in error
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
def test_options_that_cannot_be_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys
) -> None:
    work = prepare(tmp_path, good_pictures(1))
    try:
        status = main(
            ["--work", str(work), *(LITE0 if "--backbone" not in options else ()), *options]
        )
    except SystemExit as error:
        status = error.code
    assert status == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert not (work / "features.h5").exists()


def test_a_disk_that_is_too_small_is_refused_beforehand(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = prepare(tmp_path, good_pictures(4))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 9 * 10**5, 10**5))
    assert extract(work) == 2
    error = capsys.readouterr().err
    assert "features.h5 needs 0.51 MB" in error
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
    assert "captions.json is not there; python -m pipeline.prepare" in capsys.readouterr().err


def stored(path: Path) -> int:
    try:
        return int((FeatureStore(path).status == 1).sum())
    except UserError:  # not made yet
        return 0


PICTURES = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The store of a run that nothing interrupted."""
    work = prepare(tmp_path_factory.mktemp("whole"), {**good_pictures(PICTURES), "bad.png": b""})
    assert extract(work, "--batch-size", "4") == 0
    return FeatureStore(work / "features.h5")


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_continues_to_the_same_store(
    kill: signal.Signals, tmp_path: Path, whole: FeatureStore
) -> None:
    work = prepare(tmp_path, {**good_pictures(PICTURES), "bad.png": b""})
    arguments = ["--work", work, *LITE0, "--workers", "1", "--batch-size", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.extract", *arguments],
        # A shell starts what runs in its background, perhaps these tests, deaf to SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while stored(work / "features.h5") < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(kill)
    assert process.wait() != 0
    done = stored(work / "features.h5")
    assert 8 <= done < PICTURES

    assert extract(work, "--batch-size", "4") == 0
    report = json.loads((work / "extract.json").read_text())
    assert report["tried_in_this_run"] == PICTURES + 1 - done
    store = FeatureStore(work / "features.h5")
    assert store.failures() == whole.failures() == {PICTURES + 1: "the file is empty"}
    rows = np.arange(PICTURES)
    np.testing.assert_array_equal(store.grid(rows), whole.grid(rows))
    np.testing.assert_array_equal(store.pooled(rows), whole.pooled(rows))
