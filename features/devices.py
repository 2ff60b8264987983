"""Choosing the device that computes."""

import torch

from features.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device with PyTorch's name `name`; "auto" is a GPU if there is one, else the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name}: PyTorch has no such device on this machine; use cpu, or auto for "
            "a GPU if there is one"
        ) from error
    return device
