"""Additive attention: image by image on a CPU, in a few large operations on a GPU.

Shape suffixes as in `decoder.model.decoders`; n captions of one image.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from decoder.model.recurrence import _LARGEST, Shared, Tape


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
