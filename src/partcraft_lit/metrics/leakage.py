"""Attention leakage between parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from partcraft_lit.core.types import BACKGROUND


class AttentionLeakage(Metric):
    """:func:`leakage_matrix` over many batches and processes.

    Args:
        num_parts: foreground parts M.
        part_names: names of all M + 1 parts, the background first, for the keys; numbers by default.

    Raises:
        ValueError: if ``part_names`` do not fit.
    """

    is_differentiable = False
    full_state_update = False

    share_sums: Tensor
    counts: Tensor

    def __init__(self, num_parts: int, part_names: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        names = [str(index) for index in range(num_parts + 1)] if part_names is None else list(part_names)
        if len(names) != num_parts + 1:
            raise ValueError(f"part_names must name all {num_parts + 1} parts, background first; got {names}.")
        self.num_parts, self.part_names = num_parts, names
        size = num_parts + 1
        self.add_state("share_sums", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, attention_maps: Tensor, part_ids: Tensor, label_map: Tensor) -> None:
        """Adds images; arguments and errors as :func:`leakage_matrix`."""
        shares = _shares(attention_maps, part_ids, label_map, self.num_parts).to(self.share_sums.device)
        self.share_sums += shares.nansum(dim=0)
        self.counts += (~shares[:, :, 0].isnan()).sum(dim=0)

    def matrix(self) -> Tensor:
        """As :func:`leakage_matrix`, of what this process saw."""
        return self.share_sums / self.counts[:, None]

    def compute(self) -> dict[str, Tensor]:
        """ "matrix" as :func:`leakage_matrix`, and of its diagonal, the share that stays inside: "all" (mean over
        parts), "without_background" and "part/<name>"; NaN for a part that no prompt named."""
        matrix = self.matrix()
        return {"matrix": matrix} | part_results(matrix.diagonal(), self.part_names)


def leakage_matrix(attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int) -> Tensor:
    """Share of each part's attention that falls on each part's region; the diagonal is what should be large.

    Tokens of one part in one prompt are summed; images count alike, whatever their attention's total.

    Args:
        attention_maps: (B, T, s, s) non-negative, any scale.
        part_ids: (B, T) part of each token, -1 where unused.
        label_map: (B, s, s) part of each place.
        num_parts: foreground parts M.

    Returns:
        (M + 1, M + 1) float64, entry (i, j) = attention of part i's tokens inside region j. Rows add to 1; the row of a
        part that no prompt names, or that gets no attention, is NaN.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    return _shares(attention_maps, part_ids, label_map, num_parts).nanmean(dim=0)


def attention_of_parts(
    attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int
) -> tuple[Tensor, Tensor]:
    """Maps of tokens, summed for each part; arguments and errors as :func:`leakage_matrix`.

    Returns:
        (B, M + 1, s, s) float64, and (B, M + 1) bool: whether the prompt names the part.
    """
    batch, tokens, high, wide = attention_maps.shape
    if part_ids.shape != (batch, tokens) or label_map.shape != (batch, high, wide):
        raise ValueError(
            f"attention_maps {tuple(attention_maps.shape)} need part_ids {(batch, tokens)} and label_map "
            f"{(batch, high, wide)}; got {tuple(part_ids.shape)} and {tuple(label_map.shape)}."
        )
    parts = torch.arange(num_parts + 1, device=attention_maps.device)
    belongs = part_ids[..., None] == parts  # (B, T, M + 1)
    return torch.einsum("bthw,bti->bihw", attention_maps.double(), belongs.double()), belongs.any(dim=1)


def part_results(per_part: Tensor, part_names: Sequence[str]) -> dict[str, Tensor]:
    """(M + 1,) values, NaN where there is none, with their means over the parts that have one."""
    foreground = torch.arange(len(per_part), device=per_part.device) != BACKGROUND
    result = {"all": per_part.nanmean(), "without_background": per_part[foreground].nanmean()}
    return result | {f"part/{name}": value for name, value in zip(part_names, per_part, strict=True)}


def _shares(attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int) -> Tensor:
    """(B, M + 1, M + 1) of each image by itself, NaN in the rows of parts without attention."""
    attention, _ = attention_of_parts(attention_maps, part_ids, label_map, num_parts)
    parts = torch.arange(num_parts + 1, device=attention_maps.device)
    inside = (label_map.long()[..., None] == parts).double()  # (B, s, s, M + 1)
    mass = torch.einsum("bihw,bhwj->bij", attention, inside)
    totals = mass.sum(dim=2, keepdim=True)
    return mass / torch.where(totals > 0, totals, torch.nan)
