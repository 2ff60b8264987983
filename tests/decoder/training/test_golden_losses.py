"""The first losses of both phases are those of golden_losses.json."""

import json

import pytest
import torch

from tests.decoder.training.regenerate_golden_losses import GOLDEN, NAMES, losses

# Float32 rounds by 1e-7; ten steps of Adam, which divides by small numbers, let that grow.
TOLERANCE = 1e-4


@pytest.mark.parametrize("phase", ["xe", "rl"])
@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_have_the_golden_losses(name, phase):
    if phase == "xe" and not torch.backends.mkl.is_available():
        pytest.skip("the golden losses come from MKL's random numbers for dropout")
    expected = json.loads(GOLDEN.read_text())[phase][name]
    assert losses(name, phase) == pytest.approx(expected, abs=TOLERANCE)
