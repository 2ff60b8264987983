"""What lies between two products of a step, fused by torch's compiler: `--compile`.

Here the formulas are written plainly; the compiler finds their gradients, and makes one kernel of
the many small operations of each. The loop over the steps, and the gradients that are summed after
it, stay as `decoder.model.recurrence` has them: they are no graph that a compiler could follow.

The compiler takes two seconds to import, and is imported as the first of them is compiled.

Shape suffixes as in `decoder.model.decoders`.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decoder.model.recurrence import PLAIN, Operations, Rows, Shared, attend_at_once, image_by_image
from features.errors import UserError, first_line


def compiled(device: torch.device) -> Operations:
    """Return the operations as the compiler makes them, having seen that it works.

    On a CPU the attention is not among them: there it goes image by image.

    Raises:
        UserError: nothing can be compiled for this device here.
    """
    # It would tell CPU users of a CUDA that it does not find.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        point = torch.ones(2, device=device, requires_grad=True)
        _compile(_trial)(point).sum().backward()
    except Exception as error:  # compilers and drivers raise anything at all
        needed, advice = "a C++ compiler", "install g++"
        if device.type == "cuda":
            needed, advice = f"{needed} and Triton", f"{advice}, and Triton as torch asks for it"
        raise UserError(
            f"--compile needs {needed}, and compiling for {device.type} failed here "
            f"({first_line(getattr(error, 'inner_exception', error))}); {advice}, or leave out "
            "--compile, which changes speed and last digits only"
        ) from error
    fused_lstm, fused_gru, fused_attention = (_compile(f) for f in (lstm, gru, attend_at_once))

    def lstm_step(
        gates_BG: Tensor, bias_G: Tensor, cell_BH: Tensor, maxout: bool
    ) -> tuple[Tensor, Tensor]:
        step = fused_lstm if _one_kernel_serves(cell_BH) else PLAIN.lstm
        return step(gates_BG, bias_G, cell_BH, maxout)

    def gru_step(
        inputs_BG: Tensor, recurrent_BG: Tensor, bias_G: Tensor, hidden_BH: Tensor
    ) -> Tensor:
        step = fused_gru if _one_kernel_serves(hidden_BH) else PLAIN.gru
        return step(inputs_BG, recurrent_BG, bias_G, hidden_BH)

    def attend(
        query_BA: Tensor, keys: Shared, regions: Shared, score_A: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        if image_by_image(query_BA) or not _one_kernel_serves(query_BA):
            return PLAIN.attend(query_BA, keys, regions, score_A, rows)
        return fused_attention(query_BA, keys.tensor, regions.tensor, score_A, rows.image_B)

    return Operations(lstm_step, gru_step, attend)


def lstm(gates_BG: Tensor, bias_G: Tensor, cell_BH: Tensor, maxout: bool) -> tuple[Tensor, Tensor]:
    """Return the new hidden state and cell; see `decoder.model.recurrence.lstm`."""
    size = cell_BH.shape[1]
    input_BH, forget_BH, output_BH, *candidates = (gates_BG + bias_G).split(size, 1)
    candidate_BH = torch.maximum(*candidates) if maxout else candidates[0].tanh()
    cell_BH = forget_BH.sigmoid() * cell_BH + input_BH.sigmoid() * candidate_BH
    return output_BH.sigmoid() * cell_BH.tanh(), cell_BH


def gru(inputs_BG: Tensor, recurrent_BG: Tensor, bias_G: Tensor, hidden_BH: Tensor) -> Tensor:
    """Return the new state; see `decoder.model.recurrence.gru`."""
    size = hidden_BH.shape[1]
    reset_BH, update_BH, candidate_BH = inputs_BG.split(size, 1)
    to_reset_BH, to_update_BH, to_candidate_BH = (recurrent_BG + bias_G).split(size, 1)
    reset_BH = (reset_BH + to_reset_BH).sigmoid()
    candidate_BH = (candidate_BH + reset_BH * to_candidate_BH).tanh()
    update_BH = (update_BH + to_update_BH).sigmoid()
    return candidate_BH + update_BH * (hidden_BH - candidate_BH)


def _trial(point: Tensor) -> Tensor:
    return point.sigmoid() * point


def _compile(formula: Callable[..., Any]) -> Callable[..., Any]:
    # Sizes are symbols, or each number of captions would be compiled anew.
    return torch.compile(formula, dynamic=True)


def _one_kernel_serves(rows_BH: Tensor) -> bool:
    """Whether a gradient is wanted of several captions, after the first step.

    A single row, the zeros before any word, and writing without gradients would each be compiled
    apart, for seconds. So captions are written as they are without the option.
    """
    return torch.is_grad_enabled() and len(rows_BH) > 1 and rows_BH.stride() != (0, 0)
