"""Weights and training state on disk: tensors as safetensors, everything else as JSON beside them.

Nothing is ever unpickled, and every file is written whole or not at all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from features.errors import UserError, first_few
from pipeline.command import write_atomically

# The key of the JSON that goes with the tensors in the file's header.
_HEADER = "json"


def save(path: Path, tensors: Mapping[str, Tensor], header: Any = None) -> None:
    """Write tensors, and `header` as JSON, to one file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, to_safetensors(contiguous, {_HEADER: json.dumps(header)}))


def load(path: Path, device: torch.device) -> tuple[dict[str, Tensor], Any]:
    """Read the tensors and the JSON header that `save` wrote.

    Raises:
        UserError: the file is missing, truncated or no such file.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; python -m decoder.train makes it") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights that `save` wrote into `model`.

    Raises:
        UserError: as `load`; or a weight is missing, left over or of another shape, as when the
            vocabulary or the features are not those of the run.
    """
    device = next(model.parameters()).device
    found, _ = load(path, device)
    expected = model.state_dict()
    wrong = [
        f"{name} (expected {_shape(expected.get(name))}, found {_shape(found.get(name))})"
        for name in sorted(expected.keys() | found.keys())
        if _shape(expected.get(name)) != _shape(found.get(name))
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit the run's config.json and vocabulary.json: "
            f"{first_few(wrong, 3)}; these three files belong together, copy them from one run"
        )
    model.load_state_dict(found)


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else "x".join(map(str, tensor.shape))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": tensor
        for index, of_parameter in state.items()
        for name, tensor in of_parameter.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned, found among `tensors`."""
    whole = optimizer.state_dict()
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            whole["state"].setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(whole)
