"""Weights and training state on disk: tensors as safetensors, all else as JSON in its header.

Nothing is ever unpickled, and files are written atomically.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from features.commands import TRAIN
from features.errors import AccessError, UserError, first_few, unreadable
from features.files import make_folder, reading, replacing, write_atomically

log = logging.getLogger(__name__)

_HEADER = "json"  # the key of our JSON in the metadata of a safetensors file
_SCALE = ".scale"  # suffix of the name of a quantized matrix's scales


def save(path: Path, tensors: Mapping[str, Tensor], header: Any = None) -> None:
    """Write tensors, and `header` as JSON, to one file, atomically."""
    write_atomically(path, to_bytes(tensors, header))


def to_bytes(tensors: Mapping[str, Tensor], header: Any = None) -> bytes:
    """Return the bytes that `save` writes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return to_safetensors(contiguous, {_HEADER: json.dumps(header)})


def save_rows(
    path: Path,
    name: str,
    rows: Iterable[Tensor],
    shape: tuple[int, int],
    tensors: Mapping[str, Tensor],
    header: Any = None,
) -> None:
    """Write a file as `save` does, with a tensor of many rows that need not all be in memory.

    Args:
        path: the file.
        name: of the tensor of many rows.
        rows: its rows, float16, a few at a time.
        shape: of all its rows.
        tensors: the other tensors of the file.
        header: see `save`.

    Raises:
        UserError: the file cannot be written.
        ValueError: there are more or fewer rows than `shape` says.
    """
    bytes_ = 2 * shape[0] * shape[1]
    small = to_bytes(tensors, header)  # its length, its header as JSON, and then the tensors
    end = 8 + int.from_bytes(small[:8], "little")
    described = json.loads(small[8:end])
    for key, one in described.items():
        if key != "__metadata__":
            one["data_offsets"] = [offset + bytes_ for offset in one["data_offsets"]]
    described[name] = {"dtype": "F16", "shape": shape, "data_offsets": [0, bytes_]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    make_folder(path.parent)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for block in rows:
                file.write(block.contiguous().numpy().data)
            if file.tell() != 8 + len(text) + bytes_:
                raise ValueError(f"expected {shape[0]} rows of {name} for {path}, found others")
            file.write(small[end:])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def load(path: Path, device: torch.device, made_by: str = TRAIN) -> tuple[dict[str, Tensor], Any]:
    """Read the tensors and the JSON header that `save` wrote.

    `made_by` is the command that creates the file, for the error message.

    Raises:
        AccessError: the file cannot be read.
        UserError: the file is missing, truncated or not a safetensors file.
    """
    try:
        with reading(path), path.open("rb") as bytes_:
            bytes_.read(1)  # so that what safetensors complains of is the content
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; create it with {made_by}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a complete safetensors file: {error}") from error


def load_cache(path: Path) -> tuple[dict[str, Tensor], Any] | None:
    """Read a file as `load` does; None if it is missing, or damaged, which a warning says.

    It is for files that can be made again.

    Raises:
        AccessError: the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        return load(path, torch.device("cpu"))
    except AccessError:
        raise
    except UserError as error:
        log.warning("making a damaged file again: %s", error)
        return None


def quantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return matrices as int8 with a scale for each row, and other floating tensors as float16.

    On Flickr8k this costs at most 0.004 CIDEr.
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


def dequantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return in float32 what `quantize` returned; other tensors are returned unchanged.

    A scale that does not fit its matrix, or has none, is returned too, for the caller to refuse.
    """
    restored = {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in tensors.items()
    }
    for name in [name for name in restored if name.endswith(_SCALE)]:
        matrix = restored.get(name.removesuffix(_SCALE))
        if matrix is not None and matrix.ndim == 2 and restored[name].shape == (len(matrix), 1):
            restored[name.removesuffix(_SCALE)] = matrix * restored.pop(name)
    return restored


def load_weights(model: nn.Module, path: Path, device: torch.device | None = None) -> None:
    """Load weights that `save` wrote into `model`.

    Args:
        model: a model whose weights are on the meta device receives new ones on `device`.
        path: the file.
        device: by default that of the model.

    Raises:
        UserError: as `load`; or a weight is missing, not part of the model, or of another shape,
            because the vocabulary or the features are not those of the run; or one is not finite.
    """
    device = device or next(model.parameters()).device
    found = dequantize(load(path, device)[0])
    expected = model.state_dict()
    wrong = [
        f"{name} (expected {_shape(expected.get(name))}, found {_shape(found.get(name))})"
        for name in sorted(expected.keys() | found.keys())
        if _shape(expected.get(name)) != _shape(found.get(name))
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit the run's config.json and vocabulary.json: "
            f"{first_few(wrong, 3)}; these three files belong together; copy them from one run"
        )
    broken = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{path}: {first_few(broken, 3)} is not finite; the file is damaged")
    weights = {name: tensor.to(expected[name].dtype) for name, tensor in found.items()}
    # Assigned, since `to_empty` would import torch's compiler, which takes a second.
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(weights, assign=on_meta)


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else "x".join(map(str, tensor.shape))


def restore(target: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy into each tensor of `target` the one of the same name.

    Raises:
        ValueError: one is missing, or of another shape or type; then none has been copied.
    """
    for name, tensor in target.items():
        found = tensors.get(name)
        if found is None or (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            what = "nothing" if found is None else f"{found.dtype} {_shape(found)}"
            raise ValueError(f"expected {name} to be {tensor.dtype} {_shape(tensor)}, found {what}")
    for name, tensor in target.items():
        tensor.copy_(tensors[name])
