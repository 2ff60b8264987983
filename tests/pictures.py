"""Pictures for tests: a drawn one with content, and the photographs of Flickr8k."""

from pathlib import Path

from PIL import Image


def read_flickr8k(flickr8k: Path, list_file: str) -> dict[Path, list[str]]:
    """Return the captions of each photograph in a list such as "Flickr_8k.devImages.txt"."""
    texts = flickr8k / "Flickr8k_text"
    captions: dict[str, list[str]] = {name: [] for name in (texts / list_file).read_text().split()}
    for line in (texts / "Flickr8k.token.txt").read_text().splitlines():
        name, caption = line.split("\t")
        if (name := name.split("#")[0]) in captions:
            captions[name].append(caption)
    folder = flickr8k / "Flicker8k_Dataset"
    return {folder / name: of_picture for name, of_picture in captions.items()}


def moon(size: tuple[int, int]) -> Image.Image:
    """Return a dark RGB picture with a bright disc."""
    disc = Image.radial_gradient("L").resize(size).point(lambda level: 220 if level < 90 else 20)
    return disc.convert("RGB")
