"""Every backend computes the features of eager PyTorch in float32."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.regnet import BlockParams

from features import backends
from features.backbones import load_backbone
from features.backends import ONE_BY_ONE, TOLERANCE, Network, choose
from features.errors import UserError
from features.torchvision_cnns import until_last_map

CPU = torch.device("cpu")
IMAGENET = {"scale": 255.0, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO")
RUNTIMES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


def pictures(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float32
    return ((found.cpu() - expected.cpu()).abs().max() / expected.abs().max()).item()


def small_network(size: int = 40) -> Network:
    """Two convolutions to a map of 10 x 10, averaged to 7 x 7: regions overlap."""
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1)
    )
    return Network(cnn, IMAGENET, (size // 4, size // 4), (7, 7)).eval()


@pytest.mark.parametrize("grid", [(7, 7), (4, 3), (9, 8), (1, 1)])
def test_the_map_is_averaged_as_adaptive_pooling_does(grid: tuple[int, int]) -> None:
    class Identity(nn.Identity):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    network = Network(Identity(), IMAGENET, (9, 8), grid)
    pixels = torch.randint(0, 256, (2, 9, 8, 3), dtype=torch.uint8)
    found, pooled = network(pixels)
    images = pixels.permute(0, 3, 1, 2) / 255
    normalised = torchvision.transforms.Normalize(IMAGENET["mean"], IMAGENET["std"])(images)
    expected = nn.functional.adaptive_avg_pool2d(normalised, grid).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pooled, normalised.mean((2, 3)))


@pytest.mark.parametrize("name", RUNTIMES)
def test_runtimes_give_the_features_of_eager_pytorch(name: str) -> None:
    eager = load_backbone("efficientnet_lite0", 5, CPU, "eager")
    other = load_backbone("efficientnet_lite0", 5, CPU, name)
    assert (eager.backend, other.backend) == ("eager", name)
    assert other.description == eager.description
    images = pictures(3, 224).permute(0, 3, 1, 2)
    for found, expected in zip(other.features(images), eager.features(images), strict=True):
        assert difference(found, expected) < 1e-5  # measured: 2e-6


# Together these have every kind of layer that is in some families of torchvision only. They are
# as shallow as the families allow, since each is exported anew.
SHALLOW: dict[str, Callable[[], nn.Module]] = {
    "alexnet": lambda: models.alexnet(weights=None),
    "convnext": lambda: models.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]),
    "densenet": lambda: models.DenseNet(8, (2, 2), 16),
    "googlenet": lambda: models.googlenet(weights=None, init_weights=False),
    "mobilenet_v3": lambda: models.mobilenet_v3_small(weights=None),
    "regnet_y": lambda: models.RegNet(BlockParams([1, 1], [16, 32], [8, 8], [2, 2], [1, 1], 0.25)),
    "shufflenet_v2": lambda: models.ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 64]),
    "squeezenet": lambda: models.squeezenet1_1(weights=None),
}


@pytest.mark.parametrize("model", SHALLOW)
def test_runtimes_run_every_kind_of_network(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "exported", cache(backends.exported))  # once for both runtimes
    torch.manual_seed(0)
    cnn = until_last_map(SHALLOW[model](), 224)
    with torch.inference_mode():
        height, width = cnn(torch.zeros(1, 3, 224, 224)).shape[2:]
    network = Network(cnn, IMAGENET, (height, width), (5, 5)).eval()
    for name in ["onnxruntime", *(["openvino"] if find_spec("openvino") else [])]:
        # `choose` compares the features with those of eager PyTorch.
        assert choose(name, network, (224, 224), CPU, 32)[0] == name


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_pytorch_gives_the_features_of_eager_pytorch_whatever_the_batch() -> None:
    network = small_network()
    name, run = choose("compile", network, (40, 40), CPU, 4)
    assert name == "compile"
    for count in (4, 1, 6):
        pixels = pictures(count, 40)
        with torch.inference_mode():
            expected = network(pixels)
        for found, wanted in zip(run(pixels), expected, strict=True):
            assert difference(found, wanted) < 1e-5


@pytest.mark.parametrize("name", RUNTIMES)
def test_features_do_not_depend_on_other_pictures_or_the_thread(name: str) -> None:
    _, run = choose(name, small_network(), (40, 40), CPU, 32)
    assert name in ONE_BY_ONE
    pixels = pictures(24, 40)
    together = run(pixels)
    with ThreadPoolExecutor(8) as pool:
        alone = list(pool.map(lambda i: run(pixels[i : i + 1]), range(24)))
    for found, expected in zip(zip(*alone, strict=True), together, strict=True):
        assert torch.equal(torch.cat(found), expected)


def test_auto_takes_the_fastest_installed_backend_and_logs_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd
) -> None:
    caplog.set_level(logging.INFO)
    tried = [name for name in backends._FASTEST["cpu"] if name == "eager" or find_spec(name)]
    assert tried[-2:] == ["onnxruntime", "eager"]
    for i, name in enumerate(tried):
        caplog.clear()
        assert choose("auto", small_network(), (40, 40), CPU, 32)[0] == name
        ours = [record.message for record in caplog.records if record.name == "features.backends"]
        assert len(ours) == len(backends._FASTEST["cpu"]) - len(tried) + i
        monkeypatch.setitem(sys.modules, name, None)  # from now on its import fails
    assert "onnxruntime cannot run the network here (import of onnxruntime" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_a_backend_that_does_not_work_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"this needs onnxruntime, which is not installed"):
        choose("onnxruntime", small_network(), (40, 40), CPU, 32)


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_backend_with_wrong_features_is_not_used(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = backends._onnxruntime

    def broken(model: bytes) -> backends.RunOne:
        run_one = start(model)
        return lambda pixels: [part * wrong for part in run_one(pixels)]

    monkeypatch.setattr(backends, "_onnxruntime", broken)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose("auto", small_network(), (40, 40), CPU, 32)[0] == "eager"
    with pytest.raises(UserError, match="its features differ by"):
        choose("onnxruntime", small_network(), (40, 40), CPU, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu_half_precision_stays_near_eager_float32() -> None:
    device = torch.device("cuda")
    eager = load_backbone("efficientnet_lite0", 7, device, "eager")
    compiled = load_backbone("efficientnet_lite0", 7, device, "compile", batch_size=4)
    images = pictures(6, 224).permute(0, 3, 1, 2)
    for found, expected in zip(compiled.features(images), eager.features(images), strict=True):
        assert difference(found, expected) < TOLERANCE["cuda"]
    with pytest.raises(UserError, match="it computes on the CPU, not on cuda"):
        load_backbone("efficientnet_lite0", 7, device, "onnxruntime")


@needs_openvino
def test_no_runtime_reports_usage(tmp_path) -> None:
    """OpenVINO's import would report to a statistics server and leave an id in the user's home."""
    script = """
import sys
sys.addaudithook(
    lambda event, found: event in ("socket.getaddrinfo", "socket.connect", "os.fork") and exit(3)
)
import torch
from features.backbones import load_backbone
load_backbone("efficientnet_lite0", 7, torch.device("cpu"), "openvino")
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    assert not (tmp_path / "intel").exists()
