"""One training in several processes: each has its share of the images of every batch.

Nothing is divided but the images. Every process has the whole model and optimizer, and takes the
same steps; what a step adds up over the processes is its gradient, and the figures that go with it.
Torch's DistributedDataParallel would start adding up while the backward pass still runs; here it
could not, for the gradients of recurrent weights are known only at the end of it (see
`decoder.model.recurrence`). One sum of one tensor does the same and needs no wrapper around the
model.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from decoder.training.objectives import Loss
from features.distributed import lost_processes_named, world_size

Value = TypeVar("Value")


def backward(loss: Loss, model: nn.Module, idle: bool, stop: bool) -> tuple[Loss, bool]:
    """Compute the gradient of the loss of the whole batch, from this process's share of it.

    A loss is a mean over words, so each process's counts as often as it has words. Then the sums of
    both, divided, are what one process would compute from the whole batch, up to rounding.

    Args:
        loss: of this process's images.
        model: whose parameters' gradients are set.
        idle: this process has no image of the batch, and read another only to have something to do.
        stop: this process was asked to stop.

    Returns:
        The loss and its figures over all processes (the advantage is the sum of the largest of
        each), and whether any was asked to stop, so that all do so after the same step.

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
    # Captions of a single word, which another process may not have, teach no recurrent weight.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([figures.to(gradients[0]), *(g.flatten() for g in gradients)])
    with lost_processes_named():
        dist.all_reduce(flat)
    figures, flat = flat[: len(figures)], flat[len(figures) :].div_(flat[0])
    for parameter, summed in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = summed.view_as(parameter)
    of_all, captions_of_all = figures[0], int(figures[4])
    whole = Loss(figures[1] / of_all, captions_of_all, of_all)
    if loss.reward is not None:
        whole = whole._replace(reward=figures[2] / captions_of_all, advantage=figures[3])
    return whole, bool(figures[5] > 0)


def gather(values: list[Value]) -> list[Value]:
    """Return the values of all processes in turns: the first of each, the second of each, ...

    A process has as many as the one before it, or one less.

    Raises:
        UserError: another process stopped.
    """
    if world_size() == 1:
        return values
    each: list[list[Value]] = [[] for _ in range(world_size())]
    with lost_processes_named():
        dist.all_gather_object(each, values)
    return [several[i] for i in range(len(each[0])) for several in each if i < len(several)]
