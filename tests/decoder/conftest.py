"""A small batch for the tests of models, objectives and search."""

import pytest
import torch

from decoder.batches import Batch, Features, pad
from pipeline.vocabulary import EOS, UNK

WORDS, CHANNELS, REGIONS = 20, 24, 9


@pytest.fixture
def batch() -> Batch:
    """Four images, one of them with three captions; lengths from 1 to 7, one word unknown."""
    generator = torch.Generator().manual_seed(0)
    captions = [
        [5, 6, 7, 8, 9, 10, EOS],
        [8, EOS],
        [11, UNK, 12, EOS],
        [5, 13, EOS],
        [EOS],
        [14, 15, 16, 17, EOS],
    ]
    return Batch(
        image_ids=torch.tensor([30, 10, 20, 40]),
        features=Features(
            torch.rand(4, REGIONS, CHANNELS, generator=generator),
            torch.rand(4, CHANNELS, generator=generator),
        ),
        tokens_BT=pad(captions),
        image_B=torch.tensor([0, 0, 0, 1, 2, 3]),
    )
