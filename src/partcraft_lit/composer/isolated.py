"""Which code a generated part looks most like, when it is looked at alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.composer.stored_parts import StoredParts
from partcraft_lit.composer.views import ImageView
from partcraft_lit.core.errors import UserError

#: Images of a code whose part is looked at alone, and codes that are compared beside those that were asked for.
_EXAMPLES, _RIVALS = 4, 5


class IsolatedCodes:
    """Compares a part of an image with codes, each as it looks alone in a few training images.

    The part predictor, which EMR asks, sees the neighbours of a part too, and in a hybrid these are of other images:
    ``benchmarks/isolated_parts.py`` says how many right parts it calls wrong for that. To be fast with many codes, only
    those are compared that were asked for, and those that the predictor finds nearest.

    Args:
        stored: images, parts and codes of the run.
    """

    def __init__(self, stored: StoredParts) -> None:
        self._stored = stored
        self._means: dict[tuple[int, int], Tensor | None] = {}

    def cosines(self, view: ImageView, part: int, asked: Sequence[int]) -> dict[int, float]:
        """Code -> cosine of the part to it, both alone, -1...1.

        Args:
            view: an image with its parts.
            part: of the image, 1...M.
            asked: codes that are compared in any case.

        Returns:
            Of ``asked`` and the nearest others; without those of which no training image is to be had; empty where the
            image does not show the part.
        """
        if view.part_features is None:
            return {}
        feature = self._stored.reader.isolated_feature(view.tensor, torch.from_numpy(view.label_map), part)
        if feature is None:
            return {}
        table = self._stored.dictionary.code_centroids[part]
        plain = F.cosine_similarity(view.part_features[part].float()[None], table, dim=1)
        rivals = plain.topk(min(_RIVALS, len(plain))).indices.tolist()
        means = {code: self._mean(part, code) for code in dict.fromkeys([*asked, *rivals])}
        return {
            code: float(F.cosine_similarity(feature, mean, dim=0)) for code, mean in means.items() if mean is not None
        }

    def _mean(self, part: int, code: int) -> Tensor | None:
        """(D,) mean over some of the images that show a code."""
        if (part, code) not in self._means:
            found = [feature for index in self._examples(part, code) if (feature := self._of(index, part)) is not None]
            self._means[part, code] = torch.stack(found).mean(dim=0) if found else None
        return self._means[part, code]

    def _examples(self, part: int, code: int) -> list[int]:
        """Images spread over all that show a code."""
        showing = np.flatnonzero(self._stored.codes[:, part] == code)
        places = np.linspace(0, len(showing) - 1, min(_EXAMPLES, len(showing))).round().astype(int)
        return [int(index) for index in showing[places]]

    def _of(self, index: int, part: int) -> Tensor | None:
        try:
            view = self._stored.view(index)
        except UserError:  # this image is gone
            return None
        return self._stored.reader.isolated_feature(view.tensor, torch.from_numpy(view.label_map), part)
