"""Extraction: the features of every picture reach the writer, whatever fails on the way."""

import gc
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from features import child_process, decoding, extraction
from features.backbones import Backbone
from features.errors import UserError, is_about_access
from features.extraction import calibrate, extract
from features.images import PictureError, read_picture
from features.parts import PartWriter
from features.row_format import RowFormat

WORKERS, BATCH = 2, 4
WAYS = ["eager", "onnxruntime"]  # in batches, and one by one


@pytest.fixture(autouse=True)
def _no_thread_outlives_the_loop() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert left <= {"tqdm_monitor"}


class Memory:
    """A writer that keeps the features in memory."""

    def __init__(self) -> None:
        self.features: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.failed: dict[int, str] = {}
        self.batches: list[int] = []

    def put(self, image_ids: Sequence[int], grid: np.ndarray, pooled: np.ndarray) -> None:
        assert grid.dtype == pooled.dtype == np.float32
        self.batches.append(len(image_ids))
        self.features.update(zip(image_ids, zip(grid, pooled, strict=True), strict=True))

    def fail(self, image_id: int, reason: str) -> None:
        self.failed[image_id] = reason


def means(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean colours of the left and right halves, and of the whole picture."""
    halves = torch.stack([half.float().mean((1, 2)) for half in pixels.split(2, dim=2)], dim=1)
    return halves, halves.mean(1)


def backbone_of(way: str, run=means) -> Backbone:
    transform = {"size": [4, 4], "interpolation": "nearest"}
    return Backbone({"transform": transform, "channels": 3}, torch.device("cpu"), way, run)


def painted(folder: Path, count: int) -> list[tuple[int, Path]]:
    """Pictures whose left half has their number as red; their ids run backwards."""
    for i in range(count):
        picture = Image.new("RGB", (8, 8))
        picture.paste((i, 0, 0), (0, 0, 4, 8))
        picture.save(folder / f"{i}.png")
    return [(1000 - i, folder / f"{i}.png") for i in range(count)]


def assert_red(writer: Memory, numbers: Sequence[int], views: int = 1) -> None:
    assert sorted(writer.features) == sorted(1000 - i for i in numbers)
    for i in numbers:
        grid, pooled = writer.features[1000 - i]
        assert (grid.shape, pooled.shape) == ((views, 2, 3), (views, 3))
        np.testing.assert_array_equal(grid[0], [[i, 0, 0], [0, 0, 0]])
        np.testing.assert_array_equal(pooled[0], [i / 2, 0, 0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workers", [1, 3, None])
def test_each_picture_gets_its_own_features_or_the_reason_why_not(
    way: str, workers: int | None, tmp_path: Path
) -> None:
    pictures = painted(tmp_path, 22)
    for i in (0, 5, 21):
        pictures[i][1].write_bytes(b"")
    writer = Memory()
    extract(backbone_of(way), pictures, writer, ["whole"], BATCH, workers)
    assert_red(writer, [i for i in range(22) if i not in (0, 5, 21)])
    assert writer.failed == dict.fromkeys((1000, 995, 979), "the file is empty")


@pytest.mark.parametrize("way", WAYS)
def test_all_views_are_cut_from_one_decoding(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(extraction, "read_picture", lambda p: (read.append(p), read_picture(p))[1])
    pictures, writer = painted(tmp_path, 5), Memory()
    extract(backbone_of(way), pictures, writer, ["whole", "mirror"], BATCH, WORKERS)
    assert_red(writer, range(5), views=2)
    for i in range(5):
        np.testing.assert_array_equal(writer.features[1000 - i][0][1], [[0, 0, 0], [i, 0, 0]])
    assert sorted(read) == sorted(path for _, path in pictures)
    assert max(writer.batches) == BATCH // 2


def test_the_network_gets_batches_of_one_size(tmp_path: Path) -> None:
    sizes = []

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(pixels))
        return means(pixels)

    writer = Memory()
    pictures = painted(tmp_path, 10)
    pictures[3][1].unlink()
    extract(backbone_of("eager", run), pictures, writer, ["whole"], BATCH, WORKERS)
    assert sizes == [BATCH] * 3
    assert_red(writer, [i for i in range(10) if i != 3])


@pytest.mark.parametrize("way", WAYS)
def test_what_is_decoded_and_computed_ahead_of_the_writer_is_bounded(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, ahead = [], []
    monkeypatch.setattr(extraction, "read_picture", lambda p: (read.append(p), read_picture(p))[1])

    class Slow(Memory):
        def put(self, *args) -> None:
            threading.Event().wait(0.05)
            ahead.append(len(read) - len(self.features))
            super().put(*args)

    extract(backbone_of(way), painted(tmp_path, 60), Slow(), ["whole"], BATCH, WORKERS)
    assert max(ahead) <= 5 * BATCH + WORKERS


@pytest.mark.parametrize("way", WAYS)
def test_an_error_of_the_writer_stops_the_extraction_and_is_passed_on(
    way: str, tmp_path: Path
) -> None:
    class Full(Memory):
        tries = 0

        def put(self, *args) -> None:
            self.tries += 1
            if self.tries > 2:
                raise UserError("the disk is full")
            super().put(*args)

    writer = Full()
    with pytest.raises(UserError, match=r"^the disk is full$"):
        extract(backbone_of(way), painted(tmp_path, 40), writer, ["whole"], BATCH, WORKERS)
    assert writer.tries == 3  # nothing is written after the failed batch
    assert_red(writer, range(2 * BATCH))


@pytest.mark.parametrize("way", WAYS)
def test_an_error_of_the_network_or_a_decoder_keeps_what_was_computed(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = painted(tmp_path, 40)

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        if (pixels[:, 0, 0, 0] == 13).any():
            raise ZeroDivisionError("the network")
        return means(pixels)

    writer = Memory()
    with pytest.raises(ZeroDivisionError, match="the network"):
        extract(backbone_of(way, run), pictures, writer, ["whole"], BATCH, WORKERS)
    assert_red(writer, range(12 if way == "eager" else 13))

    def read(path: Path) -> Image.Image:
        if path.name == "13.png":
            raise ZeroDivisionError("a decoder")
        return read_picture(path)

    monkeypatch.setattr(extraction, "read_picture", read)
    writer = Memory()
    with pytest.raises(ZeroDivisionError, match="a decoder"):
        extract(backbone_of(way), pictures, writer, ["whole"], BATCH, WORKERS)
    assert_red(writer, range(12 if way == "eager" else 13))


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_keeps_what_was_computed(way: str, tmp_path: Path) -> None:
    class Interrupted(Memory):
        def put(self, *args) -> None:
            super().put(*args)
            if len(self.batches) == 2:
                os.kill(os.getpid(), signal.SIGINT)  # the main thread gets it

    writer = Interrupted()
    pictures = painted(tmp_path, 200)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            extract(backbone_of(way), pictures, writer, ["whole"], BATCH, WORKERS)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert 2 * BATCH <= len(writer.features) < 200
    assert_red(writer, range(len(writer.features)))


@pytest.mark.parametrize("way", WAYS)
def test_the_scale_of_int8_is_the_largest_value_of_each_channel(way: str, tmp_path: Path) -> None:
    paths = [path for _, path in painted(tmp_path, 20)]
    paths[7].write_bytes(b"")
    scale = calibrate(backbone_of(way), paths)
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, np.float32([19, 1, 1]) / np.float32(127))

    def wild(pixels: Tensor) -> tuple[Tensor, Tensor]:
        grid, pooled = means(pixels)
        grid[:, :, 0] *= -1
        grid[:, 0, 1], grid[:, 0, 2] = torch.nan, torch.inf
        return grid, pooled

    scale = calibrate(backbone_of(way, wild), paths)
    np.testing.assert_allclose(scale * 127, [19, 1, 65504])


def test_the_scale_comes_from_evenly_spaced_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_CALIBRATION_PICTURES", 5)
    read: list[str] = []
    monkeypatch.setattr(
        extraction, "read_picture", lambda p: (read.append(p.stem), read_picture(p))[1]
    )
    calibrate(backbone_of("eager"), [path for _, path in painted(tmp_path, 41)], 1)
    assert read == ["0", "10", "20", "30", "40"]


def extracted(backbone: Backbone, paths: Sequence[Path], folder: Path, processes: bool) -> bytes:
    """Extract two views of pictures with as many threads or processes; return the part's bytes."""
    kind = RowFormat({**backbone.description, "dtype": "float16"}, ["whole", "mirror"])
    folder.mkdir()
    with closing(PartWriter(folder, kind, workers=3 if processes else 1)) as writer:
        pictures = [(i, path) for i, path in enumerate(paths)]
        extract(backbone, pictures, writer, kind.views, 8, WORKERS, processes=processes)
    (part,) = folder.iterdir()
    return part.read_bytes()


def test_processes_write_the_same_bytes_as_threads(tmp_path: Path) -> None:
    """With photographs of every kind that needs care, and some that cannot be read."""
    paths = [path for _, path in painted(tmp_path, 11)]
    paths[3].write_bytes(b"not a picture")
    paths[4].unlink()
    large = tmp_path / "large.jpg"
    Image.effect_mandelbrot((3000, 2000), (-2, -1, 1, 1), 50).save(large, exif=upside_down())
    odd = tmp_path / "\udcff \u00e9\n.gif"  # a name that is not UTF-8, and has a line break
    Image.new("P", (30, 20), 7).save(odd)
    transform = {"size": [96, 80], "interpolation": "bicubic"}
    description = {"backbone": "means", "transform": transform, "grid": [1, 40], "channels": 3}
    backbone = Backbone(description, torch.device("cpu"), "eager", means)
    expected = extracted(backbone, [*paths, large, odd], tmp_path / "threads", False)
    found = extracted(backbone, [*paths, large, odd], tmp_path / "processes", True)
    assert expected == found
    gc.collect()
    if Path("/proc/self/maps").exists():
        assert "memfd:caption" not in Path("/proc/self/maps").read_text()


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


def children() -> set[int]:
    with subprocess.Popen(["ps", "-Ao", "pid=,ppid="], stdout=subprocess.PIPE, text=True) as ps:
        pairs = [tuple(map(int, line.split())) for line in ps.stdout or ()]
    return {pid for pid, parent in pairs if parent == os.getpid() and pid != ps.pid}


@pytest.mark.parametrize("times", [1, 2])
def test_a_decoding_process_that_is_killed_is_named_and_its_picture_tried_again(
    times: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left, plain = [times], decoding._Process.decode

    def decode(process: decoding._Process, path: Path, place: int) -> PictureError | None:
        if path.name == "5.png" and left[0]:
            left[0] -= 1
            process._process.kill()
        return plain(process, path, place)

    monkeypatch.setattr(decoding._Process, "decode", decode)
    pictures, writer, before = painted(tmp_path, 10), Memory(), children()
    extract(backbone_of("eager"), pictures, writer, ["whole"], BATCH, WORKERS, processes=True)
    assert_red(writer, [i for i in range(10) if times == 1 or i != 5])
    assert caplog.text.count(f"ended by SIGKILL while it read {pictures[5][1]}") == times
    assert writer.failed == ({} if times == 1 else {995: "Cannot allocate memory"})
    assert is_about_access("Cannot allocate memory")  # so the next extraction tries it again
    assert children() <= before


def test_an_interrupt_ends_all_processes_and_keeps_what_was_computed(tmp_path: Path) -> None:
    class Interrupted(Memory):
        def put(self, *args) -> None:
            super().put(*args)
            if len(self.batches) == 2:
                # As Ctrl-C on a terminal does: every process of the command gets it.
                for pid in (*(children() - before), os.getpid()):
                    os.kill(pid, signal.SIGINT)

    writer, pictures, before = Interrupted(), painted(tmp_path, 200), children()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            extract(
                backbone_of("eager"), pictures, writer, ["whole"], BATCH, WORKERS, processes=True
            )
    finally:
        signal.signal(signal.SIGINT, handler)
    assert 2 * BATCH <= len(writer.features) < 200
    assert_red(writer, range(len(writer.features)))
    assert children() <= before


def test_an_error_of_the_decoding_program_is_not_blamed_on_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child_process, "_SERVE", "raise SystemExit('cannot start')")
    pictures = painted(tmp_path, 2)
    with pytest.raises(RuntimeError, match="status 1"):
        extract(backbone_of("eager"), pictures, Memory(), ["whole"], BATCH, WORKERS, processes=True)
    assert "cannot start" in capfd.readouterr().err
