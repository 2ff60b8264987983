"""Training steps of fixed shapes, for GPUs: as CUDA graphs where these can be captured.

A step is two graphs: the loss and the gradients of a batch, one for each phase and shape, and the
update of the weights. Between them processes add up their gradients. Random numbers follow from the
seed that is set before a replay, as they do without graphs.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from decoder.data.batches import Batch, Features
from decoder.data.layout import captions_in_slots, captions_of_a_slot, images_in_slots
from decoder.model.capture import Graphs
from decoder.training import distributed
from decoder.training.objectives import Loss
from decoder.training.phases import Phase, ReinforcePhase
from decoder.training.state import TrainingState
from features.distributed import world_size


class FixedSteps:
    """Computes the two parts of a training step.

    Gradients have a fixed place, the `grad` of each weight.

    Args:
        state: the training.
        graphs: runs both parts.
        images: largest number of images in a batch of all processes.
        counts: number of captions of each training image.
        longest: largest number of words in a caption, EOS included.
        precision: of matrix products: "float32", "tf32" or "bfloat16".
        clip: largest norm of the gradient.
    """

    def __init__(
        self,
        state: TrainingState,
        graphs: Graphs,
        images: int,
        counts: Iterable[int],
        longest: int,
        precision: str,
        clip: float,
    ) -> None:
        self._state = state
        self._graphs = graphs
        self._images = -(-images // world_size())
        self._each = captions_of_a_slot(counts)
        self._longest = longest
        self._precision = precision
        self._clip = clip
        parameters = state.optimizer.parameters
        self._gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, gradient in zip(parameters, self._gradients, strict=True):
            parameter.grad = gradient
        # Numbers would be frozen in a graph.
        self._rate, self._share = (torch.zeros((), device=state.failed.device) for _ in range(2))

    def gradients(self, phase: Phase, batch: Batch, step: int) -> Loss:
        """Compute the gradients of a batch, and return its loss; both of this process's share.

        Args:
            phase: of the training.
            batch: with its features on the device.
            step: of the phase.
        """
        model, device = self._state.model, self._state.failed.device
        lower = self._precision == "bfloat16"

        def function(step: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            with _tf32(self._precision == "tf32" and device.type == "cuda"):
                # A weight that autocast keeps in lower precision would be that of the capture.
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=lower, cache_enabled=False
                ):
                    loss = phase.loss(model, _batch_of(*tensors), step)
                parameters = self._state.optimizer.parameters
                share = distributed.share(loss)
                found = torch.autograd.grad(share, parameters, materialize_grads=True)
            torch._foreach_copy_(self._gradients, found)
            return tuple(figure.detach() for figure in loss if figure is not None)

        inputs = [torch.full((), step, device=device), *_tensors_of(self._in_slots(phase, batch))]
        if isinstance(phase, ReinforcePhase) and not phase.scores_on_device:
            return Loss(*function(*inputs))
        return Loss(*self._graphs.run(phase.name, function, inputs, self._gradients))

    def update(self, loss: Tensor, learning_rate: float, decay: float) -> Tensor:
        """Update the weights by their gradients; see `TrainingState.update`."""
        state = self._state
        self._rate.fill_(learning_rate)
        self._share.fill_(1 - decay)

        def function(loss: Tensor) -> tuple[Tensor, ...]:
            return (state.update(loss, self._clip, self._rate, self._share),)

        changed = [*self._gradients, *state.tensors().values(), state.failed]
        return self._graphs.run("update", function, [loss], changed)[0]

    def _in_slots(self, phase: Phase, batch: Batch) -> Batch:
        """Return a batch in one of few shapes; for REINFORCE see `ReinforcePhase.loss`."""
        if isinstance(phase, ReinforcePhase):
            slots = images_in_slots(batch, self._images)
            if not phase.scores_on_device:
                return slots
            rows = phase.reward.references.rows(slots.image_ids, self._state.failed.device)
            return slots._replace(image_ids=rows)
        return captions_in_slots(batch, self._images, self._each, self._longest)


def _tensors_of(batch: Batch) -> list[Tensor]:
    own = batch.image_ids, batch.tokens_BT, batch.image_B, batch.real_I
    return [tensor for tensor in (*own, *batch.features) if tensor is not None]


def _batch_of(
    image_ids: Tensor, tokens_BT: Tensor, image_B: Tensor, real_I: Tensor, *features: Tensor
) -> Batch:
    return Batch(image_ids, Features(*features), tokens_BT, image_B, real_I=real_I)


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Let matrix products of float32 round their factors to the 10 bits of TF32, if wanted."""
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if wanted:
            torch.set_float32_matmul_precision(before)
