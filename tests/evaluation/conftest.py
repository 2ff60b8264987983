"""A small work directory: drawn pictures, their captions, and the captions of a model."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as Picture

from evaluation.java import find_java
from pipeline import captions
from pipeline.captions import Caption, CaptionTable, Image

COLOURS = ("red", "green", "blue", "yellow", "black", "white")
THINGS = ("dog", "ball")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Twelve images of the split val (ids 1 to 12), two of test (13, 14) and one of train (15)."""
    root = tmp_path / "pictures"
    root.mkdir()
    images = []
    for number in range(1, 16):
        colour, thing = COLOURS[number % 6], THINGS[number % 2]
        Picture.new("RGB", (96, 64), colour).save(root / f"{number}.jpg")
        texts = (
            f"A {colour} {thing}'s on the grass .",
            f"the {thing}, number {number}, is {colour}",
            f'There is "one" {colour} {thing}; it runs near a café (no. {number})',
        )
        split = "val" if number <= 12 else "test" if number <= 14 else "train"
        made = tuple(Caption(text, tuple(text.lower().split())) for text in texts)
        images.append(Image(number, f"{number}.jpg", split, made))
    captions.save(CaptionTable("drawn", root, tuple(images)), tmp_path / "work" / "captions.json")
    return tmp_path / "work"


@pytest.fixture
def write_results(work: Path) -> Callable[..., Path]:
    """Write a results file from captions by image id, or from any other JSON."""

    def write(content: object, name: str = "captions_val.json") -> Path:
        if isinstance(content, dict):
            content = [{"image_id": i, "caption": text} for i, text in content.items()]
        path = work / "runs" / "first" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def written() -> dict[int, str]:
    """A caption for each image of val: good, bad, exact, repeated and cut off."""
    texts = {
        number: f"a {COLOURS[number % 6]} {THINGS[number % 2]} on the grass"
        for number in range(1, 13)
    }
    return texts | {
        2: "the dog, number 2, is blue",  # a reference word for word
        3: "Dogs are running 1,000 times on a",
        4: "completely different words here",
        5: "the the the the",
        6: "a café's dog — running dogs' balls",
    }


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a `java` first on PATH that answers -version and runs a shell script otherwise.

    In the script, $JAVA is a real Java.
    """

    def install(script: str) -> Path:
        real = find_java()
        folder = tmp_path / "fake"
        folder.mkdir(exist_ok=True)
        java = folder / "java"
        java.write_text(
            f"#!/bin/sh\nJAVA={real}\n"
            f'if [ "$1" = -version ]; then exec "$JAVA" -version; fi\n{script}\n'
        )
        java.chmod(0o755)
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        assert shutil.which("java") == str(java)
        return java

    return install
