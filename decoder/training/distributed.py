"""Data-parallel training: each process computes the gradient of its share of every batch.

Every process has a complete model and optimizer and takes the same steps. In each step one
all-reduce sums the gradients and the figures to report. Torch's DistributedDataParallel would gain
nothing: it overlaps communication with the backward pass, but the gradients of recurrent weights
are known only at the end of that pass (see `decoder.model.recurrence`).
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from decoder.data.layout import is_static
from decoder.training.objectives import Loss
from features.distributed import explain_lost_processes, world_size

Value = TypeVar("Value")


def share(loss: Loss) -> Tensor:
    """Return what a process differentiates, so that the sum over processes is that of all words.

    A loss is a mean over words, so it is weighted by the process's number of words.
    """
    return loss.loss if world_size() == 1 else loss.loss * loss.words


@torch.no_grad()
def take_from_first(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the weights of every process by those of the first.

    Each made its own, and another processor or number of threads rounds otherwise.

    Raises:
        UserError: another process stopped.
    """
    if world_size() == 1:
        return
    weights = list(parameters)
    flat = torch.cat([weight.flatten() for weight in weights])
    with explain_lost_processes():
        dist.broadcast(flat, src=0)
    for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.copy_(part.view_as(weight))


def sum_over_processes(
    loss: Loss, parameters: Sequence[nn.Parameter], stop: bool
) -> tuple[Loss, Tensor]:
    """Compute gradient and figures of the whole batch from those of each process's share.

    The sum of gradients, divided by the number of all words, is what one process would compute, up
    to rounding.

    Args:
        loss: of this process's images.
        parameters: they have the gradients of `share`, and get those of the whole batch.
        stop: this process was asked to stop.

    Returns:
        The loss and its figures over all processes (the advantage is the sum of each one's
        largest), and whether any was asked to stop, so that all stop after the same step.

    Raises:
        UserError: another process stopped.
    """
    stops = torch.full_like(loss.loss, stop)
    if world_size() == 1:
        return loss, stops
    reward, advantage = (
        torch.zeros_like(stops) if value is None else value
        for value in (loss.reward, loss.advantage)
    )
    captions = loss.captions
    figures = [loss.words, loss.loss.detach() * loss.words, captions, stops, reward * captions]
    # Recurrent weights get no gradient from captions of one word, which may be all of a share.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = torch.cat(
        [torch.stack([*figures, advantage]).to(gradients[0]), *(g.flatten() for g in gradients)]
    )
    with explain_lost_processes():
        dist.all_reduce(summed)
    words, total, captions, stops, reward, advantage = summed[:6]
    flat = summed[6:].div_(words)
    for parameter, part in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        if is_static(part.device) and parameter.grad is not None:
            parameter.grad.copy_(part.view_as(parameter))  # where a CUDA graph reads it
        else:
            parameter.grad = part.view_as(parameter)
    result = Loss(total / words, captions, words)
    if loss.reward is not None:
        result = result._replace(reward=reward / captions, advantage=advantage)
    return result, stops


def gather(values: list[Value]) -> list[Value]:
    """Return the values of all processes in turn: the first of each, the second of each, ...

    A process has as many values as the one before it, or one fewer.

    Raises:
        UserError: another process stopped.
    """
    if world_size() == 1:
        return values
    by_rank: list[list[Value]] = [[] for _ in range(world_size())]
    with explain_lost_processes():
        dist.all_gather_object(by_rank, values)
    return [own[i] for i in range(len(by_rank[0])) for own in by_rank if i < len(own)]
