"""Data-parallel training: each process computes the gradient of its share of every batch.

Every process has a complete model and optimizer and takes the same steps. In each step one
all-reduce sums the gradients and the figures to report. Torch's DistributedDataParallel would gain
nothing: it overlaps communication with the backward pass, but the gradients of recurrent weights
are known only at the end of that pass (see `decoder.model.recurrence`).
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from decoder.training.objectives import Loss
from features.distributed import explain_lost_processes, world_size

Value = TypeVar("Value")


def backward(loss: Loss, model: nn.Module, idle: bool, stop: bool) -> tuple[Loss, bool]:
    """Compute the gradient of the whole batch's loss; each process has the loss of its share.

    A loss is a mean over words, so it is weighted by the process's number of words. The weighted
    sum, divided by the number of all words, is what one process would compute, up to rounding.

    Args:
        loss: of this process's images.
        model: its parameters get the gradients.
        idle: this process has no image of the batch; the one it read counts for nothing.
        stop: this process was asked to stop.

    Returns:
        The loss and its figures over all processes (the advantage is the sum of each one's
        largest), and whether any was asked to stop, so that all stop after the same step.

    Raises:
        UserError: another process stopped.
    """
    if world_size() == 1:
        loss.loss.backward()
        return loss, stop
    words = loss.words * (not idle)
    (loss.loss * words).backward()
    reward, advantage = (
        loss.loss.new_zeros(()) if value is None else value
        for value in (loss.reward, loss.advantage)
    )
    captions = loss.captions * (not idle)
    figures = torch.stack(
        [
            words,
            loss.loss.detach() * words,
            reward * captions,
            advantage * (not idle),
            words.new_tensor(captions),
            words.new_tensor(stop),
        ]
    )
    parameters = list(model.parameters())
    # Recurrent weights get no gradient from captions of one word, which may be all of a share.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([figures.to(gradients[0]), *(g.flatten() for g in gradients)])
    with explain_lost_processes():
        dist.all_reduce(flat)
    figures, flat = flat[: len(figures)], flat[len(figures) :].div_(flat[0])
    for parameter, summed in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = summed.view_as(parameter)
    all_words, all_captions = figures[0], int(figures[4])
    total = Loss(figures[1] / all_words, all_captions, all_words)
    if loss.reward is not None:
        total = total._replace(reward=figures[2] / all_captions, advantage=figures[3])
    return total, bool(figures[5] > 0)


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
