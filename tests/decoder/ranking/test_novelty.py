"""Pictures unlike the training pictures are recognised, also after the components were stored."""

import pytest
import torch

from decoder.ranking.novelty import Novelty
from features.errors import UserError

CHANNELS = 60
GENERATOR = torch.Generator().manual_seed(0)
MIXTURE = torch.rand((6, CHANNELS), generator=GENERATOR)


def photographs(count: int) -> torch.Tensor:
    """Features that vary in six directions, with a little noise."""
    varied = torch.rand((count, 6), generator=GENERATOR) @ MIXTURE
    return varied + 0.05 * torch.rand((count, CHANNELS), generator=GENERATOR)


def test_pictures_of_another_kind_have_a_larger_novelty(tmp_path):
    novelty = Novelty.fit(photographs(500), components=8)
    new, other = photographs(100), 2 * torch.rand((100, CHANNELS), generator=GENERATOR)
    assert novelty.of(other).min() > 2 * novelty.of(new).max()

    novelty.save(tmp_path / "novelty.safetensors", {"vocabulary": "a"})
    again = Novelty.load(tmp_path / "novelty.safetensors", {"vocabulary": "a"}, CHANNELS)
    torch.testing.assert_close(again.of(other), novelty.of(other), rtol=0.02, atol=0.01)


def test_the_file_of_another_captioner_is_refused(tmp_path):
    file = tmp_path / "novelty.safetensors"
    Novelty.fit(photographs(50)).save(file, {"vocabulary": "a"})
    for provenance, channels in (({"vocabulary": "b"}, CHANNELS), ({"vocabulary": "a"}, 61)):
        with pytest.raises(UserError, match="does not fit this captioner"):
            Novelty.load(file, provenance, channels)


def test_few_or_equal_pictures_give_finite_numbers():
    for pooled in (photographs(2), torch.ones(20, CHANNELS)):
        assert Novelty.fit(pooled).of(photographs(3)).isfinite().all()
