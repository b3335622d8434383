"""Muon (Jordan et al., 2024): momentum whose matrix is made orthogonal before it is applied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

#: Coefficients of the quintic Newton-Schulz iteration: singular values in (0, 1] end between about 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, roughly: U V^T of the singular value decomposition.

    Args:
        matrix: (m, n) or (B, m, n) float32.
        iterations: of Newton and Schulz.

    Returns:
        The same shape, singular values between about 0.7 and 1.2; zeros for zeros.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.mT if tall else matrix
    wide = (wide / wide.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)).view(-1, *wide.shape[-2:])
    a, b, c = _QUINTIC
    for _ in range(iterations):  # few calls, since the matrices are small: most of a step on a GPU would go into calls
        gram = torch.bmm(wide, wide.mT)
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    wide = wide.mT if tall else wide
    return wide.reshape(matrix.shape)


class Muon(torch.optim.Optimizer):
    """Muon for weights of at least two dimensions; a convolution is the matrix of its output channels.

    ``torch.optim.Muon`` takes matrices alone, and most weights of a UNet are convolutions. Updates have the root mean
    square ``rms * lr``, so that rates of AdamW carry over (Liu et al., arXiv 2502.16982, eq. 4).

    Args:
        params: weights, two or more dimensions each.
        lr: learning rate.
        momentum: of the gradients, with Nesterov's look ahead.
        weight_decay: decoupled.
        rms: root mean square of an update at rate 1.

    Raises:
        ValueError: for a weight of fewer than two dimensions.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        rms: float = 0.4,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rms": rms})
        for group in self.param_groups:
            if any(parameter.ndim < 2 for parameter in group["params"]):
                raise ValueError("Muon takes weights of at least two dimensions; give the others to AdamW.")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all weights that have a gradient; those of one shape together, which a GPU needs."""
        if closure is not None:
            raise ValueError("Muon takes no closure.")
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
            for shape, parameters in shapes.items():
                self._update(parameters, shape, group)

    def _update(self, parameters: list[Tensor], shape: tuple[int, int], group: dict[str, Any]) -> None:
        averages = [self.state[one].setdefault("momentum", torch.zeros_like(one)) for one in parameters]
        gradients = [cast(Tensor, one.grad) for one in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
        matrices = torch.stack([one.reshape(shape) for one in ahead]).float()
        scale = group["rms"] * max(shape) ** 0.5  # an orthogonal (m, n) has the root mean square max(m, n)^-1/2
        updates = [one.view_as(of) for one, of in zip(orthogonalized(matrices), parameters, strict=True)]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)
