"""Recomposed training samples: parts of other images pasted into the latents of one.

In photographs the head of a species comes with its wings, so a model that learns from them alone may take either token
for both. A recomposed sample shows the head of one image on the body of another, and its caption has the codes of both.

Parts are pasted in latents, not in pixels: nothing has to be encoded, so every sample is a new composition. The VAE
sees beyond the edge of a part, so latents beside the seam are not quite those of the pasted pixels
(``benchmarks/recomposition.py`` measures by how much) and do not count in the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from partcraft_lit.core.types import ABSENT, BACKGROUND

#: Label of cells that show no part as it is: those that a pasted part has left bare.
NOWHERE = 255


@dataclass(frozen=True)
class View:
    """What one crop of an image shows, with one label per latent.

    Attributes:
        latents: (C, s, s).
        label_map: (s, s) uint8.
        codes: (M + 1,) codes of the parts that it shows, ``ABSENT`` for others.
        counts: (s, s) bool, latents that count in the loss.
    """

    latents: Tensor
    label_map: Tensor
    codes: Tensor
    counts: Tensor


def recompose(
    host: View,
    candidates: Callable[[int], Sequence[View]],
    most_parts: int,
    seam: int,
    generator: torch.Generator,
) -> View:
    """Replaces one to ``most_parts`` foreground parts of a view by the same parts of other images.

    Each part comes from the candidate whose parts, moved so that the centroids of the replaced part agree, cover most
    of the host's: so head and body meet, and look the same way. Parts are moved by whole latents and not scaled, since
    interpolated latents are none of the VAE's; a candidate of another size covers less and is not taken.

    Args:
        host: the view; it is not changed.
        candidates: number of a replacement (0, 1, ...) -> views to choose from.
        most_parts: most parts that are replaced.
        seam: latents to either side of a seam that do not count.
        generator: draws how many parts, and which.

    Returns:
        The recomposed view; the host where no candidate shows its parts.

    Source: PartComposer (arXiv 2506.03004) pastes parts at random places. Differs: a part takes the place of its like.
    """
    order = torch.randperm(len(host.codes), generator=generator).tolist()
    number = 1 + int(torch.randint(most_parts, (), generator=generator))
    shown = [part for part in order if part != BACKGROUND and _shows(host, part)]
    view = host
    for turn, part in enumerate(shown[:number]):
        view = _replaced(view, part, candidates(turn), seam)
    return view


def _replaced(host: View, part: int, candidates: Sequence[View], seam: int) -> View:
    if not _shows(host, part):  # a part that was pasted before has covered it
        return host
    moved = [_moved(donor, part, host.label_map == part) for donor in candidates if _shows(donor, part)]
    moved = [view for view in moved if bool((view.label_map == part).any())]
    if not moved:
        return host
    donor = max(moved, key=lambda view: _agreement(view.label_map, host.label_map))
    pasted, bare = donor.label_map == part, host.label_map == part
    taken = pasted | bare  # what the old part leaves bare shows what lies behind the new one, and does not count
    edge = _near(taken, seam) & _near(~taken, seam)
    label_map = torch.where(pasted, part, torch.where(bare, NOWHERE, host.label_map.long())).to(torch.uint8)
    codes = host.codes.clone()
    codes[part] = donor.codes[part]
    hidden = torch.bincount(label_map.reshape(-1).long(), minlength=256)[: len(codes)] == 0
    return replace(
        host,
        latents=torch.where(taken, donor.latents, host.latents),
        label_map=label_map,
        codes=codes.masked_fill(hidden, ABSENT),
        counts=host.counts & ~edge & (label_map != NOWHERE),
    )


def _shows(view: View, part: int) -> bool:
    return int(view.codes[part]) != ABSENT and bool((view.label_map == part).any())


def _moved(donor: View, part: int, place: Tensor) -> View:
    """The donor, moved by whole latents so that the centroid of its part is that of ``place``; NOWHERE beyond it."""
    down, right = (
        int(torch.round(to - origin)) for to, origin in zip(centroid(place), centroid(donor.label_map == part))
    )
    return replace(
        donor,
        latents=_shifted(donor.latents, down, right, 0.0),
        label_map=_shifted(donor.label_map, down, right, NOWHERE),
    )


def centroid(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean row and column of the cells of a (s, s) mask."""
    rows, columns = mask.nonzero().double().mean(dim=0)
    return rows, columns


def _shifted(values: Tensor, down: int, right: int, fill: float) -> Tensor:
    height, width = values.shape[-2:]
    result = torch.full_like(values, fill)
    to = [slice(max(0, by), size + min(0, by)) for by, size in ((down, height), (right, width))]
    origin = [slice(max(0, -by), size + min(0, -by)) for by, size in ((down, height), (right, width))]
    result[..., to[0], to[1]] = values[..., origin[0], origin[1]]
    return result


def _agreement(labels: Tensor, others: Tensor) -> int:
    """Cells in which two label maps show the same foreground part."""
    return int(((labels == others) & (others != BACKGROUND) & (others != NOWHERE)).sum())


def _near(mask: Tensor, distance: int) -> Tensor:
    """Cells within ``distance`` of a cell of the mask, corners included."""
    if distance == 0:
        return torch.zeros_like(mask)
    grown = torch.nn.functional.max_pool2d(mask[None, None].float(), 2 * distance + 1, 1, distance)
    return grown[0, 0] > 0
