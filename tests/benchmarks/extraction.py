"""Speed of feature extraction, compared with the CNN alone and with a plain loop.

    .venv/bin/python -m tests.benchmarks.extraction FOLDER [--images 256] [--rounds 5] [--compile]

The rows take turns, so that whatever else the machine does slows all of them alike. The reference
is the CNN alone, on pictures decoded beforehand. The plain loop decodes one picture, runs the CNN,
writes an .npz file, and takes the next. Decoding and storing without a CNN, by threads or by
processes, is what a machine can feed to a GPU; --feeding measures these two rows alone.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torchvision
import tyro
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn

from features import efficientnet_lite
from features.backbones import Backbone, load_backbone
from features.devices import choose_device, cores
from features.extraction import extract
from features.images import read_picture
from features.parts import PartWriter
from features.row_format import RowFormat
from features.torchvision_cnns import until_last_map

ALONE, STORED, PLAIN = "CNN alone", "decode, CNN, store", "one at a time, eager, .npz"
FED_BY_THREADS, FED_BY_PROCESSES = "decode, store, by threads", "decode, store, by processes"
SLOW = 8  # slow rows take every 8th picture

# Does the work of a row: takes the pictures and a folder for files.
Work = Callable[[list[Path], Path], None]


def main(
    folder: tyro.conf.Positional[Path],
    images: int = 256,
    rounds: int = 5,
    backbone: str = "efficientnet_lite2",
    device: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    compile: bool = False,
    feeding: bool = False,
) -> None:
    """Print images/s of each row.

    Args:
        folder: folder of JPEG pictures.
        images: number of pictures in a round; slow rows take an eighth of them.
        rounds: number of measurements of each row.
        backbone: CNN to run.
        device: where to run it.
        batch_size: pictures in a batch.
        workers: number of threads; by default that of extraction.
        compile: measure compiled PyTorch on the CPU too; compiling takes a minute.
        feeding: measure only how fast pictures are decoded and stored, without a CNN.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    where = choose_device(device)

    def load(backend: str) -> Backbone:
        return load_backbone(backbone, 7, where, backend, batch_size)

    fastest = load("eager" if feeding else "auto")
    paths = sorted(folder.glob("*.jpg"))[:images]
    ready = {path: fastest.transform(read_picture(path)).permute(1, 2, 0) for path in paths}
    others = ["eager", *(["onnxruntime"] if where.type == "cpu" else [])]
    others += ["compile"] * (compile and where.type == "cpu")
    works: dict[str, Work] = {
        ALONE: _alone(fastest, ready, batch_size, workers),
        STORED: _stored(fastest, batch_size, workers),
        "decode alone": _decoded(fastest, workers),
        FED_BY_THREADS: _fed(fastest, batch_size, workers, processes=False),
        FED_BY_PROCESSES: _fed(fastest, batch_size, workers, processes=True),
        **{
            f"CNN alone, {name}": _alone(load(name), ready, batch_size, workers)
            for name in others
            if name != fastest.backend
        },
        PLAIN: _plain_loop(backbone, fastest, where),
    }
    if feeding:
        works = {name: works[name] for name in (FED_BY_THREADS, FED_BY_PROCESSES)}
    slow = {PLAIN, "CNN alone, eager", "CNN alone, compile"} if where.type == "cpu" else {PLAIN}

    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            chosen = paths[:: SLOW if name in slow else 1]
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
                start = time.perf_counter()
                work(chosen, Path(scratch))
                rate = len(chosen) / (time.perf_counter() - start)
            if turn:  # the first round warms up
                rates[name].append(rate)

    print(f"{backbone} by {fastest.backend} on {where}, {torch.get_num_threads()} cores")
    print(f"{len(paths)} pictures, medians of {rounds} rounds\n")
    if feeding:
        for name, of_row in rates.items():
            print(f"{name}: {median(of_row):.0f} ({min(of_row):.0f}-{max(of_row):.0f}) images/s")
        return
    print("| row | images/s | of the CNN alone | times one at a time |")
    print("|---|---|---|---|")
    for name, of_row in rates.items():
        share = median(a / b for a, b in zip(of_row, rates[ALONE], strict=True))
        times = median(a / b for a, b in zip(of_row, rates[PLAIN], strict=True))
        print(f"| {name} | {median(of_row):.1f} | {share:.3f} | {times:.1f} |")


def _alone(
    backbone: Backbone, ready: dict[Path, Tensor], batch_size: int, workers: int | None
) -> Work:
    """Run the CNN on decoded pictures, with the threads that extraction uses."""
    threads = workers or torch.get_num_threads()
    size, threads = (1, threads) if backbone.one_by_one else (batch_size, 1)

    def run(paths: list[Path], _: Path) -> None:
        pixels = torch.stack([ready[path] for path in paths])
        with ThreadPoolExecutor(threads) as pool:
            for grid, pooled in pool.map(backbone.run, pixels.split(size)):
                grid.cpu(), pooled.cpu()

    return run


def _stored(backbone: Backbone, batch_size: int, workers: int | None) -> Work:
    def run(paths: list[Path], scratch: Path) -> None:
        encoding = cores() if backbone.device.type == "cuda" else 1  # as pipeline.extract
        with closing(PartWriter(scratch, RowFormat(backbone.description), encoding)) as writer:
            extract(backbone, list(enumerate(paths)), writer, ["whole"], batch_size, workers)

    return run


def _fed(backbone: Backbone, batch_size: int, workers: int | None, processes: bool) -> Work:
    """Decode and store, with features of noise in place of the CNN's."""
    regions, channels = 49, backbone.description["channels"]
    noise = torch.randn(batch_size, regions, channels) - 0.67
    grid = noise.clamp(min=0)  # three quarters of the values are zero, as in real features

    def run_nothing(pixels: Tensor) -> tuple[Tensor, Tensor]:
        return grid, grid[:, 0]

    nothing = replace(backbone, backend="eager", run=run_nothing)
    threads = workers or cores()

    def run(paths: list[Path], scratch: Path) -> None:
        encoding = threads if processes else 1
        with closing(PartWriter(scratch, RowFormat(backbone.description), encoding)) as writer:
            pictures = list(enumerate(paths))
            extract(nothing, pictures, writer, ["whole"], batch_size, workers, processes=processes)

    return run


def _decoded(backbone: Backbone, workers: int | None) -> Work:
    def run(paths: list[Path], _: Path) -> None:
        with ThreadPoolExecutor(workers or torch.get_num_threads()) as pool:
            for _ in pool.map(lambda path: backbone.transform(read_picture(path)), paths):
                pass

    return run


def _plain_loop(name: str, backbone: Backbone, device: torch.device) -> Work:
    """Run the published network on one picture at a time, with PyTorch's defaults."""
    transform = backbone.description["transform"]
    method = Image.Resampling[transform["interpolation"].upper()]
    last_map: Callable[[Tensor], Tensor]
    if name in efficientnet_lite.VARIANTS:
        file = str(efficientnet_lite.weights_file(name))
        published = EfficientNet.from_pretrained(name.replace("_", "-"), weights_path=file)
        last_map = published.eval().to(device).extract_features
    else:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        classifier = torchvision.models.get_model(name, weights=weights)
        last_map = until_last_map(classifier, backbone.size[0]).to(device)
    mean, std = (torch.tensor(transform[key]).view(3, 1, 1) for key in ("mean", "std"))

    @torch.inference_mode()
    def run(paths: list[Path], scratch: Path) -> None:
        for path in paths:
            picture = Image.open(path).convert("RGB").resize(backbone.size[::-1], method)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
            image = (pixels / transform["scale"] - mean) / std
            map_ = last_map(image[None].to(device))
            grid = nn.functional.adaptive_avg_pool2d(map_, 7).flatten(2).transpose(1, 2)
            np.savez(
                scratch / f"{path.stem}.npz",
                grid=grid[0].cpu().numpy(),
                pooled=map_.mean((2, 3))[0].cpu().numpy(),
            )

    return run


if __name__ == "__main__":
    tyro.cli(main)
