"""A captioner as ONNX, for runtimes without Python: the CNN, the encoding of an image, one step.

The decoder is traced as it is, with its `PLAIN` operations. PyTorch's newer exporter, based on
torch.export, gives the same numbers but takes 2 to 50 times as long, and needs onnxscript.

Shape suffixes as in `decoder.model.decoders`, for one image.
"""

import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from decoder.data.batches import Features
from decoder.model.attention import Rows
from decoder.model.decoders import Decoder, Memory
from decoder.model.operations import PLAIN
from decoder.model.recurrence import Shared
from decoder.runs.loading import load_decoder
from decoder.sharing.onnx_examples import JAVASCRIPT, PYTHON, README
from features.backbones import describe_again
from features.backends import exported
from features.errors import UserError
from features.files import write_atomically
from features.store import differences, fingerprint
from pipeline.vocabulary import BOS, EOS
from pipeline.work import RunFolder

_OPSET = 17
_CPU = torch.device("cpu")


class _Encode(nn.Module):
    """Computes the memory of an image and the state before the first word, as a flat tuple."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, grid_IRC: Tensor, pooled_IC: Tensor) -> tuple[Tensor, ...]:
        memory = self.model.encode(Features(grid_IRC, pooled_IC))
        named = {
            "gates": memory.gates_IG,
            "regions": memory.regions_IRH.tensor,
            "keys": memory.keys_IRA.tensor,
        }
        state = self.model.start(memory, 1)
        return *(named[name] for name in memory_names(self.model)), *state


class _Step(nn.Module):
    """Reads a word of each caption, given the memory from `_Encode` and the last state."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, words_B: Tensor, *memory_and_state: Tensor) -> tuple[Tensor, ...]:
        """Return the log-probabilities, the attention if the model attends, and the new state."""
        names = memory_names(self.model)
        named = dict(zip(names, memory_and_state, strict=False))
        state = memory_and_state[len(names) :]
        none = torch.empty(1, 0)
        regions, keys = (Shared(named.get(name, none)) for name in ("regions", "keys"))
        memory = Memory(1, named.get("gates", none), regions, keys)
        rows = Rows(torch.zeros_like(words_B), None, [])
        gates_BG = self.model.gates_of(words_B, memory, rows.image_B)
        state, weights_BR = self.model.step(gates_BG, memory, rows, state)
        attention = (weights_BR,) if self.model.attends else ()
        return self.model.output(state[0]).log_softmax(-1), *attention, *state


def memory_names(model: Decoder) -> list[str]:
    """Return the names of the tensors that a step reads of the image."""
    gates = ["gates"] if model.reads_pooled_at_every_step else []
    return gates + (["regions", "keys"] if model.attends else [])


def decoder_files(model: Decoder, regions: int, channels: int) -> dict[str, bytes]:
    """Return a decoder as the files encode.onnx and step.onnx, by name.

    The model computes by its plain operations afterwards.

    Args:
        model: in evaluation mode, on the CPU.
        regions: number of regions of the stored grid.
        channels: number of channels of the stored features.
    """
    model.use_operations(PLAIN)
    grid, pooled = torch.zeros(1, regions, channels), torch.zeros(1, channels)
    encode, step = _Encode(model).eval(), _Step(model).eval()
    with torch.no_grad():  # tracing refuses tensors of inference mode
        encoded = [tensor.contiguous() for tensor in encode(grid, pooled)]
    memory = memory_names(model)
    states = [f"state_{i}" for i in range(len(encoded) - len(memory))]
    outputs = ["log_probabilities", *(["attention"] if model.attends else [])]
    outputs += [f"next_{name}" for name in states]
    per_caption = {name: {0: "captions"} for name in ("word", *states, *outputs)}
    return {
        "encode.onnx": _traced(encode, (grid, pooled), ["grid", "pooled"], [*memory, *states]),
        "step.onnx": _traced(
            step, (torch.tensor([BOS]), *encoded), ["word", *memory, *states], outputs, per_caption
        ),
    }


def write_onnx(run: RunFolder, folder: Path) -> None:
    """Write a captioner's CNN and decoder to `folder`, float32, with a README and two examples.

    Raises:
        UserError: the run's files do not belong together, or the installed CNN is not the one that
            computed the features of the training.
    """
    model, vocabulary, config = load_decoder(run, run.best, _CPU)
    wanted = config["features"]
    network, found = describe_again(wanted, _CPU)
    if fingerprint({**found, "dtype": wanted["dtype"]}) != fingerprint(wanted):
        raise UserError(
            f"the run was trained on features of a different {wanted['backbone']}: "
            f"{differences(wanted, found)}; install the version that computed them"
        )
    height, width = wanted["transform"]["size"]
    settings = {
        "width": width,
        "height": height,
        "interpolation": wanted["transform"]["interpolation"].upper(),
        "bos": BOS,
        "eos": EOS,
        "longest": vocabulary.max_length,
    }
    files = {
        "cnn.onnx": exported(network, (height, width)),
        **decoder_files(model, wanted["grid"][0] * wanted["grid"][1], wanted["channels"]),
        "words.json": json.dumps(vocabulary.words, ensure_ascii=False, indent=0).encode(),
        "settings.json": json.dumps(settings, indent=1).encode(),
        "README.md": README.format(
            **settings, memory=", ".join(memory_names(model)) or "nothing"
        ).encode(),
        "caption.py": PYTHON.encode(),
        "caption.mjs": JAVASCRIPT.encode(),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)


def _traced(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    dynamic: dict[str, dict[int, str]] | None = None,
) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about sizes that become constants, as intended
        torch.onnx.utils.export(
            module,
            inputs,
            file,  # type: ignore[arg-type]  # the annotation forgets open files
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=dynamic,
            opset_version=_OPSET,
        )
    return file.getvalue()
