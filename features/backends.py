"""Backends that run a frozen network: eager or compiled PyTorch, or a runtime for the CPU.

On a CPU all of them compute in float32 and differ only in the last digits. On a GPU, compiled
PyTorch computes in half precision.

The CPU runtimes compute pictures one by one, each on one core, in as many threads as there are
cores. That is faster than a batch on all cores: the output of a layer is still in the core's cache
when the next layer reads it, and no core waits for another. The features of a picture do not
depend on other pictures, to the last bit.
"""

import copy
import ctypes
import io
import logging
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.errors import UserError, first_line
from features.extras import missing, need

Run = Callable[[Tensor], tuple[Tensor, Tensor]]

# What `auto` tries on each type of device, fastest first. OpenVINO and ONNX Runtime are equally
# fast on plain convolutions; OpenVINO is faster on depthwise ones, as in EfficientNet.
_FASTEST = {"cpu": ("openvino", "onnxruntime", "eager"), "cuda": ("compile", "eager")}
ONE_BY_ONE = ("onnxruntime", "openvino")
# Largest allowed difference from eager float32, relative to the largest value, by type of device.
# Measured on CPUs: 3e-6. Half precision rounds every value of every layer by up to 5e-4.
TOLERANCE = {"cpu": 1e-4, "cuda": 3e-2}

_log = logging.getLogger(__name__)


class Network(nn.Module):
    """From pixels to features, normalisation and pooling included, so that backends can fuse them.

    Args:
        cnn: from normalised float images [B, 3, H, W] to the last feature map [B, channels, h, w].
        transform: the "scale", "mean" and "std" by which pixels are normalised for `cnn`.
        map_size: h and w.
        grid: height and width of the grid to which the map is averaged.
    """

    def __init__(
        self,
        cnn: nn.Module,
        transform: Mapping[str, Any],
        map_size: tuple[int, int],
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.cnn = cnn
        self.scale = transform["scale"]
        self.register_buffer("mean", torch.tensor(transform["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(transform["std"]).view(3, 1, 1))
        # A matrix, because ONNX has no pooling into regions of unequal sizes.
        rows, columns = (_averaging(*sizes) for sizes in zip(map_size, grid, strict=True))
        positions = math.prod(map_size)
        mean = torch.full((1, positions), 1 / positions)
        self.register_buffer("pooling", torch.cat([torch.kron(rows, columns), mean]))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of `pixels`, uint8 [B, H, W, 3].

        Returns:
            The last feature map averaged over a grid, float32 [B, regions, channels], whose
            regions are in row-major order, and the mean of the map, float32 [B, channels].
        """
        images = (pixels.permute(0, 3, 1, 2).float() / self.scale - self.mean) / self.std
        map_ = self.cnn(images.to(next(self.cnn.parameters()).dtype)).float()
        regions = self.pooling @ map_.flatten(2).transpose(1, 2)
        return regions[:, :-1], regions[:, -1]


class Joint(nn.Module):
    """Networks that get the same pixels and whose channels are concatenated.

    Args:
        networks: networks with the same grid.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of `pixels` as `Network` does, with the channels of all networks."""
        grids, means = zip(*(network(pixels) for network in self.networks), strict=True)
        return torch.cat(grids, -1), torch.cat(means, -1)


def _averaging(size: int, regions: int) -> Tensor:
    """Return weights [regions, size] that average one axis.

    They average as `torch.nn.functional.adaptive_avg_pool1d` does: neighbouring regions may
    overlap.
    """
    weights = torch.zeros(regions, size)
    for i in range(regions):
        start, end = i * size // regions, math.ceil((i + 1) * size / regions)
        weights[i, start:end] = 1 / (end - start)
    return weights


def choose(
    name: str, network: nn.Module, size: tuple[int, int], device: torch.device, batch_size: int
) -> tuple[str, Run]:
    """Start a backend for a network and check its features against eager PyTorch.

    Args:
        name: "eager", "compile", "onnxruntime", "openvino", or "auto" for the fastest one that
            works here; each one that does not work is logged.
        network: a `Network` or `Joint`, on `device`, in evaluation mode.
        size: height and width of the pixels.
        device: the device to run on.
        batch_size: the batch size that "compile" compiles for; smaller batches are padded to it.

    Returns:
        The name of the backend, and the function that runs the network.

    Raises:
        UserError: the requested backend does not work here.
    """
    if name in ONE_BY_ONE:
        need("onnx")  # its absence has other names in the exporter
    names = _FASTEST.get(device.type, ("eager",)) if name == "auto" else (name,)
    for candidate in names[:-1]:
        try:
            return candidate, _start(candidate, network, size, device, batch_size)
        except Exception as error:  # exporters, compilers and runtimes raise anything at all
            _log.info("%s cannot run the network here (%s)", candidate, first_line(error))
    try:
        return names[-1], _start(names[-1], network, size, device, batch_size)
    except Exception as error:
        absent = missing(error) if isinstance(error, ModuleNotFoundError) else None
        raise absent or UserError(
            f"--backend {names[-1]} cannot run the network here ({first_line(error)}); use "
            "--backend auto"
        ) from error


def _start(
    name: str, network: nn.Module, size: tuple[int, int], device: torch.device, batch_size: int
) -> Run:
    eager = _eager(network, device)
    if name == "eager":
        return eager
    if name == "compile":
        run = _compiled(network, device, batch_size)
    elif device.type != "cpu":
        raise ValueError(f"it computes on the CPU, not on {device}")
    else:
        start = {"onnxruntime": _onnxruntime, "openvino": _openvino}[name]
        model = exported(network, size)
        _return_freed_memory()
        run = _one_by_one(start(model))
        del model
    _check(run, eager, size, TOLERANCE["cuda" if device.type == "cuda" else "cpu"])
    _return_freed_memory()
    return run


def _return_freed_memory() -> None:
    """Give memory that is free again back to the system, where the C library is GNU's.

    Exporting three networks of 47 MB leaves 290 MB that it would keep for later.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _check(run: Run, eager: Run, size: tuple[int, int], tolerance: float) -> None:
    """Raise ArithmeticError unless a backend computes the features of a picture of noise right."""
    noise = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    pixels = torch.from_numpy(noise)
    for found, expected in zip(run(pixels), eager(pixels), strict=True):
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
        if not difference <= tolerance:
            raise ArithmeticError(f"its features differ by {difference:.1g} of the largest value")


def _eager(network: Run, device: torch.device) -> Run:
    @torch.inference_mode()
    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        return network(pixels.to(device, non_blocking=True))

    return run


def _compiled(network: nn.Module, device: torch.device, batch_size: int) -> Run:
    # The compiler reorders constant weights in advance.
    options: dict[str, Any] = {"freezing": True}
    if device.type == "cuda":
        # Float16 has three bits more than bfloat16, and the store has its range.
        network = copy.deepcopy(network)
        for module in network.modules():
            if isinstance(module, Network):
                module.cnn.to(torch.float16)
    compiled = _eager(torch.compile(network, dynamic=False, options=options), device)

    def padded(part: Tensor) -> Tensor:
        # Another size would be compiled again. A full batch is not copied: it stays pinned.
        missing = batch_size - len(part)
        return F.pad(part, (0,) * 7 + (missing,)) if missing else part

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = (compiled(padded(part)) for part in pixels.split(batch_size))
        grid, pooled = (torch.cat(part)[: len(pixels)] for part in zip(*found, strict=True))
        return grid, pooled

    return run


def exported(network: nn.Module, size: tuple[int, int]) -> bytes:
    """Export a network for one picture to ONNX."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sizes becoming constants, which is intended
        # The exporter that traces: the one based on torch.export is slower and needs more packages.
        torch.onnx.utils.export(
            network,
            (torch.zeros(1, *size, 3, dtype=torch.uint8),),
            file,  # type: ignore[arg-type]  # open files work too
            input_names=["pixels"],
            output_names=["grid", "pooled"],
            opset_version=17,
        )
    return file.getvalue()


RunOne = Callable[[np.ndarray], list[np.ndarray]]


def _one_by_one(run_one: RunOne) -> Run:
    # With numpy, because each thread that calls torch may start a thread pool of its own.
    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = [run_one(picture[None]) for picture in pixels.numpy()]
        grid, pooled = (np.concatenate(part) for part in zip(*found, strict=True))
        return torch.from_numpy(grid), torch.from_numpy(pooled)

    return run


def _onnxruntime(model: bytes) -> RunOne:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})


def _openvino(model: bytes) -> RunOne:
    # Otherwise the import reports to a statistics server and leaves an id in the user's home.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    cores = torch.get_num_threads()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 where the processor has it
        "INFERENCE_NUM_THREADS": cores,
        "NUM_STREAMS": cores,
        "ENABLE_CPU_PINNING": False,  # other processes may use the same cores
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", settings)
    local = threading.local()

    def run_one(pixels: np.ndarray) -> list[np.ndarray]:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        # The outputs are copied, because the next request overwrites their memory.
        found = local.request.infer([pixels], share_inputs=True)
        return [found[0], found[1]]

    return run_one
