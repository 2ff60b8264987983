"""What the steps of a loop share, with gradients that are summed over the steps once.

Automatic differentiation would compute the gradient of a weight, or of an image's regions, at every
step, from the few captions of that step, and add up the results. Here the backward pass of a step
only records what it contributes, on a `Tape`. One large product after the last of them computes the
gradient, which is the same up to rounding.

Shape suffixes as in `decoder.model.decoders`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Tape:
    """What the backward passes of the steps contribute to the gradient of one tensor.

    Holds no reference to the autograd graph, which would create a reference cycle: the memory of a
    step would be freed only by the garbage collector.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        """For a weight: of each step the gradient of its product [B, out] and its input [B, in]."""
        self.sum: Tensor | None = None
        """For a tensor with the images first: the sum of the steps' gradients."""

    def sum_like(self, tensor: Tensor) -> Tensor:
        """Return the sum, to be added to in place; zeros of the shape of `tensor` at first."""
        if self.sum is None:
            self.sum = torch.zeros_like(tensor)
        return self.sum

    def pop_gradient(self) -> Tensor | None:
        """Clear the tape and return the gradient recorded so far, or None if there is none."""
        if not self.pairs:
            total, self.sum = self.sum, None
            return total
        gradients, inputs = zip(*self.pairs, strict=True)
        self.pairs = []
        return torch.cat(gradients).T @ torch.cat(inputs)


class Shared:
    """A tensor that all steps read, and the tape that collects its gradient.

    If a gradient is wanted, `tensor` is the output of an autograd node. Autograd visits that node
    after the backward passes of all steps; it then returns the gradient on the tape.

    Args:
        source: the tensor whose gradient is wanted.
        values: what the steps read, if not `source` itself: a function of it. The steps still
            record the gradient with respect to `source`.
    """

    def __init__(self, source: Tensor, values: Tensor | None = None) -> None:
        self.tape = Tape()
        read = source if values is None else values
        self.tensor: Tensor = (
            _Collect.apply(source, read, self.tape) if source.requires_grad else read
        )


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, read: Tensor, tape: Tape) -> Tensor:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return read.view_as(read)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        recorded = ctx.tape.pop_gradient()
        if gradient is None or recorded is None:
            return (recorded if gradient is None else gradient), None, None
        return recorded + gradient, None, None


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

    Between `begin_loop` and `end_loop` one product sums its weight's gradient over the steps.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self._shared: Shared | None = None

    def init_weights(self) -> None:
        """Draw the weights from the same distribution as torch's linear layer."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def begin_loop(self) -> None:
        """Start a loop over steps, whose products are of lower precision under autocast."""
        if not torch.is_grad_enabled():
            return
        device = self.weight.device.type
        lower = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if lower else self.weight.dtype
        self._shared = Shared(self.weight.to(dtype))

    def end_loop(self) -> None:
        """End the loop over steps."""
        self._shared = None

    def forward(self, inputs_BH: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the product [B, outputs], plus `added` if given; skips it for a `zero_state`."""
        if inputs_BH.stride() == (0, 0):
            outputs = len(inputs_BH), len(self.weight)
            return inputs_BH.new_zeros(outputs) if added is None else added
        if self._shared is not None:
            return _Product.apply(added, inputs_BH, self._shared.tensor, self._shared.tape)
        if added is None:
            return F.linear(inputs_BH, self.weight)
        return torch.addmm(added, inputs_BH, self.weight.T)


class WordTable:
    """A cache of what each word contributes to the gates, gates.weight @ embedding[word].

    In generation without dropout the same words come again and again, so a look-up replaces a
    product at each step. The row of a word is computed when the word first comes, and kept until
    one of the weights changes. torch notices most changes (`Tensor._version`); call `clear` after
    those that it does not, such as a step of a fused optimizer.

    Between `begin_loop` and `end_loop` the gradients of a word are summed first, and pass through
    the product once.
    """

    def __init__(self, embedding: nn.Embedding, gates: nn.Linear) -> None:
        self._embedding, self._gates = embedding, gates
        self._versions: list[tuple[int, int]] = []  # of the weights from which rows were computed
        self._table_VG = self._computed_V = torch.empty(0)
        self._tape: list[tuple[Tensor, Tensor]] | None = None
        self._source: Tensor | None = None  # the output of the node that passes on the gradient

    def clear(self) -> None:
        """Drop all rows; they are computed again when needed."""
        self._versions = []

    def begin_loop(self) -> None:
        """Start a loop over steps."""
        if torch.is_grad_enabled():
            self.clear()
            self._tape = []
            weights = self._embedding.weight, self._gates.weight
            self._source = _WordGradient.apply(*weights, self._tape)

    def end_loop(self) -> None:
        """End the loop over steps."""
        self._tape = self._source = None

    @property
    def usable(self) -> bool:
        """Whether a look-up gives what the product gives, gradients included.

        Outside a loop no gradient would reach the weights. A traced graph (ONNX) must hold the
        product, since it would hold the rows of the traced words only.
        """
        if torch.jit.is_tracing():  # type: ignore[attr-defined]  # documented, but not in __all__
            return False
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
        if self._versions != now:
            with torch.inference_mode(False):  # so that it can be filled in any mode
                shape = len(embedding_VE), len(gates_GE)
                if self._table_VG.shape != shape:
                    self._table_VG = embedding_VE.new_empty(shape)
                self._computed_V = torch.zeros(shape[0], dtype=torch.bool)
            self._versions = now
        missing = words_B[~self._computed_V[words_B]].unique()
        if len(missing):
            with torch.autocast(words_B.device.type, enabled=False):
                self._table_VG[missing] = embedding_VE[missing] @ gates_GE.T
            self._computed_V[missing] = True
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
    """The node that autograd visits after all look-ups; it passes on what is on their tape."""

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


def zero_state(like: Tensor, rows: int, hidden: int) -> Tensor:
    """Return zeros [rows, hidden] of the type and device of `like`.

    All elements share one number in memory, by which `RecurrentLinear` recognises the state and
    skips the product.
    """
    return like.new_zeros(1, 1).expand(rows, hidden)
