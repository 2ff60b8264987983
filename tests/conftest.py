"""Fixtures that several test files share."""

from pathlib import Path

import pytest

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "flickr8k"


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """The real photographs and captions, which may not be copied into the project."""
    if not FLICKR8K.is_dir():
        pytest.skip("needs Flickr8k in ../shared/flickr8k, whose licence forbids copying it here")
    return FLICKR8K
