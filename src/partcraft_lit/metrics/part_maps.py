"""How well maps of part tokens fall on the parts: area under the ROC curve, intersection over union, share inside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from partcraft_lit.losses.attention import maps_and_masks


@dataclass(frozen=True)
class PartMapScores:
    """Of each image and part; NaN where the prompt does not name the part, or the image does not show it.

    Attributes:
        auc: (B, M + 1) chance that a place of the part has more attention than another place; 0.5 by chance.
        iou: (B, M + 1) of the places where this part's share is the largest with the part, among places of parts in the
            prompt.
        inside: (B, M + 1) share of the part's attention that lies on the part.
    """

    auc: Tensor
    iou: Tensor
    inside: Tensor


def part_map_scores(attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int) -> PartMapScores:
    """Scores of the maps of one layer, at the resolution of the label map.

    Args:
        attention_maps: (B, T, s, s) non-negative, any scale; enlarged or reduced bilinearly to the label map's side, so
            that coarse layers have no advantage.
        part_ids: (B, T) part of each token, -1 where unused; tokens of one part are summed.
        label_map: (B, H, H) part of each place.
        num_parts: foreground parts M.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    size = (int(label_map.shape[-2]), int(label_map.shape[-1]))
    resized = F.interpolate(attention_maps.cpu().double(), size=size, mode="bilinear", align_corners=False)
    maps, prompted, masks = maps_and_masks(resized, part_ids.cpu(), label_map.cpu(), num_parts)
    seen = prompted & masks.flatten(2).any(dim=2)
    auc = torch.full(seen.shape, torch.nan, dtype=torch.float64)
    for image, part in seen.nonzero().tolist():
        auc[image, part] = _auc(maps[image, part], masks[image, part])
    total = maps.sum(dim=(2, 3))
    inside = (maps * masks).sum(dim=(2, 3)) / torch.where(total > 0, total, torch.nan)
    nowhere = torch.tensor(torch.nan, dtype=torch.float64)
    return PartMapScores(
        auc, torch.where(seen, _iou(maps, prompted, masks), nowhere), torch.where(seen, inside, nowhere)
    )


def _auc(values: Tensor, mask: Tensor) -> float:
    """Of (H, W) values for a boolean mask; ties count half. NaN if all places are of the part."""
    inside, outside = values[mask], values[~mask].sort().values
    if not len(outside):
        return float("nan")
    below = torch.searchsorted(outside, inside) + torch.searchsorted(outside, inside, right=True)
    return float(below.double().mean() / 2 / len(outside))


def _iou(maps: Tensor, prompted: Tensor, masks: Tensor) -> Tensor:
    """(B, M + 1)."""
    where = (masks & prompted[:, :, None, None]).any(dim=1, keepdim=True)
    largest = maps.masked_fill(~prompted[:, :, None, None], -1).argmax(dim=1, keepdim=True)
    parts = torch.arange(maps.shape[1])[None, :, None, None]
    guessed = (largest == parts) & where
    union = ((guessed | masks) & where).sum(dim=(2, 3))
    return (guessed & masks).sum(dim=(2, 3)) / union.clamp_min(1).double()
