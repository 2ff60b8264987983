"""The figures of a training step, which a GPU delivers while the next step is computed."""

import torch
from torch import Tensor

from decoder.data.batches import Batch
from decoder.training.objectives import Loss
from decoder.training.phases import Phase


class Figures:
    """Figures of a step and what they belong to.

    Args:
        phase: of the training.
        batch: of the step.
        loss: of all processes.
        norm: float32 [], of the gradient.
        stops: float32 [], above 0 if a process was asked to stop.
    """

    def __init__(self, phase: Phase, batch: Batch, loss: Loss, norm: Tensor, stops: Tensor) -> None:
        self.phase = phase
        self.image_ids, self.features = batch.image_ids, batch.features
        figures = [loss.loss.detach(), norm, loss.captions, stops]
        if loss.reward is not None and loss.advantage is not None:
            figures += [loss.reward, loss.advantage]
        # One transfer: reading each value separately would synchronise a GPU several times.
        self._values = torch.stack([figure.float() for figure in figures])
        self._copied: torch.cuda.Event | None = None
        if self._values.is_cuda:
            self._values = self._values.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """Return the loss, the norm, the number of captions and `stops`.

        In REINFORCE the reward and the advantage follow.
        """
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
