"""The optimizer against torch's."""

import torch
from torch import nn

from decoder.training.adam import Adam


def test_it_takes_the_steps_of_torchs_own():
    """One weight has a gradient at only some of the steps, like a part that is not always used."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(7))]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    one = Adam(ours, (0.9, 0.98))
    other = torch.optim.Adam(theirs, betas=(0.9, 0.98), fused=True)
    for step in range(6):
        one.zero_grad()
        other.zero_grad()
        for weight, same in list(zip(ours, theirs, strict=True))[: 1 + step % 2]:
            weight.grad = torch.randn_like(weight)
            same.grad = weight.grad.clone()
        one.step(0.1 / (1 + step))
        other.param_groups[0]["lr"] = 0.1 / (1 + step)
        other.step()
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
