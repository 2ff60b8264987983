import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from features import torchvision_cnns
from features.backbones import Backbone, load_backbone
from features.backends import Network, choose
from features.errors import UserError
from features.pretrained import sha256_prefix

CPU = torch.device("cpu")


def linear_on_mean(model: nn.Module, map_: Tensor) -> Tensor:
    return (model.fc if hasattr(model, "fc") else model.classifier)(map_.mean((2, 3)))


def layers_on_mean(model: nn.Module, map_: Tensor) -> Tensor:
    return model.classifier(map_.mean((2, 3), keepdim=True))


def layers_on_map(model: nn.Module, map_: Tensor) -> Tensor:
    return model.classifier(map_.flatten(1))


def convolution(model: nn.Module, map_: Tensor) -> Tensor:
    return model.classifier(map_).flatten(1)


# The smallest network of each family, and the function from its last map to its logits.
FAMILIES = {
    "alexnet": layers_on_map,
    "convnext_tiny": layers_on_mean,
    "densenet121": linear_on_mean,
    "efficientnet_b0": linear_on_mean,
    "efficientnet_v2_s": linear_on_mean,
    "googlenet": linear_on_mean,
    "inception_v3": linear_on_mean,
    "mnasnet0_5": linear_on_mean,
    "mobilenet_v2": linear_on_mean,
    "mobilenet_v3_small": linear_on_mean,
    "regnet_x_400mf": linear_on_mean,
    "regnet_y_400mf": linear_on_mean,
    "resnet18": linear_on_mean,
    "shufflenet_v2_x0_5": linear_on_mean,
    "squeezenet1_1": convolution,
    "vgg11": layers_on_map,
}


@pytest.mark.parametrize(("name", "head"), FAMILIES.items())
def test_the_last_map_is_what_the_classifier_sees(name: str, head: Callable) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    size = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    map_of = torchvision_cnns.until_last_map(model, size)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        map_ = map_of(images)
        torch.testing.assert_close(head(model, map_), model(images), atol=1e-4, rtol=1e-3)
    assert min(map_.shape[2:]) >= 6


def test_every_family_of_torchvision_cnns_is_tested() -> None:
    known = torchvision_cnns.names()
    families = {torchvision.models.get_model_builder(name).__module__ for name in known}
    tested = {torchvision.models.get_model_builder(name).__module__ for name in FAMILIES}
    assert families == tested
    assert not any(name.startswith(("vit", "swin", "maxvit")) for name in known)


def test_published_weights_name_their_checksum() -> None:
    for name in torchvision_cnns.names():
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        assert len(sha256_prefix(url)) >= 8


def test_an_unknown_backbone_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown backbone 'resnet100': did you mean resnet101"):
        load_backbone("resnet100", 7, CPU)


def test_stages_import_torchvision_only_for_its_cnns() -> None:
    """Its import takes seconds, which captioning a picture or a first training step would lose."""
    code = """
import sys, torch, decoder.caption, decoder.train, pipeline.extract
from features.backbones import load_backbone
load_backbone("efficientnet_lite0", 7, torch.device("cpu"), "eager")
assert "torchvision" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_grid_larger_than_the_last_map_is_refused() -> None:
    with pytest.raises(UserError, match="efficientnet_lite0 is 7 x 7, smaller than --grid 8"):
        load_backbone("efficientnet_lite0", 8, CPU)


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_joined_networks_concatenate_the_features_of_each_at_the_largest_size(backend: str) -> None:
    names = "efficientnet_lite0+efficientnet_lite1"
    joint = load_backbone(names, 7, CPU, backend)
    assert joint.size == (240, 240)
    assert (joint.description["backbone"], joint.description["channels"]) == (names, 2560)
    alone = load_backbone("efficientnet_lite1", 7, CPU, "eager")
    assert joint.description["weights"].endswith(f"+{alone.description['weights']}")
    picture = Image.effect_noise((300, 200), 80).convert("RGB")
    pixels = joint.transform(picture)
    assert torch.equal(pixels, alone.transform(picture))
    for found, expected in zip(
        joint.features(pixels[None]), alone.features(pixels[None]), strict=True
    ):
        assert found.shape[-1] == 2560
        torch.testing.assert_close(found[..., 1280:], expected, atol=1e-4, rtol=1e-3)
        assert found[..., :1280].std() > 0
        assert not torch.allclose(found[..., :1280], expected, atol=0.1)


def test_a_network_joined_with_itself_is_refused() -> None:
    with pytest.raises(UserError, match="found the same one twice"):
        load_backbone("efficientnet_lite0+efficientnet_lite0", 7, CPU)


def test_regions_cover_the_picture_row_by_row() -> None:
    transform = {"size": [28, 28], "interpolation": "bilinear", "scale": 255.0}
    transform |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    cnn = nn.Conv2d(3, 3, 1)
    nn.init.dirac_(cnn.weight)  # the identity
    nn.init.zeros_(cnn.bias)
    network = Network(cnn, transform, (28, 28), (7, 7))
    identity = Backbone({"transform": transform}, CPU, *choose("eager", network, (28, 28), CPU, 1))
    picture = Image.new("RGB", (700, 70), "black")  # a wide one, whose edges a crop would lose
    picture.paste("red", (600, 0, 700, 10))
    pixels = identity.transform(picture)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 28, 28))
    grid, pooled = identity.features(pixels[None])
    assert (grid.shape, pooled.shape) == ((1, 49, 3), (1, 3))
    assert grid[0, :, 0].topk(1).indices.item() == 6
    assert grid[0, 6, 0] > 0.6
    assert (grid[0, :, 1:] == -1).all()
    torch.testing.assert_close(grid.mean(1), pooled)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of random weights of shufflenet_v2_x0_5, published by a local server."""
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5()
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    file = (folder / "weights.pth").rename(folder / f"shufflenet-{digest[:8]}.pth")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.value
    monkeypatch.setattr(weights, "url", f"http://127.0.0.1:{server.server_port}/{file.name}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield file
    server.shutdown()
    thread.join()
    server.server_close()


def test_published_weights_are_downloaded_once_and_described(published: Path) -> None:
    backbone = load_backbone("shufflenet_v2_x0_5", 7, CPU, "eager")
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert backbone.description["weights"] == "IMAGENET1K_V1"
    assert backbone.description["weights_sha256"] == digest
    assert backbone.description["channels"] == 1024

    published.unlink()
    again = load_backbone("shufflenet_v2_x0_5", 7, CPU, "onnxruntime")
    assert again.description == backbone.description

    # At the size of the network's input, its published transform only normalises.
    picture = Image.effect_noise((224, 224), 80).convert("RGB")
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    model = torchvision.models.shufflenet_v2_x0_5(weights=weights).eval()
    with torch.inference_mode():
        expected = model(weights.transforms(resize_size=224)(picture)[None])
        _, pooled = again.features(again.transform(picture)[None])
        torch.testing.assert_close(model.fc(pooled), expected, atol=1e-4, rtol=1e-3)


def test_weights_damaged_in_transfer_are_refused(published: Path) -> None:
    published.write_bytes(published.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"damaged .* download http://127.* by hand and put it at"):
        load_backbone("shufflenet_v2_x0_5", 7, CPU)


def test_missing_weights_name_their_address_and_where_to_put_them(
    published: Path, tmp_path: Path
) -> None:
    published.unlink()
    path = tmp_path / "torch" / "hub" / "checkpoints" / published.name
    with pytest.raises(UserError, match=f"cannot download http://127.*404.*put it at {path}"):
        load_backbone("shufflenet_v2_x0_5", 7, CPU)


def test_weights_damaged_on_disk_are_refused(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / published.name).write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"is damaged: its SHA-256 starts with .* delete it"):
        load_backbone("shufflenet_v2_x0_5", 7, CPU)
