"""Where tensors live."""

import torch

from features.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device called `name`, as PyTorch names devices; "auto" is a GPU if there is one.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name}: this machine has no such device that PyTorch can use; take cpu, or "
            "auto to let the machine choose"
        ) from error
    return device
