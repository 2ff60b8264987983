"""Adam without torch.optim.Optimizer, which loads torch's compiler: two seconds at every start."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Adam:
    """Adam (Kingma and Ba, 2015), with the same results as torch.optim.Adam(fused=True).

    Like torch's fused optimizers, a step does not raise the version counters of the weights.

    Args:
        parameters: the weights to train; a step leaves those without a gradient unchanged.
        betas: decay of the running means of the gradient and of its square.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], betas: tuple[float, float] = (0.9, 0.98)
    ) -> None:
        self.parameters = list(parameters)
        self.betas = betas
        self._state = [
            {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            for parameter in self.parameters
        ]

    def reset(self) -> None:
        """Forget all steps; the state stays where it is in memory."""
        for tensor in self.tensors.values():
            tensor.zero_()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state, by the parameter's index and a name: what the next step needs."""
        return {
            f"{index}.{name}": tensor
            for index, state in enumerate(self._state)
            for name, tensor in state.items()
        }

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor, failed: Tensor | None = None) -> None:
        """Update the parameters by their gradients.

        Args:
            learning_rate: a number, or float32 [] on the parameters' device.
            failed: float32 [] there; where it is 1, nothing changes.
        """
        pairs = zip(self.parameters, self._state, strict=True)
        trained = [(p, p.grad, state) for p, state in pairs if p.grad is not None]
        adam(
            [parameter for parameter, _, _ in trained],
            [gradient for _, gradient, _ in trained],
            [state["exp_avg"] for _, _, state in trained],
            [state["exp_avg_sq"] for _, _, state in trained],
            [],
            [state["step"] for _, _, state in trained],
            fused=True,
            found_inf=failed,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
