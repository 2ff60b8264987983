"""Weights from a file of the user: found again, read without running code, checked, loaded."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from features.errors import UserError, first_few, first_line
from features.files import reading

# Under which key a training program saves the weights; running averages come before the others.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
# What parallel and compiled training puts before every name.
_PREFIXES = ("module.", "_orig_mod.")


def by_hand(name: str) -> Path:
    """Return where a user may put a file of weights, so that it is found by its name."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def locate(recorded: str) -> Path:
    """Return a file of weights that was recorded with its path when it was used.

    Raises:
        UserError: it is neither there nor where `by_hand` says.
    """
    path = Path(recorded)
    other = by_hand(path.name)
    for candidate in (path, other):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"expected the weights of the CNN in {path}, but there is no such file; put it there, or "
        f"at {other}"
    )


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a file of torch.save.

    Checkpoints that hold the state dict under a usual key, such as "state_dict", are read too.

    Raises:
        AccessError: the file cannot be read.
        UserError: it is missing, damaged, or contains more than tensors.
    """
    try:
        with reading(file), file.open("rb") as start:
            is_safetensors = start.read(9)[8:] == b"{"
        if is_safetensors:
            return safetensors.torch.load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"--weights: expected a file, but {file} is not there") from error
    except (
        SafetensorError,
        UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
    ) as error:
        # torch's own message advises to unpickle the file.
        detail = "" if isinstance(error, UnpicklingError) else f" ({first_line(error)})"
        raise UserError(
            f"--weights {file}: expected a safetensors file or a state dict of torch.save, found a "
            f"file that is damaged or contains more than tensors{detail}; save the network's "
            "state_dict() alone"
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    if not named or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(
            f"--weights {file}: expected tensors by name, found other values; save the network's "
            "state_dict() alone"
        )
    tensors = dict(content)
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def load_weights(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    file: Path,
    name: str,
    is_needed: Callable[[str], bool],
) -> None:
    """Load weights into a network, all that are needed and no others.

    Args:
        network: the network with its classifier.
        tensors: its weights by name; those that are not needed may be absent or of another shape.
        file: where they come from, for messages.
        name: of the network, for messages.
        is_needed: whether the features depend on the weights of this name.

    Raises:
        UserError: weights are missing, unknown or of another shape.
    """
    own = network.state_dict()
    needed = {key: value for key, value in own.items() if is_needed(key)}
    given = {key: value for key, value in tensors.items() if key in needed}
    # Batch norms count their batches for training only; old files lack the counts.
    absent = (k for k in needed if k not in given and not k.endswith("num_batches_tracked"))
    shapes = (
        f"{key} {tuple(value.shape)} instead of {tuple(needed[key].shape)}"
        for key, value in given.items()
        if value.shape != needed[key].shape
    )
    unknown = (key for key in tensors if key not in own and is_needed(key))
    for what, listed in (("lacks", absent), ("has the unknown", unknown), ("has", shapes)):
        _refuse(f"{file}, which {what}", list(listed), name)
    network.load_state_dict(given, strict=False)


def _refuse(what: str, names: Iterable[str], network: str) -> None:
    listed = list(names)
    if listed:
        raise UserError(
            f"--weights: expected the weights of {network}, found {what} {first_few(listed, 3)}"
            f"{f' ({len(listed)} in all)' if len(listed) > 1 else ''}; give the file of this "
            "network, or name the network of this file with --backbone"
        )
