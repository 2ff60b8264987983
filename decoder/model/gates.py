"""The formulas of the LSTM and the GRU: in plain operations, and with hand-made gradients.

`plain_lstm` and `plain_gru` define what is computed. `lstm` and `gru` compute the same faster, in
place and with gradients of their own; a test compares the two.

Shape suffixes as in `decoder.model.decoders`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def plain_lstm(
    gates_BG: Tensor, bias_G: Tensor, cell_BH: Tensor, maxout: bool
) -> tuple[Tensor, Tensor]:
    """Return the new hidden state and cell of an LSTM, both [B, H].

    Args:
        gates_BG: the sum of all inputs to the gates, in the order input, forget, output, candidate.
        bias_G: added to `gates_BG`.
        cell_BH: the old cell.
        maxout: whether the candidate is the elementwise maximum of two halves of its inputs, rather
            than a tanh.
    """
    size = cell_BH.shape[1]
    input_BH, forget_BH, output_BH, *candidates = (gates_BG + bias_G).split(size, 1)
    candidate_BH = torch.maximum(*candidates) if maxout else candidates[0].tanh()
    cell_BH = forget_BH.sigmoid() * cell_BH + input_BH.sigmoid() * candidate_BH
    return output_BH.sigmoid() * cell_BH.tanh(), cell_BH


def lstm(gates_BG: Tensor, bias_G: Tensor, cell_BH: Tensor, maxout: bool) -> tuple[Tensor, Tensor]:
    """Compute `plain_lstm` with a hand-made gradient."""
    return _LSTM.apply(gates_BG, bias_G, cell_BH, maxout)


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gates_BG: Tensor, bias_G: Tensor, old_BH: Tensor, maxout: bool
    ) -> tuple[Tensor, Tensor]:
        hidden = old_BH.shape[1]
        gates_BG = gates_BG + bias_G
        gates_BG[:, : 3 * hidden].sigmoid_()
        if not maxout:
            gates_BG[:, 3 * hidden :].tanh_()
        input_BH, forget_BH, output_BH, candidate_BH = _parts(gates_BG, hidden, maxout)
        cell_BH = (forget_BH * old_BH).addcmul_(input_BH, candidate_BH)
        tanh_BH = cell_BH.tanh()
        ctx.save_for_backward(gates_BG, old_BH, tanh_BH)
        ctx.maxout = maxout
        return output_BH * tanh_BH, cell_BH

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, hidden_gradient: Tensor, cell_gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        gates_BG, old_BH, tanh_BH = ctx.saved_tensors
        size = old_BH.shape[1]
        input_BH, forget_BH, output_BH, candidate_BH = _parts(gates_BG, size, ctx.maxout)
        through_BH = hidden_gradient * output_BH
        through_BH = through_BH.addcmul_(through_BH * tanh_BH, tanh_BH, value=-1)
        through_BH.add_(cell_gradient)

        gradient_BG = torch.empty_like(gates_BG)
        torch.mul(through_BH, candidate_BH, out=gradient_BG[:, :size])
        torch.mul(through_BH, old_BH, out=gradient_BG[:, size : 2 * size])
        torch.mul(hidden_gradient, tanh_BH, out=gradient_BG[:, 2 * size : 3 * size])
        open_BG = gates_BG[:, : 3 * size]
        gradient_BG[:, : 3 * size].mul_(open_BG).mul_(1 - open_BG)
        to_candidate = torch.mul(through_BH, input_BH, out=gradient_BG[:, 3 * size : 4 * size])
        if ctx.maxout:
            first, second = gates_BG[:, 3 * size :].chunk(2, dim=1)
            torch.mul(to_candidate, first < second, out=gradient_BG[:, 4 * size :])
            to_candidate.mul_(first >= second)
        else:
            to_candidate.addcmul_(to_candidate * candidate_BH, candidate_BH, value=-1)
        return gradient_BG, gradient_BG.sum(0), through_BH.mul_(forget_BH), None


def _parts(gates_BG: Tensor, hidden: int, maxout: bool) -> tuple[Tensor, ...]:
    """Return the three gates and the candidate of an LSTM."""
    candidate = gates_BG[:, 3 * hidden :]
    candidate_BH = torch.maximum(*candidate.chunk(2, 1)) if maxout else candidate
    return (*gates_BG[:, : 3 * hidden].chunk(3, 1), candidate_BH)


def plain_gru(inputs_BG: Tensor, recurrent_BG: Tensor, bias_G: Tensor, hidden_BH: Tensor) -> Tensor:
    """Return the new state of a GRU, [B, H].

    Args:
        inputs_BG: what the inputs contribute to the gates, in the order reset, update, candidate.
        recurrent_BG: what the old state contributes; the reset gate applies to this part only.
        bias_G: added to `recurrent_BG`.
        hidden_BH: the old state.
    """
    size = hidden_BH.shape[1]
    reset_BH, update_BH, candidate_BH = inputs_BG.split(size, 1)
    to_reset_BH, to_update_BH, to_candidate_BH = (recurrent_BG + bias_G).split(size, 1)
    reset_BH = (reset_BH + to_reset_BH).sigmoid()
    candidate_BH = (candidate_BH + reset_BH * to_candidate_BH).tanh()
    update_BH = (update_BH + to_update_BH).sigmoid()
    return candidate_BH + update_BH * (hidden_BH - candidate_BH)


def gru(inputs_BG: Tensor, recurrent_BG: Tensor, bias_G: Tensor, hidden_BH: Tensor) -> Tensor:
    """Compute `plain_gru` with a hand-made gradient."""
    return _GRU.apply(inputs_BG, recurrent_BG, bias_G, hidden_BH)


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs_BG: Tensor, recurrent_BG: Tensor, bias_G: Tensor, old_BH: Tensor
    ) -> Tensor:
        size = old_BH.shape[1]
        gates_BG = recurrent_BG + bias_G
        recurrent_BH = gates_BG[:, 2 * size :].clone()
        gates_BG[:, : 2 * size].add_(inputs_BG[:, : 2 * size]).sigmoid_()
        reset_BH, update_BH, candidate_BH = gates_BG.chunk(3, dim=1)
        candidate_BH.mul_(reset_BH).add_(inputs_BG[:, 2 * size :]).tanh_()
        ctx.save_for_backward(gates_BG, recurrent_BH, old_BH)
        return torch.lerp(candidate_BH, old_BH, update_BH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BH: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gates_BG, recurrent_BH, old_BH = ctx.saved_tensors
        size = old_BH.shape[1]
        reset_BH, update_BH, candidate_BH = gates_BG.chunk(3, dim=1)
        to_inputs_BG = torch.empty_like(gates_BG)
        to_reset, to_update, to_candidate = to_inputs_BG.chunk(3, dim=1)
        kept_BH = gradient_BH * update_BH
        torch.sub(gradient_BH, kept_BH, out=to_candidate)
        torch.mul(to_candidate, old_BH - candidate_BH, out=to_update)
        to_update.mul_(update_BH)
        to_candidate.addcmul_(to_candidate * candidate_BH, candidate_BH, value=-1)
        torch.mul(to_candidate, recurrent_BH, out=to_reset)
        to_reset.mul_(reset_BH).mul_(1 - reset_BH)
        to_recurrent_BG = to_inputs_BG.clone()
        to_recurrent_BG[:, 2 * size :].mul_(reset_BH)
        return to_inputs_BG, to_recurrent_BG, to_recurrent_BG.sum(0), kept_BH
