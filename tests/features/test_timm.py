"""timm's networks, and weights from a file of the user, on networks with random weights."""

import hashlib
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import torchvision

timm = pytest.importorskip("timm", reason="timm is an extra")
from safetensors.torch import save_file  # noqa: E402

from decoder.data.pictures import backbone_of, features_of  # noqa: E402
from features import weights  # noqa: E402
from features.backbones import Backbone, load_backbone, load_network  # noqa: E402
from features.errors import UserError  # noqa: E402
from features.store import FeatureStore, fingerprint  # noqa: E402
from pipeline import extract  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def saved(folder: Path, name: str) -> Path:
    """Return a file with random weights of a network of timm."""
    file = folder / f"{name}.safetensors"
    if not file.exists():
        save_file(network(name).state_dict(), file)
    return file


def load(folder: Path, name: str, grid: int = 2) -> Backbone:
    return load_backbone(f"timm:{name}", grid, CPU, "eager", weights=[saved(folder, name)])


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_vit"])
def test_the_features_are_those_of_forward_features(name, folder):
    backbone = load(folder, name, 5)
    model = network(name)
    data = timm.data.resolve_model_data_config(model)
    size = data["input_size"][1]
    described = backbone.description["transform"]
    assert (described["size"], described["mean"]) == ([size, size], list(data["mean"]))
    assert described["resize"] == "whole picture, aspect ratio not kept"
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    grid, pooled = backbone.features(pixels)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        last = model.forward_features((pixels / 255 - mean) / std)
    if last.ndim == 3:  # the tokens of a vision transformer, row by row, after the class token
        tokens = last[:, model.num_prefix_tokens :]
        assert torch.allclose(pooled, tokens.mean(1), atol=1e-5)
        first = tokens.unflatten(1, (10, 10))[:, :2, :2].mean((1, 2))
    else:
        assert torch.allclose(pooled, last.mean((2, 3)), atol=1e-5)
        first = last[:, :, 0, 0]
    assert grid.shape == (2, 25, model.num_features)
    assert torch.allclose(grid[:, 0], first, atol=1e-5)


def test_weights_are_verified_but_where_they_lie_does_not_matter(folder, tmp_path, monkeypatch):
    backbone = load(folder, "test_resnet")
    wanted = backbone.description
    file = saved(folder, "test_resnet")
    assert wanted["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    moved = {**wanted, "weights_file": [str(tmp_path / "test_resnet.safetensors")]}
    assert fingerprint(moved) == fingerprint(wanted)
    with pytest.raises(UserError, match=r"expected the weights of the CNN in .*put it there, or"):
        backbone_of(moved, CPU)
    monkeypatch.setattr(weights, "by_hand", lambda name: file)
    assert backbone_of(moved, CPU).description["weights_sha256"] == wanted["weights_sha256"]
    torch.manual_seed(1)
    other = timm.create_model("test_resnet").state_dict()
    save_file(other, tmp_path / "test_resnet.safetensors")
    with pytest.raises(UserError, match="weights_sha256"):
        backbone_of(moved, CPU)


def test_files_of_other_networks_or_kinds_are_refused_by_name(folder, tmp_path):
    model = network("test_resnet")
    tensors = model.state_dict()
    first = next(iter(tensors))
    broken = {
        "which has " + first: {**tensors, first: torch.zeros(3)},
        "which lacks " + first: {k: v for k, v in tensors.items() if k != first},
        "which has the unknown more": {**tensors, "more": torch.zeros(1)},
        "contains more than tensors": {"model": {"a": shutil.copy}},
        "other values": {"a": 1},
    }
    for number, (message, content) in enumerate(broken.items()):
        torch.save(content, file := tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match=message.replace(".", r"\.")):
            load_network("timm:test_resnet", 2, CPU, [file])
    (file := tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="damaged or contains more than tensors; save"):
        load_network("timm:test_resnet", 2, CPU, [file])
    with pytest.raises(UserError, match="did you mean timm:test_resnet"):
        load_network("timm:test_resnett", 2, CPU)
    with pytest.raises(UserError, match="expected one file for each of timm:test_resnet, found 2"):
        load_network("timm:test_resnet", 2, CPU, [file, file])
    with pytest.raises(UserError, match="has no effect: the weights of efficientnet_lite0 come"):
        load_network("efficientnet_lite0", 2, CPU, [file])


def test_usual_wrappers_and_torchvision_networks_are_read(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(weights=None)
    file = tmp_path / "trained.pth"
    own = {f"module.{k}": v for k, v in model.state_dict().items() if "classifier" not in k}
    torch.save({"epoch": 3, "state_dict": own}, file)
    loaded, description = load_network("squeezenet1_1", 7, CPU, [file])
    found = loaded.cnn.extractor.state_dict()
    assert all(torch.equal(found[k], model.state_dict()[k]) for k in found)
    assert description["weights"] == "file"
    with pytest.raises(UserError, match=r"weights of resnet18, found .*which lacks conv1\.weight"):
        load_network("resnet18", 7, CPU, [file])


def test_an_unreachable_hub_says_what_to_do(monkeypatch, tmp_path):
    def fail(*_):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"model\.safetensors of timm/test_vit.* --weights FILE"):
        load_network("timm:test_vit", 2, CPU)


def test_joined_features_are_extracted_and_new_pictures_get_the_same(folder, work, tmp_path):
    command = ["--work", str(work), "--force", "--grid", "2", "--backend", "eager"]
    command += ["--backbone", "efficientnet_lite0+timm:test_convnext"]
    table = json.loads((work / "captions.json").read_text())
    table["images"] = table["images"][:2]
    ids = [image["id"] for image in table["images"]]
    table["annotations"] = [a for a in table["annotations"] if a["image_id"] in ids]
    (work / "captions.json").write_text(json.dumps(table))
    command += ["--weights", str(saved(folder, "test_convnext")), "--prune"]
    assert extract.main(command) == 0
    store = FeatureStore(work / "features.h5")
    assert store.description["channels"] == 1280 + 64
    picture = work / table["info"]["image_root"] / table["images"][0]["file_name"]
    features = features_of(backbone_of(store.description, CPU), picture)
    stored = store.grid(store.rows(ids[:1]))
    np.testing.assert_allclose(features.grid_IRC.numpy(), stored, rtol=2e-2, atol=2e-3)
