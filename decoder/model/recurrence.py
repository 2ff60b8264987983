"""What runs inside the time loop, with gradients that are summed over its steps once.

Automatic differentiation would compute the gradient of a weight, or of an image's regions, anew at
every step, from the few captions of that step, and add up the results. Here each step notes on a
tape what it contributes, and one large product after the last of them does the rest. The gradients
are the same up to rounding.

The other reason for writing gradients by hand: between two products of a step stand many small
operations on memory, each as long as a few rows of a product. One function does those of a cell,
and one those of the attention, in place and on as much at a time as the processor's cache holds.

Shape suffixes as in `decoder.model.decoders`; n captions of one image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Tape:
    """What the backward passes of the steps contribute to the gradient of one tensor.

    It refers to no graph, for that would be a cycle, and the memory of a step would be freed only
    by the garbage collector.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        """For a weight: the gradient of a step's product [B, out] and its input [B, in]."""
        self.sum: Tensor | None = None
        """For a tensor with the images first: the sum of the steps' gradients."""

    def sum_like(self, tensor: Tensor) -> Tensor:
        """Return the sum, zeros at first, to be added to."""
        if self.sum is None:
            self.sum = torch.zeros_like(tensor)
        return self.sum

    def take(self) -> Tensor | None:
        """Return the gradient, and forget it."""
        if not self.pairs:
            total, self.sum = self.sum, None
            return total
        gradients, inputs = zip(*self.pairs, strict=True)
        self.pairs = []
        return torch.cat(gradients).T @ torch.cat(inputs)


class Shared:
    """A tensor that all steps read, and the tape on which their backward passes write.

    `tensor` hangs on a node that autograd visits after all steps; it returns what the tape holds.
    With an `exponent` the steps read exp(exponent * tensor), but note the gradient of `tensor`.
    """

    def __init__(self, tensor: Tensor, exponent: float | None = None) -> None:
        self.tape = Tape()
        self.tensor: Tensor = _Collect.apply(tensor, self.tape, exponent)


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, tape: Tape, exponent: float | None) -> Tensor:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        if exponent is None:
            return tensor.view_as(tensor)
        return (exponent * tensor.clamp(-_LARGEST, _LARGEST)).exp_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        noted = ctx.tape.take()
        if gradient is None or noted is None:
            return (noted if gradient is None else gradient), None, None
        return noted + gradient, None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, added: Tensor | None, inputs: Tensor, weight: Tensor, tape: Tape
    ) -> Tensor:
        inputs = inputs.to(weight.dtype)
        ctx.save_for_backward(inputs, weight)
        ctx.tape = tape
        if added is None:
            return inputs @ weight.T
        return torch.addmm(added.to(weight.dtype), inputs, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        inputs, weight = ctx.saved_tensors
        ctx.tape.pairs.append((gradient, inputs.detach()))
        return gradient if ctx.needs_input_grad[0] else None, gradient @ weight, None, None


class RecurrentLinear(nn.Module):
    """A linear map without bias that is applied at every step.

    Between `begin` and `end` its weight's gradient is summed over the steps by one product.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.uniform_(self.weight, -(inputs**-0.5), inputs**-0.5)
        self._shared: Shared | None = None

    def begin(self) -> None:
        """Start a loop over steps; under autocast its products are of lower precision."""
        if not torch.is_grad_enabled():
            return
        device = self.weight.device.type
        lower = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if lower else self.weight.dtype
        self._shared = Shared(self.weight.to(dtype))

    def end(self) -> None:
        """Leave the loop."""
        self._shared = None

    def forward(self, inputs_BH: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the product, plus `added` if there is one, [B, outputs]; of `zeros` nothing."""
        if inputs_BH.stride() == (0, 0):
            outputs = len(inputs_BH), len(self.weight)
            return inputs_BH.new_zeros(outputs) if added is None else added
        if self._shared is not None:
            return _Product.apply(added, inputs_BH, self._shared.tensor, self._shared.tape)
        if added is None:
            return F.linear(inputs_BH, self.weight)
        return torch.addmm(added, inputs_BH, self.weight.T)


class WordTable:
    """What the gates get of each word, gates.weight @ embedding[word], computed once for a word.

    That is for writing without dropout, where the same words come again and again: a product of
    each step becomes a look-up. A row is computed when its word first comes, and kept until one of
    the weights changes, or `forget` says so: torch's fused optimizers change weights unnoticed.
    Between `begin` and `end` the gradients of a word are summed first, and go through the product
    once.
    """

    def __init__(self, embedding: nn.Embedding, gates: nn.Linear) -> None:
        self._embedding, self._gates = embedding, gates
        self._of: list[tuple[int, int]] = []
        self._table_VG = self._known_V = torch.empty(0)
        self._tape: list[tuple[Tensor, Tensor]] | None = None
        self._source: Tensor | None = None

    def forget(self) -> None:
        """Compute every row anew."""
        self._of = []

    def begin(self) -> None:
        """Start a loop over steps."""
        if torch.is_grad_enabled():
            self.forget()
            self._tape = []
            weights = self._embedding.weight, self._gates.weight
            self._source = _WordGradient.apply(*weights, self._tape)

    def end(self) -> None:
        """Leave the loop."""
        self._tape = self._source = None

    @property
    def suits(self) -> bool:
        """Whether the gradient, if one is wanted, will reach the weights."""
        return self._source is not None or not torch.is_grad_enabled()

    def __call__(self, words_B: Tensor) -> Tensor:
        """Return [B, gates] for words, int64 [B]."""
        if self._source is not None:
            return _LookUp.apply(self._source, words_B, self._rows(words_B), self._tape)
        return self._rows(words_B)

    @torch.no_grad()
    def _rows(self, words_B: Tensor) -> Tensor:
        embedding_VE, gates_GE = self._embedding.weight, self._gates.weight
        now = [(weight.data_ptr(), weight._version) for weight in (embedding_VE, gates_GE)]
        if self._of != now:
            with torch.inference_mode(False):  # or it could not be filled outside that mode
                shape = len(embedding_VE), len(gates_GE)
                if self._table_VG.shape != shape:
                    self._table_VG = embedding_VE.new_empty(shape)
                self._known_V = torch.zeros(shape[0], dtype=torch.bool)
            self._of = now
        missing = words_B[~self._known_V[words_B]].unique()
        if len(missing):
            with torch.autocast(words_B.device.type, enabled=False):
                self._table_VG[missing] = embedding_VE[missing] @ gates_GE.T
            self._known_V[missing] = True
        return self._table_VG.index_select(0, words_B)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        words_B: Tensor,
        rows_BG: Tensor,
        tape: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        ctx.words_B, ctx.tape = words_B, tape
        return rows_BG.view_as(rows_BG)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BG: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.tape.append((ctx.words_B, gradient_BG))
        return gradient_BG.new_zeros(()), None, None, None


class _WordGradient(torch.autograd.Function):
    """The node that autograd visits after all look-ups, to pass on what is on their tape."""

    @staticmethod
    def forward(
        ctx: Any, embedding_VE: Tensor, gates_GE: Tensor, tape: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        ctx.save_for_backward(embedding_VE, gates_GE)
        ctx.tape = tape
        return gates_GE.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor, None]:
        embedding_VE, gates_GE = ctx.saved_tensors
        words, gradients = zip(*ctx.tape, strict=True)
        ctx.tape.clear()
        words_U, place = torch.cat(words).unique(return_inverse=True)
        sum_UG = gates_GE.new_zeros(len(words_U), len(gates_GE))
        sum_UG.index_add_(0, place, torch.cat(gradients).to(sum_UG.dtype))
        to_embedding_VE = torch.zeros_like(embedding_VE)
        to_embedding_VE[words_U] = sum_UG @ gates_GE
        return to_embedding_VE, sum_UG.T @ embedding_VE[words_U], None


def zeros(like: Tensor, rows: int, hidden: int) -> Tensor:
    """Return a state [rows, hidden] before any word: one zero, which `RecurrentLinear` skips."""
    return like.new_zeros(1, 1).expand(rows, hidden)


# Beyond this tanh is 1 in float32; products and sums of exponentials stay finite.
_LARGEST = 40.0
