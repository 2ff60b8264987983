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
from features.files import write_atomically

# The key of the JSON that goes with the tensors in the file's header.
_HEADER = "json"
# What the name of a matrix's scales ends in.
_SCALE = ".scale"


def save(path: Path, tensors: Mapping[str, Tensor], header: Any = None) -> None:
    """Write tensors, and `header` as JSON, to one file, atomically."""
    write_atomically(path, to_bytes(tensors, header))


def to_bytes(tensors: Mapping[str, Tensor], header: Any = None) -> bytes:
    """Return the content of the file that `save` writes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return to_safetensors(contiguous, {_HEADER: json.dumps(header)})


def load(
    path: Path, device: torch.device, made_by: str = "python -m decoder.train"
) -> tuple[dict[str, Tensor], Any]:
    """Read the tensors and the JSON header that `save` wrote.

    `made_by` names the command that makes the file, for the error message.

    Raises:
        UserError: the file is missing, truncated or no such file.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; {made_by} makes it") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error


def in_8_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return matrices as int8 with a scale for each row, and other floating tensors as float16.

    On Flickr8k a decoder's captions so lose 0.004 CIDEr at most.
    """
    small: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point():
            small[name] = tensor
        elif tensor.ndim != 2:
            small[name] = tensor.half()
        else:
            scale = tensor.float().abs().amax(1, keepdim=True) / 127
            small[name] = (tensor / scale.where(scale > 0, 1)).round().to(torch.int8)
            small[name + _SCALE] = scale
    return small


def from_8_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 tensors of those that `in_8_bits` returned; others are left as they are.

    A scale that does not fit its matrix is left over, and so is one without a matrix.
    """
    whole = {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in tensors.items()
    }
    for name in [name for name in whole if name.endswith(_SCALE)]:
        matrix = whole.get(name.removesuffix(_SCALE))
        if matrix is not None and matrix.ndim == 2 and whole[name].shape == (len(matrix), 1):
            whole[name.removesuffix(_SCALE)] = matrix * whole.pop(name)
    return whole


def load_weights(model: nn.Module, path: Path, device: torch.device | None = None) -> None:
    """Load weights that `save` wrote into `model`, on `device` if it is on none (meta).

    Raises:
        UserError: as `load`; or a weight is missing, left over or of another shape, as when the
            vocabulary or the features are not those of the run; or one is not finite.
    """
    device = device or next(model.parameters()).device
    found = from_8_bits(load(path, device)[0])
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
    broken = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{path}: {first_few(broken, 3)} is not finite; the file is damaged")
    whole = {name: tensor.to(expected[name].dtype) for name, tensor in found.items()}
    # Assigned, for `to_empty` imports torch's compiler, which takes a second.
    on_none = any(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(whole, assign=on_none)


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else "x".join(map(str, tensor.shape))


def restore(target: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy into each tensor of `target` the one of its name.

    Raises:
        ValueError: one is missing, or of another shape or type; then none was copied.
    """
    for name, into in target.items():
        found = tensors.get(name)
        if found is None or (found.shape, found.dtype) != (into.shape, into.dtype):
            there = "nothing" if found is None else f"{found.dtype} {_shape(found)}"
            raise ValueError(f"expected {name} to be {into.dtype} {_shape(into)}, found {there}")
    for name, into in target.items():
        into.copy_(tensors[name])
