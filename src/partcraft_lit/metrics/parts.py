"""Base of the part metrics: target codes against codes predicted from images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from partcraft_lit.core.types import ABSENT, BACKGROUND, PartPrediction, PartPredictor
from partcraft_lit.metrics.features import Shared


class PartMetric(Metric, ABC):
    """A score per part in 0...1, averaged over parts within an image and over images.

    Args:
        predictor: reads the parts off images. It is shared by clones and is no part of the metric's state.
        part_names: names of all M + 1 parts, the background first, for the keys of :meth:`compute`; numbers by default.

    Raises:
        ValueError: if there is not one name per part.

    Absent parts: absent in both target and prediction scores 1, in one of them 0. A part never drops
    out of the mean, so two methods are always averaged over the same entries. Only parts that corrections took away
    (``retired`` of the predictor) count nowhere.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    part_sums: Tensor
    num_images: Tensor

    def __init__(self, predictor: PartPredictor, part_names: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        parts = predictor.num_parts + 1
        names = [str(index) for index in range(parts)] if part_names is None else list(part_names)
        if len(names) != parts:
            raise ValueError(f"part_names must name all {parts} parts, background first; got {len(names)}: {names}.")
        self._predictor = Shared(predictor)
        self.part_names = names
        self.add_state("part_sums", torch.zeros(parts, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def predictor(self) -> PartPredictor:
        return self._predictor.value

    @property
    def live(self) -> list[int]:
        """Parts that count, the background first."""
        retired = getattr(self.predictor, "retired", ())
        return [part for part in range(len(self.part_names)) if part not in retired]

    def update(self, images: Sequence[Tensor] | Tensor | PartPrediction, target_codes: Tensor) -> None:
        """Reads the parts off ``images`` and scores them.

        Args:
            images: uint8 (3, height, width) images of any sizes, or a batch of them, or their prediction, which
                several metrics can share.
            target_codes: (B, M + 1) target codes, ``ABSENT`` where a part is not requested.

        Raises:
            ValueError: if shapes do not fit.
        """
        scores = self.image_scores(images, target_codes)
        self.part_sums += scores.sum(dim=0)
        self.num_images += len(scores)

    def image_scores(self, images: Sequence[Tensor] | Tensor | PartPrediction, target_codes: Tensor) -> Tensor:
        """(B, M + 1) float64 score of each part of each image, of which :meth:`compute` gives the means.

        Arguments and errors as in :meth:`update`; the metric's state is left alone.
        """
        read = images if isinstance(images, PartPrediction) else self.predictor.predict(list(images))
        expected = (len(target_codes), len(self.part_names))
        for name, codes in (("found codes", read.codes), ("target_codes", target_codes)):
            if tuple(codes.shape) != expected or codes.is_floating_point():
                found_shape = f"{tuple(codes.shape)} {codes.dtype}"
                raise ValueError(f"{name} must be integers of shape {expected}, one row per image; got {found_shape}.")
        predicted, target = read.codes.to(self.part_sums.device), target_codes.to(self.part_sums.device)
        absent = (predicted == ABSENT).long() + (target == ABSENT).long()  # 0, 1 or 2 of the two
        return torch.where(absent == 0, self.similarity(predicted, target).double(), (absent == 2).double())

    @abstractmethod
    def similarity(self, predicted_codes: Tensor, target_codes: Tensor) -> Tensor:
        """(B, M + 1) score of each part; entries where a code is ``ABSENT`` are not used."""

    def compute(self) -> dict[str, Tensor]:
        """Means over all images so far.

        Returns:
            "all" (over the M + 1 parts, as published), "without_background", and "part/<name>" of each part; NaN before
            the first image.
        """
        per_part = (self.part_sums / self.num_images)[self.live]
        foreground = torch.arange(len(per_part), device=per_part.device) != BACKGROUND
        result = {"all": per_part.mean(), "without_background": per_part[foreground].mean()}
        names = [self.part_names[part] for part in self.live]
        return result | {f"part/{name}": value for name, value in zip(names, per_part, strict=True)}
