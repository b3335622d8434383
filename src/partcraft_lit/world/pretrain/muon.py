"""Muon (Jordan et al., 2024): momentum whose matrix is made orthogonal before it is applied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

#: Coefficients of the quintic Newton-Schulz iteration: singular values in (0, 1] end between about 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, roughly: U V^T of the singular value decomposition.

    Args:
        matrix: (m, n) float32.
        iterations: of Newton and Schulz.

    Returns:
        (m, n), singular values between about 0.7 and 1.2; zeros for zeros.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp_min(1e-7)
    a, b, c = _QUINTIC
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


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
        """One update of all weights that have a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure.")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        average = state.setdefault("momentum", torch.zeros_like(parameter))
        average.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(average, group["momentum"]).flatten(1)
        scale = group["rms"] * max(ahead.shape) ** 0.5  # an orthogonal (m, n) has the root mean square max(m, n)^-1/2
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalized(ahead.float()).view_as(parameter), alpha=-group["lr"] * scale)
