"""A picture for tests that only need one with content."""

from PIL import Image


def moon(size: tuple[int, int]) -> Image.Image:
    """Return a dark RGB picture with a bright disc."""
    disc = Image.radial_gradient("L").resize(size).point(lambda level: 220 if level < 90 else 20)
    return disc.convert("RGB")
