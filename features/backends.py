"""What runs a frozen network: PyTorch, as it is or compiled, or a runtime made for the CPU.

On the CPU all compute in float32 and differ in the last digits only; on a GPU, compiled PyTorch
computes in half precision.

The runtimes take pictures one by one, each on one core, for several threads at once. That is
faster than a batch on all cores: what a layer writes is still in the core's cache when the next
layer reads it, and no core waits for another. A picture's features are the same, bit for bit,
whatever it is computed beside.
"""

import copy
import io
import logging
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.errors import UserError, first_line

Run = Callable[[Tensor], tuple[Tensor, Tensor]]

# Those that `auto` tries, by the type of the device, from the fastest. OpenVINO and ONNX Runtime
# are level on plain convolutions; on those of each channel, as EfficientNet has, OpenVINO leads.
_FASTEST = {"cpu": ("openvino", "onnxruntime", "eager"), "cuda": ("compile", "eager")}
ONE_BY_ONE = ("onnxruntime", "openvino")
# Largest difference from eager float32, as a share of the largest value, by the type of device.
# Measured on the CPU: 3e-6. Half precision rounds every value of every layer by up to 5e-4.
TOLERANCE = {"cpu": 1e-4, "cuda": 3e-2}

_log = logging.getLogger(__name__)


class Network(nn.Module):
    """From pixels to features, all of it, so that a backend may fuse what it can.

    Args:
        cnn: normalised float images [B, 3, H, W] to the last feature map [B, channels, h, w].
        transform: "scale", "mean" and "std" of the pixels that `cnn` expects.
        map_size: h and w.
        grid: height and width of the grid that the map is averaged to.
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
        # A matrix, since ONNX has no pooling into regions of unequal sizes.
        rows, columns = (_averaging(*sizes) for sizes in zip(map_size, grid, strict=True))
        positions = math.prod(map_size)
        mean = torch.full((1, positions), 1 / positions)
        self.register_buffer("pooling", torch.cat([torch.kron(rows, columns), mean]))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of `pixels`, uint8 [B, H, W, 3].

        Returns:
            float32 [B, regions, channels], the last map averaged over a grid whose regions run row
            by row, and float32 [B, channels], its mean.
        """
        images = (pixels.permute(0, 3, 1, 2).float() / self.scale - self.mean) / self.std
        map_ = self.cnn(images.to(next(self.cnn.parameters()).dtype)).float()
        regions = self.pooling @ map_.flatten(2).transpose(1, 2)
        return regions[:, :-1], regions[:, -1]


class Joint(nn.Module):
    """Several networks that see the same pixels; their channels stand side by side.

    Args:
        networks: of one grid.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of `pixels`, as `Network` does, of all networks' channels."""
        grids, means = zip(*(network(pixels) for network in self.networks), strict=True)
        return torch.cat(grids, -1), torch.cat(means, -1)


def _averaging(size: int, regions: int) -> Tensor:
    """Return [regions, size], which averages as `adaptive_avg_pool` does: regions may overlap."""
    weights = torch.zeros(regions, size)
    for i in range(regions):
        start, end = i * size // regions, math.ceil((i + 1) * size / regions)
        weights[i, start:end] = 1 / (end - start)
    return weights


def choose(
    name: str, network: nn.Module, size: tuple[int, int], device: torch.device, batch_size: int
) -> tuple[str, Run]:
    """Make a backend ready to run a network and check it against eager PyTorch.

    Args:
        name: "eager", "compile", "onnxruntime", "openvino", or "auto" for the fastest that works
            here; of each one that does not, a line is logged.
        network: a `Network` or `Joint`, on `device`, in evaluation mode.
        size: height and width of the pixels.
        device: where to run.
        batch_size: what "compile" compiles for; any other number of pictures is padded to it.

    Returns:
        The name of the backend, and what runs the network.

    Raises:
        UserError: the one asked for does not work here.
    """
    names = _FASTEST.get(device.type, ("eager",)) if name == "auto" else (name,)
    for candidate in names[:-1]:
        try:
            return candidate, _start(candidate, network, size, device, batch_size)
        except Exception as error:  # exporters, compilers and runtimes raise anything at all
            _log.info("%s cannot run the network here (%s)", candidate, first_line(error))
    try:
        return names[-1], _start(names[-1], network, size, device, batch_size)
    except Exception as error:
        raise UserError(
            f"--backend {names[-1]} cannot run the network here ({first_line(error)}); leave it to "
            "auto"
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
        run = _one_by_one(start(exported(network, size)))
    _check(run, eager, size, TOLERANCE["cuda" if device.type == "cuda" else "cpu"])
    return run


def _check(run: Run, eager: Run, size: tuple[int, int], tolerance: float) -> None:
    """Raise ArithmeticError if a backend's features of one noisy picture are not the network's."""
    noise = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    pixels = torch.from_numpy(noise)
    for found, expected in zip(run(pixels), eager(pixels), strict=True):
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
        if not difference <= tolerance:
            raise ArithmeticError(f"its features differ by {difference:.1g} of the largest")


def _eager(network: Run, device: torch.device) -> Run:
    @torch.inference_mode()
    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        return network(pixels.to(device, non_blocking=True))

    return run


def _compiled(network: nn.Module, device: torch.device, batch_size: int) -> Run:
    # Constant weights let the compiler reorder them once for all.
    options: dict[str, Any] = {"freezing": True}
    if device.type == "cuda":
        # Half precision has three bits more than bfloat16, and its range is that of the store.
        network = copy.deepcopy(network)
        for module in network.modules():
            if isinstance(module, Network):
                module.cnn.to(torch.float16)
    compiled = _eager(torch.compile(network, dynamic=False, options=options), device)

    def whole(part: Tensor) -> Tensor:
        # Another number of pictures would be compiled anew. A whole batch stays in pinned memory.
        missing = batch_size - len(part)
        return F.pad(part, (0,) * 7 + (missing,)) if missing else part

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = (compiled(whole(part)) for part in pixels.split(batch_size))
        grid, pooled = (torch.cat(part)[: len(pixels)] for part in zip(*found, strict=True))
        return grid, pooled

    return run


def exported(network: nn.Module, size: tuple[int, int]) -> bytes:
    """Return a network for one picture as ONNX."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants, as they may
        # The exporter by tracing: torch.export's needs more packages and takes longer.
        torch.onnx.utils.export(
            network,
            (torch.zeros(1, *size, 3, dtype=torch.uint8),),
            file,  # type: ignore[arg-type]  # the annotation forgets open files
            input_names=["pixels"],
            output_names=["grid", "pooled"],
            opset_version=17,
        )
    return file.getvalue()


RunOne = Callable[[np.ndarray], list[np.ndarray]]


def _one_by_one(run_one: RunOne) -> Run:
    # In numpy: each thread that calls torch may start a team of threads of its own.
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
    # Or the import reports itself to a statistics server, and notes that in the user's home.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    cores = torch.get_num_threads()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # or it takes bfloat16 where the processor has it
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
        # The outputs are copied: the request writes the next picture's to the same memory.
        found = local.request.infer([pixels], share_inputs=True)
        return [found[0], found[1]]

    return run_one
