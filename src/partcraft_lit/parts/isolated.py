"""Reading a part with its context masked out: everything else is grey before features are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.images import clamp_aspect
from partcraft_lit.core.labels import resize_labels
from partcraft_lit.core.types import PatchFeatures
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.segmenter import Segmenter

_GREY = 128
#: Training images whose mean stands for a code, and nearest codes that are compared beside those that were asked for.
_EXEMPLARS, _NEAREST = 4, 5

#: (3, height, width) uint8, and the (grid height, grid width) label map of it, or of its middle where it is longer than
#: 3:1.
LabelledImage = tuple[Tensor, Tensor]


def isolate(image: Tensor, label_map: Tensor, part: int) -> Tensor:
    """Everything but one part in grey.

    Args:
        image: (3, height, width) uint8, of an aspect that is read whole.
        label_map: (grid height, grid width) parts, for the whole image.
        part: which stays.

    Returns:
        (3, height, width) uint8.
    """
    return torch.where(resize_labels(label_map, image.shape[1:]) == part, image, _GREY)


@torch.no_grad()
def isolated_feature(
    segmenter: Segmenter, features: PatchFeatures, labelled: LabelledImage, part: int
) -> Tensor | None:
    """Part feature with the context masked out.

    The receptive field of a patch covers its surroundings. In a composed image these are parts beside which no training
    image showed this one; with the context masked out, the feature is the same wherever the part stands.

    Args:
        segmenter: gives the directions of patch features.
        features: of patches.
        labelled: an image with its parts.
        part: which.

    Returns:
        (D,), the mean direction of its patches; None where it covers no patch.
    """
    image, label_map = clamp_aspect(labelled[0]), labelled[1]
    grid = features([isolate(image, label_map, part)])[0]  # (grid height, grid width, D)
    cells = resize_labels(label_map, grid.shape[:2]) == part
    return segmenter.directions(grid)[cells].mean(dim=0) if bool(cells.any()) else None


class IsolatedCodes:
    """Cosines of a part to codes, the context of both masked out.

    The part predictor, which EMR asks, sees the context of a part too: of the right parts of hybrids it reads one in
    five as another code, and twice as many as this does (``benchmarks/isolated_parts.py``). Codes are means over a few
    exemplars, and only those are compared that were asked for and those that the predictor finds nearest, so that it
    takes no longer with many codes. Ours.

    Args:
        dictionary: parts and codes.
        codes: (N, M + 1) of the training images.
        image_of: a training image with its parts; None where it is gone.
        feature_of: ``isolated_feature`` by the features that the dictionary was made with.
    """

    def __init__(
        self,
        dictionary: PartDictionary,
        codes: Tensor,
        image_of: Callable[[int], LabelledImage | None],
        feature_of: Callable[[LabelledImage, int], Tensor | None],
    ) -> None:
        self._dictionary, self._codes = dictionary, codes
        self._image_of, self._feature_of = image_of, feature_of
        self._means: dict[tuple[int, int], Tensor | None] = {}

    def cosines(
        self, labelled: LabelledImage, part_feature: Tensor, part: int, asked: Sequence[int]
    ) -> dict[int, float]:
        """Code -> cosine, -1...1.

        Args:
            labelled: an image with its parts.
            part_feature: (D,) of the part, in its context.
            part: 1...M.
            asked: codes that are compared in any case.

        Returns:
            Of ``asked`` and the nearest others, but for those without an exemplar; empty where the image does not show
            the part.
        """
        feature = self._feature_of(labelled, part)
        if feature is None:
            return {}
        table = self._dictionary.code_centroids[part]
        in_context = F.cosine_similarity(part_feature.float()[None], table, dim=1)
        nearest = in_context.topk(min(_NEAREST, len(table))).indices.tolist()
        means = {code: self._mean(part, code) for code in dict.fromkeys([*asked, *nearest])}
        return {
            code: float(F.cosine_similarity(feature, mean, dim=0)) for code, mean in means.items() if mean is not None
        }

    def _mean(self, part: int, code: int) -> Tensor | None:
        """(D,) mean over the exemplars of a code."""
        if (part, code) not in self._means:
            labelled = [self._image_of(index) for index in self._exemplars(part, code)]
            found = [f for one in labelled if one is not None and (f := self._feature_of(one, part)) is not None]
            self._means[part, code] = torch.stack(found).mean(dim=0) if found else None
        return self._means[part, code]

    def _exemplars(self, part: int, code: int) -> list[int]:
        """Indices spread evenly over the images that show a code."""
        showing = (self._codes[:, part] == code).nonzero()[:, 0]
        places = torch.linspace(0, len(showing) - 1, min(_EXEMPLARS, len(showing))).round().long()
        return [int(index) for index in showing[places]]
