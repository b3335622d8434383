"""Whether the attention of a part token draws the outline of its part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from partcraft_lit.metrics.leakage import attention_of_parts, part_results


class AttentionIoU(Metric):
    """Intersection over union of the region that a part's tokens attend to and the part's mask. High is good.

    A part counts in the images whose prompt names it. Named but nowhere in the mask, with a region that attends to it,
    it scores 0. A part that the prompt does not name has no region and does not count.

    Args:
        num_parts: foreground parts M.
        rule: "argmax": a place belongs to the named part with the most attention there, so that the regions share the
            image out; give the background a token, or the parts swallow it. "threshold": a place belongs to every part
            whose attention there is at least ``threshold`` of its largest.
        threshold: for that rule, 0...1.
        part_names: names of all M + 1 parts, the background first, for the keys; numbers by default.

    Raises:
        ValueError: if ``threshold`` or ``part_names`` do not fit.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    iou_sums: Tensor
    counts: Tensor

    def __init__(
        self,
        num_parts: int,
        rule: Literal["argmax", "threshold"] = "argmax",
        threshold: float = 0.5,
        part_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if rule not in ("argmax", "threshold") or not 0 < threshold <= 1:
            wanted = "rule must be argmax or threshold, and threshold above 0 and at most 1"
            raise ValueError(f"{wanted}; got {rule}, {threshold}.")
        names = [str(index) for index in range(num_parts + 1)] if part_names is None else list(part_names)
        if len(names) != num_parts + 1:
            raise ValueError(f"part_names must name all {num_parts + 1} parts, background first; got {names}.")
        self.num_parts, self.rule, self.threshold, self.part_names = num_parts, rule, threshold, names
        for name in ("iou_sums", "counts"):
            self.add_state(name, torch.zeros(num_parts + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, attention_maps: Tensor, part_ids: Tensor, label_map: Tensor) -> None:
        """Adds images; arguments and errors as :func:`~partcraft_lit.metrics.leakage.leakage_matrix`."""
        attention, named = attention_of_parts(attention_maps, part_ids, label_map, self.num_parts)
        region = self._regions(attention, named)
        parts = torch.arange(self.num_parts + 1, device=label_map.device)
        mask = label_map.long()[:, None] == parts[:, None, None]  # (B, M + 1, s, s)
        shared, joined = ((f & named[..., None, None]).sum(dim=(2, 3)).double() for f in (region & mask, region | mask))
        counted = joined > 0
        self.iou_sums += torch.where(counted, shared / joined, 0).sum(dim=0).to(self.iou_sums.device)
        self.counts += counted.sum(dim=0).to(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Mean over images, then over parts.

        Returns:
            "all", "without_background" and "part/<name>"; NaN where nothing counted.
        """
        return part_results(self.iou_sums / self.counts, self.part_names)

    def _regions(self, attention: Tensor, named: Tensor) -> Tensor:
        """(B, M + 1, s, s) bool."""
        if self.rule == "threshold":
            largest = attention.amax(dim=(2, 3), keepdim=True)
            return (attention >= self.threshold * largest) & (largest > 0)
        winner = attention.masked_fill(~named[..., None, None], -1).argmax(dim=1, keepdim=True)
        parts = torch.arange(self.num_parts + 1, device=attention.device)[:, None, None]
        return (winner == parts) & named[..., None, None]
