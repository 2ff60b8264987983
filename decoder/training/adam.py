"""Adam without torch's compiler, which torch.optim.Adam imports: two seconds of every start."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Adam:
    """Adam (Kingma and Ba, 2015): the numbers of torch.optim.Adam, in one pass over the weights.

    A step changes the weights without raising their version, as torch's fused optimizers do.

    Args:
        parameters: what to train; those without a gradient are left as they are in a step.
        betas: how much of the running means of the gradient and of its square is kept in a step.
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

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What the next step depends on: by the parameter's index and a name."""
        return {
            f"{index}.{name}": tensor
            for index, state in enumerate(self._state)
            for name, tensor in state.items()
        }

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Change the parameters by their gradients."""
        pairs = zip(self.parameters, self._state, strict=True)
        taught = [(p, p.grad, state) for p, state in pairs if p.grad is not None]
        adam(
            [parameter for parameter, _, _ in taught],
            [gradient for _, gradient, _ in taught],
            [state["exp_avg"] for _, _, state in taught],
            [state["exp_avg_sq"] for _, _, state in taught],
            [],
            [state["step"] for _, _, state in taught],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
