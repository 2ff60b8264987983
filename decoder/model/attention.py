"""Additive attention: the formula in plain operations, and image by image for a CPU.

`plain_attend` defines what is computed, in a few large operations, which is fast on a GPU. On a CPU
`attend` computes the same with a hand-made gradient, on as much at a time as the cache holds.

Shape suffixes as in `decoder.model.decoders`; n captions of one image.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from decoder.data.layout import is_static
from decoder.model.recurrence import Shared, Tape

# Beyond this tanh is 1 in float32; products and sums of exponentials stay finite.
_LARGEST = 40.0

# How many numbers the comparison of some rows with an image's regions may hold, to stay in cache.
CACHED_NUMBERS = 200_000


class Rows(NamedTuple):
    """Which rows of the recurrent state belong to which image."""

    image_B: Tensor
    """int64, the image of each row."""
    order_B: Tensor | None
    """int64, the rows ordered by image; None if they are in that order already."""
    counts: list[int]
    """The number of rows of each image; left empty where the rows are not on a CPU."""
    each: int = 0
    """The number of rows of each image, if it is the same and they are in order; else 0."""

    @staticmethod
    def ungrouped(image_B: Tensor, images: int) -> "Rows":
        """Return the rows of `images` images, given in any order."""
        if image_B.device.type != "cpu":
            return Rows(image_B, None, [])
        order_B = image_B.argsort(stable=True)
        return Rows(image_B, order_B, image_B.bincount(minlength=images).tolist())

    @staticmethod
    def grouped(image_B: Tensor, images: int) -> "Rows":
        """Return the rows of `images` images, given in the order of the images."""
        counts = image_B.bincount(minlength=images).tolist() if image_B.is_cpu else []
        return Rows(image_B, None, counts)

    @staticmethod
    def evenly(images: int, rows: int, device: torch.device) -> "Rows":
        """Return `rows` rows in the order of the images, the same number for each image."""
        each = rows // images
        image_B = torch.arange(images, device=device).repeat_interleave(each)
        return Rows(image_B, None, [each] * images, each)


def plain_attend(
    query_BA: Tensor,
    keys_IRA: Tensor,
    regions_IRH: Tensor,
    score_A: Tensor,
    image_B: Tensor,
    mask_IR: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Average each row's regions, weighted by the softmax of score . tanh(key + query).

    Additive attention (Bahdanau et al. 2015, section A.1.2).

    Args:
        query_BA: the query of every row.
        keys_IRA: the keys of every image's regions.
        regions_IRH: the regions to average.
        score_A: the weights of the comparison.
        image_B: int64, the image of each row.
        mask_IR: bool, the regions that each image has; None if each has all of them.

    Returns:
        The averages [B, H], and the weights [B, R], detached.
    """
    compared_BRA = (keys_IRA.index_select(0, image_B) + query_BA[:, None]).tanh()
    scores_BR = compared_BRA @ score_A
    if mask_IR is not None:
        scores_BR = scores_BR.masked_fill(~mask_IR.index_select(0, image_B), -torch.inf)
    weights_BR = scores_BR.softmax(1)
    attended_BH = (weights_BR[:, None] @ regions_IRH.index_select(0, image_B)).squeeze(1)
    return attended_BH, weights_BR.detach()


def plain_attend_evenly(
    query_BA: Tensor,
    keys_IRA: Tensor,
    regions_IRH: Tensor,
    score_A: Tensor,
    mask_IR: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `plain_attend` where each image has the same number of rows, in order.

    Keys and regions are read where they are, not copied for every row.
    """
    query_InA = query_BA.unflatten(0, (len(keys_IRA), -1))
    scores_InR = (keys_IRA[:, None] + query_InA[:, :, None]).tanh() @ score_A
    if mask_IR is not None:
        scores_InR = scores_InR.masked_fill(~mask_IR[:, None], -torch.inf)
    weights_InR = scores_InR.softmax(2)
    return (weights_InR @ regions_IRH).flatten(0, 1), weights_InR.detach().flatten(0, 1)


def attend(
    query_BA: Tensor,
    keys: Shared,
    regions: Shared,
    score_A: Tensor,
    rows: Rows,
    mask_IR: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `plain_attend`, on a CPU image by image and with a hand-made gradient.

    The tanh of every channel of every region takes most of the time, and keeping it for all steps
    would fill the memory. So it is computed again for the gradient, and as

        tanh(k + q) = 1 - 2 r,    r = exp(-2 k) / (exp(-2 k) + exp(2 q)).

    The exponentials are computed once for each key and each query, which leaves one division. The
    constant 1 is equal for all regions, so it drops out of the softmax.

    Args:
        query_BA: the query of every row.
        keys: from `shared_keys`.
        regions: from `shared_regions`.
        score_A: the weights of the comparison.
        rows: the rows of each image.
        mask_IR: bool, the regions that each image has; None if each has all of them.

    Returns:
        The averages [B, H], and the weights [B, R], which carry no gradient.
    """
    if not image_by_image(query_BA):
        read = query_BA, keys.tensor, regions.tensor, score_A
        if rows.each:
            return plain_attend_evenly(*read, mask_IR)
        return plain_attend(*read, rows.image_B, mask_IR)
    return _Attend.apply(
        query_BA.to(score_A.dtype),
        keys.tensor,
        regions.tensor,
        score_A,
        keys.tape,
        regions.tape,
        rows,
        mask_IR,
    )


def image_by_image(tensor: Tensor) -> bool:
    """Return whether `attend` goes image by image: it does on a CPU."""
    return tensor.device.type == "cpu" and not is_static(tensor.device)


def shared_regions(regions_IRH: Tensor) -> Shared:
    """Return the regions as both ways to attend read them."""
    return Shared(_at_least_float32(regions_IRH))


def shared_keys(keys_IRA: Tensor) -> Shared:
    """Return the keys as `attend` reads them: exp(-2 key) where it goes image by image."""
    keys_IRA = _at_least_float32(keys_IRA)
    if not image_by_image(keys_IRA):
        return Shared(keys_IRA)
    return Shared(keys_IRA, (-2 * keys_IRA.detach().clamp(-_LARGEST, _LARGEST)).exp_())


def plain_keys(keys_IRA: Tensor) -> Shared:
    """Return the keys as `plain_attend` reads them: the keys themselves."""
    return Shared(_at_least_float32(keys_IRA))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


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
        mask_IR: Tensor | None,
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
        if mask_IR is not None:
            image_B = rows.image_B if rows.order_B is None else rows.image_B[rows.order_B]
            scores_BR.masked_fill_(~mask_IR[image_B], -torch.inf)
        weights_BR = scores_BR.softmax(1)
        for weights_nR, regions_RH, attended_nH in zip(
            weights_BR.split(pieces.sizes),
            pieces.of_each(regions_IRH),
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
            pieces.of_each(regions_IRH.mT),
            pieces.of_each(regions_sum_IRH),
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
            pieces.of_each(keys_sum_IRA),
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
        return to_query_BA, None, None, to_score_A.mul_(-2), None, None, None, None


class _Pieces(NamedTuple):
    """Rows cut into pieces, each of one image only and small enough for the cache."""

    images: list[int]
    """The image of each piece."""
    sizes: list[int]
    """The number of rows of each piece."""

    def of_each(self, tensor: Tensor) -> list[Tensor]:
        """Return, for each piece, its image's part of a tensor with the images first."""
        parts = tensor.unbind()
        return [parts[image] for image in self.images]


def _pieces(rows: Rows, numbers: int) -> _Pieces:
    """Cut the rows into pieces; the comparison of one row with its image has `numbers` numbers."""
    most = max(1, CACHED_NUMBERS // numbers)
    pairs = [
        (image, min(most, count - first))
        for image, count in enumerate(rows.counts)
        for first in range(0, count, most)
    ]
    return _Pieces([image for image, _ in pairs], [size for _, size in pairs])


def _compared(query_BA: Tensor, keys_IRA: Tensor, pieces: _Pieces) -> Iterator[Tensor]:
    """Yield r [n, R, A] of each piece, always in the same memory."""
    place = query_BA.new_empty(max(pieces.sizes), *keys_IRA.shape[1:])
    queries = query_BA[:, None].split(pieces.sizes)
    for query_n1A, keys_RA in zip(queries, pieces.of_each(keys_IRA), strict=True):
        r_nRA = place[: len(query_n1A)]
        torch.add(keys_RA, query_n1A, out=r_nRA)
        yield torch.div(keys_RA, r_nRA, out=r_nRA)
