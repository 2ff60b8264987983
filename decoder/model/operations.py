"""What lies between two products of a step: as it is, or fused by torch's compiler (`--compile`).

To be fused, the formulas are written plainly; the compiler finds their gradients, and makes one
kernel of the many small operations of each. The loop over the steps, and the gradients that are
summed after it, stay as `decoder.model.recurrence` has them: they are no graph that a compiler
could follow.

The compiler takes two seconds to import, and is imported as the first of them is compiled.

Shape suffixes as in `decoder.model.decoders`.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decoder.model.attention import Rows, attend, attend_at_once, image_by_image
from decoder.model.gates import gru, lstm, plain_gru, plain_lstm
from decoder.model.recurrence import Shared
from features.errors import UserError, first_line


class Operations(NamedTuple):
    """The functions of a step that have gradients of their own."""

    lstm: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    gru: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    attend: Callable[[Tensor, Shared, Shared, Tensor, Rows], tuple[Tensor, Tensor]]


PLAIN = Operations(lstm, gru, attend)


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
    fused_lstm, fused_gru, fused_attention = (
        _compile(f) for f in (plain_lstm, plain_gru, attend_at_once)
    )

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
