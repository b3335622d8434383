"""Predicts parts and codes of images; shared by discovery, training data, metrics and the app."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import PartPrediction, PatchFeatures
from partcraft_lit.parts.dictionary import PartDictionary


class KMeansPartPredictor:
    """Nearest centroids, tier by tier: on the images of a discovery, its own result.

    With class codes, the code of a part is the class whose mean is nearest.

    Args:
        dictionary: what discovery fitted.
        features: the patch features it was fitted on.

    Raises:
        UserError: if the features are others than the dictionary's.
    """

    def __init__(self, dictionary: PartDictionary, features: PatchFeatures) -> None:
        if features.hash != dictionary.features_hash:
            raise UserError(
                f"The part dictionary was made with features {dictionary.features_id!r} "
                f"({dictionary.features_hash[:12]}), but these are {features.id!r} ({features.hash[:12]}). "
                f"Use parts.features={dictionary.features_id} with the same settings, or discover again."
            )
        self.dictionary = dictionary
        self.features = features

    @property
    def num_parts(self) -> int:
        return self.dictionary.num_parts

    @property
    def retired(self) -> tuple[int, ...]:
        """Parts that corrections took away; metrics leave them out."""
        return self.dictionary.retired

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> PartPrediction:
        """uint8 (3, height, width) images of any sizes -> their parts; empty in, empty out."""
        parts, dim = self.num_parts + 1, self.dictionary.dim
        if len(images) == 0:
            return PartPrediction(torch.empty(0, parts, dtype=torch.long), [], torch.empty(0, parts, dim))
        grids = self.features(images)
        read = self.dictionary.segmenter.read_all(grids)
        label_maps = [label_map for label_map, _ in read]
        part_features = torch.stack([means for _, means in read])
        present = torch.stack([present_parts(label_map, parts) for label_map in label_maps])
        return PartPrediction(self.dictionary.read_codes(part_features, present), label_maps, part_features)

    def centroids(self, codes: Tensor) -> Tensor:
        """(B, M + 1) codes -> (B, M + 1, D) centroids, zeros where ``ABSENT``."""
        return self.dictionary.centroids(codes)


def present_parts(label_map: Tensor, num_labels: int) -> Tensor:
    """(grid height, grid width) -> (num_labels,) bool."""
    return torch.bincount(label_map.flatten().long(), minlength=num_labels) > 0
