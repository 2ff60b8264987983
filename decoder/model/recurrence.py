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

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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


def lstm(gates_BG: Tensor, bias_G: Tensor, cell_BH: Tensor, maxout: bool) -> tuple[Tensor, Tensor]:
    """Return the new hidden state and cell of an LSTM; gates: input, forget, output, candidate.

    With `maxout` the candidate is the larger of its two halves instead of a tanh.
    """
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


def gru(inputs_BG: Tensor, recurrent_BG: Tensor, bias_G: Tensor, hidden_BH: Tensor) -> Tensor:
    """Return the new state of a GRU; gates: reset, update, candidate.

    The bias and the reset gate belong to the recurrent share.
    """
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


class Rows(NamedTuple):
    """Which rows of the recurrent state belong to which image."""

    image_B: Tensor
    """int64, the image of each row."""
    order_B: Tensor | None
    """int64, the rows image by image; None if they stand so already."""
    counts: list[int]
    """How many rows each image has; not counted where the tensors are not on a CPU."""

    @staticmethod
    def of(image_B: Tensor, images: int) -> "Rows":
        """Return the rows of images given in any order."""
        if image_B.device.type != "cpu":
            return Rows(image_B, None, [])
        order_B = image_B.argsort(stable=True)
        return Rows(image_B, order_B, image_B.bincount(minlength=images).tolist())

    @staticmethod
    def in_order(image_B: Tensor, images: int) -> "Rows":
        """Return the rows of images that stand together, image by image."""
        counts = image_B.bincount(minlength=images).tolist() if image_B.is_cpu else []
        return Rows(image_B, None, counts)

    @staticmethod
    def together(images: int, rows: int, device: torch.device) -> "Rows":
        """Return as many rows for each image, which stand together."""
        each = rows // images
        image_B = torch.arange(images, device=device).repeat_interleave(each)
        return Rows(image_B, None, [each] * images)


def regions_of(tensor_IRH: Tensor) -> Shared:
    """Return the regions as `attend` averages them."""
    return Shared(_at_least_float32(tensor_IRH))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def keys_of(tensor_IRA: Tensor) -> Shared:
    """Return what `attend` compares queries with: exp(-2 key) where it goes image by image."""
    exponent = -2 if image_by_image(tensor_IRA) else None
    return Shared(_at_least_float32(tensor_IRA), exponent)


def attend(
    query_BA: Tensor, keys: Shared, regions: Shared, score_A: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    """Average each row's regions, weighted by the softmax of score . tanh(key + query).

    Additive attention (Bahdanau et al. 2015, section A.1.2), image by image. Most of its time goes
    into the tanh of every channel of every region, and keeping that for all steps would fill the
    memory; so it is computed again for the gradient, and as

        tanh(k + q) = 1 - 2 r,    r = exp(-2 k) / (exp(-2 k) + exp(2 q)),

    whose exponentials are computed once for each key and each query, so that a division is left.
    The constant, equal for all regions, drops out of the softmax.

    Args:
        query_BA: of every caption.
        keys: of the regions of every image, [I, R, A], as `keys_of` gives them.
        regions: what is averaged, [I, R, H].
        score_A: what weighs the comparison.
        rows: the captions of each image.

    Returns:
        The averages [B, H], and the weights [B, R], through which no gradient goes.
    """
    if not image_by_image(query_BA):
        return attend_at_once(query_BA, keys.tensor, regions.tensor, score_A, rows.image_B)
    return _Attend.apply(
        query_BA.to(score_A.dtype),
        keys.tensor,
        regions.tensor,
        score_A,
        keys.tape,
        regions.tape,
        rows,
    )


def image_by_image(tensor: Tensor) -> bool:
    """Whether attention goes image by image: it does on a CPU."""
    return tensor.device.type == "cpu"


class Operations(NamedTuple):
    """The functions of a step that have gradients of their own; `decoder.model.operations` has
    others.
    """

    lstm: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    gru: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    attend: Callable[[Tensor, Shared, Shared, Tensor, Rows], tuple[Tensor, Tensor]]


PLAIN = Operations(lstm, gru, attend)


def attend_at_once(
    query_BA: Tensor, keys_IRA: Tensor, regions_IRH: Tensor, score_A: Tensor, image_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Do the same in few large operations, which suits a GPU, and leave the gradient to torch.

    `keys_IRA` are the keys themselves; otherwise arguments and results are those of `attend`.
    """
    compared_BRA = (keys_IRA.index_select(0, image_B) + query_BA[:, None]).tanh()
    weights_BR = (compared_BRA @ score_A).softmax(1)
    attended_BH = (weights_BR[:, None] @ regions_IRH.index_select(0, image_B)).squeeze(1)
    return attended_BH, weights_BR.detach()


# Beyond this tanh is 1 in float32; products and sums of exponentials stay finite.
_LARGEST = 40.0
# Numbers that the comparison of some rows with an image's regions may hold: what a cache holds.
_CACHED = 200_000


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BA: Tensor,
        keys_IRA: Tensor,
        regions_IRH: Tensor,
        score_A: Tensor,
        keys_tape: Tape,
        regions_tape: Tape,
        rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        query_BA = query_BA if rows.order_B is None else query_BA[rows.order_B]
        query_BA = (2 * query_BA.clamp(-_LARGEST, _LARGEST)).exp_()
        pieces = _pieces(rows, keys_IRA[0].numel())
        scores_BR = query_BA.new_empty(len(query_BA), keys_IRA.shape[1])
        attended_BH = query_BA.new_empty(len(query_BA), regions_IRH.shape[2])
        factor_A = -2 * score_A
        compared = _compared(query_BA, keys_IRA, pieces)
        for scores_nR, r_nRA in zip(scores_BR.split(pieces.sizes), compared, strict=True):
            torch.matmul(r_nRA, factor_A, out=scores_nR)
        weights_BR = scores_BR.softmax(1)
        for weights_nR, regions_RH, attended_nH in zip(
            weights_BR.split(pieces.sizes),
            pieces.of(regions_IRH),
            attended_BH.split(pieces.sizes),
            strict=True,
        ):
            torch.mm(weights_nR, regions_RH, out=attended_nH)
        ctx.save_for_backward(query_BA, keys_IRA, regions_IRH, score_A, weights_BR)
        ctx.tapes, ctx.rows, ctx.pieces = (keys_tape, regions_tape), rows, pieces
        if rows.order_B is not None:
            attended_BH = torch.empty_like(attended_BH).index_copy_(0, rows.order_B, attended_BH)
            weights_BR = torch.empty_like(weights_BR).index_copy_(0, rows.order_B, weights_BR)
        ctx.mark_non_differentiable(weights_BR)
        return attended_BH, weights_BR

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BH: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        query_BA, keys_IRA, regions_IRH, score_A, weights_BR = ctx.saved_tensors
        rows, pieces = ctx.rows, ctx.pieces
        keys_sum_IRA, regions_sum_IRH = (
            tape.sum_like(tensor)
            for tape, tensor in zip(ctx.tapes, (keys_IRA, regions_IRH), strict=True)
        )
        gradient_BH = gradient_BH if rows.order_B is None else gradient_BH[rows.order_B]
        scores_BR = torch.empty_like(weights_BR)
        for gradient_nH, weights_Rn, regions_HR, sum_RH, scores_nR in zip(
            gradient_BH.split(pieces.sizes),
            weights_BR.T.split(pieces.sizes, 1),
            pieces.of(regions_IRH.mT),
            pieces.of(regions_sum_IRH),
            scores_BR.split(pieces.sizes),
            strict=True,
        ):
            sum_RH.addmm_(weights_Rn, gradient_nH)
            torch.mm(gradient_nH, regions_HR, out=scores_nR)
        scores_BR.mul_(weights_BR)
        scores_BR -= weights_BR * scores_BR.sum(1, keepdim=True)

        to_query_BA, to_score_A = torch.empty_like(query_BA), torch.zeros_like(score_A)
        # The derivative of tanh is 4 r (1 - r).
        factor_A = 4 * score_A
        for scores_nR1, to_query_nA, sum_RA, r_nRA in zip(
            scores_BR[:, :, None].split(pieces.sizes),
            to_query_BA.split(pieces.sizes),
            pieces.of(keys_sum_IRA),
            _compared(query_BA, keys_IRA, pieces),
            strict=True,
        ):
            to_score_A.addmv_(r_nRA.flatten(0, 1).T, scores_nR1.flatten())
            r_nRA.addcmul_(r_nRA, r_nRA, value=-1).mul_(scores_nR1)
            torch.sum(r_nRA, 1, out=to_query_nA)
            sum_RA.addcmul_(r_nRA.sum(0), factor_A)
        to_query_BA *= factor_A
        if rows.order_B is not None:
            to_query_BA = torch.empty_like(to_query_BA).index_copy_(0, rows.order_B, to_query_BA)
        return to_query_BA, None, None, to_score_A.mul_(-2), None, None, None


class _Pieces(NamedTuple):
    """Rows that are compared at once: all of one image, and not too many."""

    images: list[int]
    sizes: list[int]

    def of(self, tensor: Tensor) -> list[Tensor]:
        """Return the image of each piece from a tensor with the images first."""
        each = tensor.unbind()
        return [each[image] for image in self.images]


def _pieces(rows: Rows, numbers: int) -> _Pieces:
    """Divide rows, each of which is compared with so many numbers of its image."""
    most = max(1, _CACHED // numbers)
    pairs = [
        (image, min(most, count - first))
        for image, count in enumerate(rows.counts)
        for first in range(0, count, most)
    ]
    return _Pieces([image for image, _ in pairs], [size for _, size in pairs])


def _compared(query_BA: Tensor, keys_IRA: Tensor, pieces: _Pieces) -> Iterator[Tensor]:
    """Yield r [n, R, A] of each piece, in memory that is used again."""
    place = query_BA.new_empty(max(pieces.sizes), *keys_IRA.shape[1:])
    queries = query_BA[:, None].split(pieces.sizes)
    for query_n1A, keys_RA in zip(queries, pieces.of(keys_IRA), strict=True):
        r_nRA = place[: len(query_n1A)]
        torch.add(keys_RA, query_n1A, out=r_nRA)
        yield torch.div(keys_RA, r_nRA, out=r_nRA)
