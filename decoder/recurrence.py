"""What runs inside the time loop, with gradients that are summed over its steps once.

Automatic differentiation would compute the gradient of a weight, or of an image's regions, anew at
every step, from the few captions of that step, and add up the results. Here each step notes on a
tape what it contributes, and one large product after the last of them does the rest. The gradients
are the same up to rounding.

Shape suffixes as in `decoder.models`; N captions of an image, J >= I images.
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

    def sum_of_first(self, images: int, like: Tensor) -> Tensor:
        """Return the part of the sum, zeros at first, of the first images, to be added to."""
        if self.sum is None:
            self.sum = torch.zeros_like(like)
        return self.sum[:images]

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
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tape = Tape()
        self.tensor: Tensor = _Collect.apply(tensor, self.tape)


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, tape: Tape) -> Tensor:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        noted = ctx.tape.take()
        if gradient is None or noted is None:
            return (noted if gradient is None else gradient), None
        return noted + gradient, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, tape: Tape) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.tape = tape
        return inputs @ weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        inputs, weight = ctx.saved_tensors
        ctx.tape.pairs.append((gradient, inputs.detach()))
        return gradient @ weight, None, None


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
        """Start a loop over steps."""
        self._shared = Shared(self.weight) if torch.is_grad_enabled() else None

    def end(self) -> None:
        """Leave the loop."""
        self._shared = None

    def forward(self, inputs_BH: Tensor) -> Tensor:
        """Return the product, [B, outputs]."""
        if self._shared is None:
            return F.linear(inputs_BH, self.weight)
        return _Product.apply(inputs_BH, self._shared.tensor, self._shared.tape)


def attention_scores(query_INA: Tensor, keys: Shared, score_A: Tensor) -> Tensor:
    """Compare each caption's query with the regions of its image: score . tanh(key + query).

    The first factor of additive attention (Bahdanau et al. 2015, section A.1.2). The tanh is
    computed again for the gradient, because keeping it for all steps is what fills the memory.

    Args:
        query_INA: of the first I of the J images.
        keys: of the regions, [J, R, A].
        score_A: what weighs the comparison.

    Returns:
        float32 [I, N, R].
    """
    return _AttentionScores.apply(query_INA, keys.tensor, score_A, keys.tape)


class _AttentionScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_INA: Tensor, keys_JRA: Tensor, score_A: Tensor, tape: Tape
    ) -> Tensor:
        ctx.save_for_backward(query_INA, keys_JRA, score_A)
        ctx.tape = tape
        return _compared(query_INA, keys_JRA) @ score_A

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_INR: Tensor) -> tuple[Tensor, None, Tensor, None]:
        query_INA, keys_JRA, score_A = ctx.saved_tensors
        compared_INRA = _compared(query_INA, keys_JRA)
        score_gradient_A = gradient_INR.flatten() @ compared_INRA.flatten(0, 2)
        # The derivative of tanh is 1 - tanh ** 2; in place, for this is the largest tensor of all.
        slope_INRA = compared_INRA.square_().neg_().add_(1).mul_(score_A)
        slope_INRA.mul_(gradient_INR[..., None])
        ctx.tape.sum_of_first(len(query_INA), keys_JRA).add_(slope_INRA.sum(1))
        return slope_INRA.sum(2), None, score_gradient_A, None


def _compared(query_INA: Tensor, keys_JRA: Tensor) -> Tensor:
    keys_IRA = keys_JRA[: len(query_INA)]
    return (keys_IRA[:, None] + query_INA[:, :, None]).tanh_()


def weighted_sum(weights_INR: Tensor, regions: Shared) -> Tensor:
    """Return the weighted sums [I, N, H] of the regions [J, R, H] of the first I images."""
    return _WeightedSum.apply(weights_INR, regions.tensor, regions.tape)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_INR: Tensor, regions_JRH: Tensor, tape: Tape) -> Tensor:
        ctx.save_for_backward(weights_INR, regions_JRH)
        ctx.tape = tape
        return weights_INR @ regions_JRH[: len(weights_INR)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_INH: Tensor) -> tuple[Tensor, None, None]:
        weights_INR, regions_JRH = ctx.saved_tensors
        images = len(weights_INR)
        total = ctx.tape.sum_of_first(images, regions_JRH)
        total.baddbmm_(weights_INR.mT, gradient_INH)
        return gradient_INH @ regions_JRH[:images].mT, None, None
