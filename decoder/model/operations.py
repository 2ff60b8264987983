"""The operations of a step between two products, in three implementations.

`HAND_MADE` has hand-made gradients and is the default. `PLAIN` states the formulas in plain torch
operations, so that they can be traced (ONNX). `compiled` lets torch's compiler fuse each plain
formula into one kernel and find its gradient (`--compile`). The loop over the steps and the
gradients summed after it (`decoder.model.recurrence`) are not compiled: a compiler cannot follow
them.

Importing the compiler takes two seconds, so it is imported only when something is compiled.

Shape suffixes as in `decoder.model.decoders`.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decoder.model.attention import (
    Rows,
    attend,
    image_by_image,
    plain_attend,
    plain_attend_evenly,
    plain_keys,
    shared_keys,
)
from decoder.model.gates import gru, lstm, plain_gru, plain_lstm
from decoder.model.recurrence import Shared
from features.errors import UserError, first_line


class Operations(NamedTuple):
    """The operations of a step that have more than one implementation."""

    lstm: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    """See `decoder.model.gates.plain_lstm`."""
    gru: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """See `decoder.model.gates.plain_gru`."""
    keys: Callable[[Tensor], Shared]
    """Prepares the keys [I, R, A] of the regions, once for each image, for `attend`."""
    attend: Callable[[Tensor, Shared, Shared, Tensor, Rows, Tensor | None], tuple[Tensor, Tensor]]
    """See `decoder.model.attention.attend`."""


def _plain_attend(
    query_BA: Tensor,
    keys: Shared,
    regions: Shared,
    score_A: Tensor,
    rows: Rows,
    mask_IR: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return plain_attend(query_BA, keys.tensor, regions.tensor, score_A, rows.image_B, mask_IR)


HAND_MADE = Operations(lstm, gru, shared_keys, attend)
PLAIN = Operations(plain_lstm, plain_gru, plain_keys, _plain_attend)


def compiled(device: torch.device) -> Operations:
    """Return operations fused by torch's compiler, after a test that the compiler works here.

    On a CPU the attention is not compiled: it goes image by image there.

    Raises:
        UserError: nothing can be compiled for this device here.
    """
    # It would warn CPU users that no CUDA was found.
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
    fused_lstm, fused_gru, fused_attend, fused_attend_evenly = (
        _compile(formula) for formula in (plain_lstm, plain_gru, plain_attend, plain_attend_evenly)
    )

    def lstm_step(
        gates_BG: Tensor, bias_G: Tensor, cell_BH: Tensor, maxout: bool
    ) -> tuple[Tensor, Tensor]:
        step = fused_lstm if _worth_compiling(cell_BH) else lstm
        return step(gates_BG, bias_G, cell_BH, maxout)

    def gru_step(
        inputs_BG: Tensor, recurrent_BG: Tensor, bias_G: Tensor, hidden_BH: Tensor
    ) -> Tensor:
        step = fused_gru if _worth_compiling(hidden_BH) else gru
        return step(inputs_BG, recurrent_BG, bias_G, hidden_BH)

    def attend_step(
        query_BA: Tensor,
        keys: Shared,
        regions: Shared,
        score_A: Tensor,
        rows: Rows,
        mask_IR: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if image_by_image(query_BA) or not _worth_compiling(query_BA):
            return attend(query_BA, keys, regions, score_A, rows, mask_IR)
        read = query_BA, keys.tensor, regions.tensor, score_A
        if rows.each:
            return fused_attend_evenly(*read, mask_IR)
        return fused_attend(*read, rows.image_B, mask_IR)

    return Operations(lstm_step, gru_step, shared_keys, attend_step)


def _trial(point: Tensor) -> Tensor:
    return point.sigmoid() * point


def _compile(formula: Callable[..., Any]) -> Callable[..., Any]:
    # With dynamic sizes one kernel serves every number of captions.
    return torch.compile(formula, dynamic=True)


def _worth_compiling(rows_BH: Tensor) -> bool:
    """Return whether to use the compiled kernel.

    It is used only in training, with more than one caption, and after the first step, whose state
    is all zeros. Each other case would need a kernel of its own, which takes seconds to compile;
    these cases run uncompiled.
    """
    return torch.is_grad_enabled() and len(rows_BH) > 1 and rows_BH.stride() != (0, 0)
