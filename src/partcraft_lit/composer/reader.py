"""The part predictor of a run, loaded when it is first asked, for any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.types import ABSENT, PartPrediction, PatchFeatures
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.isolated import LabelledImage, isolated_feature
from partcraft_lit.parts.predictor import KMeansPartPredictor

#: Held while an image is decoded: Pillow's warnings are silenced for the whole process meanwhile.
decoding = threading.RLock()


class PartReader:
    """Reads parts and codes off images.

    Args:
        dictionary: of the run.
        load_features: loads the network that describes patches; called once, by the first image.
    """

    def __init__(self, dictionary: PartDictionary, load_features: Callable[[], PatchFeatures]) -> None:
        self.dictionary = dictionary
        self._load_features = load_features
        self._lock = threading.Lock()

    @cached_property
    def _predictor(self) -> KMeansPartPredictor:
        return KMeansPartPredictor(self.dictionary, self._load_features())

    def predict(self, images: Sequence[Tensor]) -> PartPrediction:
        """uint8 (3, height, width) images of any sizes -> their parts.

        Raises:
            UserError: if the network is missing or another one than the dictionary was made with.
        """
        with self._lock:
            return self._predictor.predict(images)

    @property
    def features(self) -> PatchFeatures:
        """The network that describes patches.

        Raises:
            UserError: as ``predict``.
        """
        with self._lock:
            return self._predictor.features

    def grid(self, image: Tensor) -> Tensor:
        """(grid height, grid width, D) features of one image.

        Raises:
            UserError: as ``predict``.
        """
        with self._lock, torch.no_grad():
            return self._predictor.features([image])[0]

    def isolated_feature(self, labelled: LabelledImage, part: int) -> Tensor | None:
        """(D,) feature of a part with its context masked out, see ``parts.isolated``; None where it covers no patch.

        Raises:
            UserError: as ``predict``.
        """
        with self._lock:
            return isolated_feature(self.dictionary.base_segmenter, self._predictor.features, labelled, part)

    def cosine(self, part_feature: Tensor, part: int, code: int) -> float | None:
        """Cosine of (D,) part features to a code's centroid, -1...1; None for a part that is absent."""
        if code == ABSENT or not bool(part_feature.any()):
            return None
        return float(F.cosine_similarity(part_feature.float(), self.dictionary.code_centroids[part][code], dim=0))


def codes_by_name(codes: Sequence[int] | Tensor, names: Sequence[str]) -> dict[str, int]:
    """(M + 1,) codes -> name -> code of the parts that are there."""
    values = codes.tolist() if isinstance(codes, torch.Tensor) else codes
    return {name: int(code) for name, code in zip(names, values, strict=True) if code != ABSENT}
