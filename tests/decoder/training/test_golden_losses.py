"""Faster must not mean other numbers: the first losses of both phases, beside those of before."""

import json

import pytest
import torch

from tests.decoder.training.regenerate_golden_losses import GOLDEN, NAMES, losses

# Float32 rounds by 1e-7; ten steps of Adam, which divides by small numbers, let that grow.
TOLERANCE = 1e-4


@pytest.mark.parametrize("phase", ["xe", "rl"])
@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_have_the_losses_of_before(name, phase):
    if phase == "xe" and not torch.backends.mkl.is_available():
        pytest.skip("dropout draws from MKL's generator where there is one, as in the values kept")
    expected = json.loads(GOLDEN.read_text())[phase][name]
    assert losses(name, phase) == pytest.approx(expected, abs=TOLERANCE)
