"""A captioner as ONNX, for runtimes without Python: the CNN, what is computed once, and one step.

The decoder's own operations are made for training (see `decoder.model.recurrence`), so the same
formulas stand here again in plain ones; a test holds that they write the same captions.

Shape suffixes as in `decoder.model.decoders`, of one image.
"""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decoder.model.cells import GRUCell, LSTMCell
from decoder.model.decoders import Decoder
from decoder.runs.loading import load_decoder
from features.backbones import load_network
from features.backends import exported
from features.errors import UserError
from features.files import write_atomically
from features.store import differences, fingerprint
from pipeline.vocabulary import BOS, EOS
from pipeline.work import RunFolder

_OPSET = 17
_CPU = torch.device("cpu")


class _Plain(nn.Module):
    """Encodes an image and takes a step, of any of the models."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model
        self.kind = type(model).__name__
        self.lstm = model.first_cell.gates_size > 3 * model.first_cell.hidden
        cells = 2 if self.kind == "UpDown" else 1
        self.states = cells * (2 if self.lstm else 1)
        self.memory = (["gates"] if self.kind == "UpDown" else []) + (
            ["regions", "keys"] if model.attends else []
        )

    def cell(self, cell: LSTMCell | GRUCell, gates_BG: Tensor, state: list[Tensor]) -> list[Tensor]:
        """Return a cell's state after it has read its inputs' share of the gates."""
        hidden_BH = state[0]
        recurrent_BG = hidden_BH @ cell.recurrent.weight.T + cell.bias
        size = cell.hidden
        if not self.lstm:
            reset_BH = (gates_BG[:, :size] + recurrent_BG[:, :size]).sigmoid()
            update_BH = (gates_BG[:, size : 2 * size] + recurrent_BG[:, size : 2 * size]).sigmoid()
            inner_BH = gates_BG[:, 2 * size :] + reset_BH * recurrent_BG[:, 2 * size :]
            return [update_BH * hidden_BH + (1 - update_BH) * inner_BH.tanh()]
        gates_BG = gates_BG + recurrent_BG
        input_BH, forget_BH, output_BH = (
            gates_BG[:, i * size : (i + 1) * size].sigmoid() for i in range(3)
        )
        inner = gates_BG[:, 3 * size :]
        inner_BH = torch.maximum(inner[:, :size], inner[:, size:]) if cell.maxout else inner.tanh()
        cell_BH = forget_BH * state[1] + input_BH * inner_BH
        return [output_BH * cell_BH.tanh(), cell_BH]

    def encode(self, grid_IRC: Tensor, pooled_IC: Tensor) -> list[Tensor]:
        """Return the memory and the state before the first word."""
        model: Any = self.model
        zeros = [pooled_IC.new_zeros(1, model.first_cell.hidden)] * self.states
        gates, memory = [], []
        if model.reads_pooled:
            gates = [model.image_gates(model.pooled_embedding(pooled_IC).relu())]
        if model.attends:
            regions_IRH = model.region_embedding(grid_IRC).relu()
            memory = [regions_IRH, model.attention_key(regions_IRH)]
        if self.kind == "ShowTell":
            return self.cell(model.first_cell, gates[0], zeros)
        return [*gates, *memory, *zeros]

    def attend(self, query_BH: Tensor, regions: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the average of the regions [B, H] and their weights [B, R]."""
        model: Any = self.model
        query_BA = query_BH @ model.attention_query.weight.T
        compared_BRA = (keys + query_BA[:, None]).tanh()
        weights_BR = (compared_BRA @ model.attention_score).softmax(-1)
        return weights_BR @ regions[0], weights_BR

    def step(self, words_B: Tensor, *given: Tensor) -> list[Tensor]:
        """Read a word; return log-probabilities, the attention if there is any, and the state."""
        model: Any = self.model
        memory = dict(zip(self.memory, given, strict=False))
        state = list(given[len(memory) :])
        gates_BG = model.word_gates(model.word_embedding(words_B))
        looked: list[Tensor] = []
        if self.kind == "UpDown":
            half = self.states // 2
            second, first = state[:half], state[half:]
            written_BG = second[0] @ model.written_gates.weight.T
            first = self.cell(model.first_cell, gates_BG + memory["gates"] + written_BG, first)
            attended_BH, weights_BR = self.attend(first[0], memory["regions"], memory["keys"])
            inputs = torch.cat((attended_BH, first[0]), 1)
            second = self.cell(model.second_cell, inputs @ model.attended_gates.weight.T, second)
            state, looked = [*second, *first], [weights_BR]
        elif self.kind == "Att2in":
            attended_BH, weights_BR = self.attend(state[0], memory["regions"], memory["keys"])
            candidate = attended_BH @ model.attended_candidate.weight.T
            untouched = gates_BG.shape[1] - candidate.shape[1]
            gates_BG = torch.cat((gates_BG[:, :untouched], gates_BG[:, untouched:] + candidate), 1)
            state, looked = self.cell(model.first_cell, gates_BG, state), [weights_BR]
        else:
            state = self.cell(model.first_cell, gates_BG, state)
        return [model.output(state[0]).log_softmax(-1), *looked, *state]


class _Calls(nn.Module):
    """A module whose forward pass is one method of another."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(getattr(self.module, self.method)(*inputs))


def write_onnx(run: RunFolder, folder: Path) -> None:
    """Write a captioner's CNN and decoder to `folder`, float32, and a README with the loop.

    Raises:
        UserError: the run's files do not belong together, or the CNN here is another one than that
            whose features it was trained on.
    """
    model, vocabulary, config = load_decoder(run, run.best, _CPU)
    wanted = config["features"]
    network, found = load_network(wanted["backbone"], wanted["grid"][0], _CPU)
    if fingerprint({**found, "dtype": wanted["dtype"]}) != fingerprint(wanted):
        raise UserError(
            f"the run was trained on features of another {wanted['backbone']}: "
            f"{differences(wanted, found)}; install the version that made them"
        )
    height, width = wanted["transform"]["size"]
    plain = _Plain(model).eval()
    channels, regions = wanted["channels"], wanted["grid"][0] * wanted["grid"][1]
    grid, pooled = torch.zeros(1, regions, channels), torch.zeros(1, channels)
    states = [f"state_{i}" for i in range(plain.states)]
    following = [f"next_{name}" for name in states]
    with torch.no_grad():  # which tracing takes, and inference mode it does not
        encoded = plain.encode(grid, pooled)
    attention = ["attention"] if model.attends else []
    several = {name: {0: "captions"} for name in ("word", *states)}
    several |= {n: {0: "captions"} for n in ("log_probabilities", *attention, *following)}
    files = {
        "cnn.onnx": exported(network, (height, width)),
        "encode.onnx": _traced(
            _Calls(plain, "encode"), (grid, pooled), ["grid", "pooled"], [*plain.memory, *states]
        ),
        "step.onnx": _traced(
            _Calls(plain, "step"),
            (torch.tensor([BOS]), *encoded),
            ["word", *plain.memory, *states],
            ["log_probabilities", *attention, *following],
            several,
        ),
        "words.json": json.dumps(vocabulary.words, ensure_ascii=False, indent=0).encode(),
        "README.md": _README.format(
            width=width,
            height=height,
            interpolation=wanted["transform"]["interpolation"].upper(),
            memory=", ".join(plain.memory) or "nothing",
            bos=BOS,
            eos=EOS,
            longest=vocabulary.max_length,
        ).encode(),
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants, as they may
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


_README = """\
# The captioner as ONNX

Float32, opset 17, one picture at a time. `words.json` lists the words by their id.

| file | reads | gives |
|---|---|---|
| `cnn.onnx` | `pixels` uint8 [1, {height}, {width}, 3], the whole picture, RGB | `grid`, `pooled` |
| `encode.onnx` | `grid`, `pooled` | what a step needs of the picture ({memory}), and `state_...` |
| `step.onnx` | `word` int64 [captions], what `encode.onnx` gave | `log_probabilities` \
[captions, words], `next_state_...`, `attention` if the model attends |

A caption begins with the word {bos} and ends when {eos} is written. The first of the \
`log_probabilities` is that of {eos}, so column n is word n + {eos}: no other special word can be \
written. Several captions of a picture, as in a beam search, are rows of `word` and of the states.

This is all of it, greedily:

```python
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder = Path(sys.argv[1])
cnn, encode, step = (
    onnxruntime.InferenceSession(folder / f"{{name}}.onnx", providers=["CPUExecutionProvider"])
    for name in ("cnn", "encode", "step")
)
words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
outputs = [output.name for output in step.get_outputs()]
needed = [given.name for given in step.get_inputs() if given.name != "word"]


def caption(file):
    picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    picture = picture.resize(({width}, {height}), Image.Resampling.{interpolation})
    grid, pooled = cnn.run(None, {{"pixels": np.asarray(picture)[None]}})
    feeds = {{given.name: value for given, value in zip(encode.get_inputs(), (grid, pooled))}}
    names = [output.name for output in encode.get_outputs()]
    known = dict(zip(names, encode.run(None, feeds)))
    word, written = {bos}, []
    for _ in range({longest}):
        feeds = {{name: known[name] for name in needed}} | {{"word": np.array([word])}}
        found = dict(zip(outputs, step.run(None, feeds)))
        word = int(found["log_probabilities"][0].argmax()) + {eos}
        if word == {eos}:
            break
        written.append(words[word])
        known |= {{name[5:]: value for name, value in found.items() if name.startswith("next_")}}
    return " ".join(written)


for file in sys.argv[2:]:
    print(caption(file))
```

`python -m decoder.caption` searches with a beam instead, says no phrase twice on end, and lays
transparency on white.
"""
