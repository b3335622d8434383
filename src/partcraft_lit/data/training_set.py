"""What one training sample is: a pure function of the seed and the sample's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.randomness import epoch_index, torch_generator
from partcraft_lit.core.types import ABSENT, Alteration, TrainingExample
from partcraft_lit.data.latents import Square, Squares
from partcraft_lit.parts.spool import LabelMaps


class TrainingSet(Dataset[TrainingExample]):
    """Turns sample numbers into examples; endless, hence without a length.

    Image, flip, crop, posterior sample, timestep, noise and caption each have a random stream of their own. So a run
    resumes to the same next batch, workers do not matter, and two runs that differ in one setting (flips, captions,
    batch size) agree in everything else.

    Args:
        seed: base seed.
        source_len: number of images N.
        latents: their latents, whole or as squares; see ``data.crops``.
        label_maps: N part maps, uint8 (grid height, grid width), of the whole image at any grid size.
        codes: (N, M + 1) codes, ``ABSENT`` for parts that an image does not have.
        make_caption: codes (M + 1,) and a generator -> caption.
        resolution: side of the training crop in pixels.
        vae_scale_factor: pixels per latent.
        attention_size: side of the label maps to return.
        num_train_timesteps: timesteps are drawn below this.
        flip: mirror half of the samples.
        crop: "random" or "center": where the square is cut from a longer picture, in whole latents.
        present_only: leave parts out of the caption that are not in the returned label map, so that no token is asked
            to attend to nothing.
        alter: what is done to each complete example, or None.

    Raises:
        UserError: for settings that do not fit together.
        ValueError: if the arguments do not describe the same N images.
    """

    def __init__(
        self,
        seed: int,
        source_len: int,
        latents: Squares,
        label_maps: Sequence[Tensor],
        codes: Tensor,
        make_caption: Callable[[Tensor, torch.Generator], str],
        resolution: int,
        vae_scale_factor: int,
        attention_size: int,
        num_train_timesteps: int,
        flip: bool,
        crop: Literal["random", "center"],
        present_only: bool = True,
        alter: Alteration | None = None,
    ) -> None:
        if crop not in ("random", "center"):
            raise UserError(f"The crop is {crop!r}. {did_you_mean(str(crop), ('random', 'center'))}")
        if resolution < vae_scale_factor or resolution % vae_scale_factor:
            raise UserError(f"The resolution must be a multiple of {vae_scale_factor} pixels, got {resolution}.")
        lengths = {
            "latents": len(latents),
            "label_maps": len(label_maps),
            "codes": len(codes),
            "source_len": source_len,
        }
        if len(set(lengths.values())) > 1 or source_len < 1:
            raise ValueError(f"One of each per image is wanted, and at least one image; got {lengths}.")
        self._seed = seed
        self._latents = latents
        # Maps on disk stay there; others are sent to workers as one block instead of one file handle per image.
        self._maps = label_maps if isinstance(label_maps, LabelMaps) else LabelMaps.in_memory(label_maps)
        self._codes = codes.clone()
        self._make_caption = make_caption
        self._side = resolution // vae_scale_factor
        self._pixels = vae_scale_factor
        self._attention_size = attention_size
        self._num_train_timesteps = num_train_timesteps
        self._flip = flip
        self._crop = crop
        self._present_only = present_only
        self._alter = alter

    @property
    def num_images(self) -> int:
        return len(self._codes)

    def __getitem__(self, sample_id: int) -> TrainingExample:
        image_id = epoch_index(self._seed, sample_id, self.num_images)
        flip = self._flip and bool(torch.rand((), generator=self._generator("flip", sample_id)) < 0.5)
        square = self._latents.square(image_id, flip, self._side, self._place(sample_id))
        label_map = self._label_map(image_id, flip, square)
        codes = self._present_codes(image_id, label_map)
        posterior = torch.randn(square.shape, generator=self._generator("posterior", sample_id))
        steps = torch.randint(self._num_train_timesteps, (), generator=self._generator("timestep", sample_id))
        example = TrainingExample(
            latents=posterior if square.posterior is None else square.posterior[0] + square.posterior[1] * posterior,
            noise=torch.randn(square.shape, generator=self._generator("noise", sample_id)),
            timestep=int(steps),
            label_map=label_map,
            codes=codes,
            prompt=self._make_caption(codes, self._generator("caption", sample_id)),
            sample_id=sample_id,
            image_id=image_id,
            crop=(*square.original_size, square.top * self._pixels, square.left * self._pixels),
            pixel_values=square.pixels,
        )
        return self._alter(example, self._generator("alter", sample_id)) if self._alter else example

    def _generator(self, purpose: str, sample_id: int) -> torch.Generator:
        return torch_generator(self._seed, purpose, sample_id)

    def _place(self, sample_id: int) -> list[float] | None:
        if self._crop == "center":
            return None
        place: list[float] = torch.rand(2, generator=self._generator("crop", sample_id), dtype=torch.float64).tolist()
        return place

    def _label_map(self, image_id: int, flip: bool, square: Square) -> Tensor:
        whole = self._maps[image_id].flip(-1) if flip else self._maps[image_id]
        height, width = square.height, square.width
        box = (square.top / height, square.left / width, self._side / height, self._side / width)
        return crop_label_map(whole, box, self._attention_size)

    def _present_codes(self, image_id: int, label_map: Tensor) -> Tensor:
        codes = self._codes[image_id].clone()
        if self._present_only:
            shown = torch.bincount(label_map.reshape(-1).long(), minlength=len(codes))[: len(codes)] > 0
            codes[~shown] = ABSENT
        return codes


def crop_label_map(label_map: Tensor, box: tuple[float, float, float, float], size: int) -> Tensor:
    """Looks up the part at the centre of each cell of a (size, size) grid laid over a box of the image.

    Args:
        label_map: (grid height, grid width), of the whole image.
        box: top, left, height and width as fractions of the image, at any place between the map's cells.
        size: side of the result.

    Returns:
        (size, size), same type.
    """
    top, left, height, width = box
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    rows = ((top + centres * height) * label_map.shape[0]).long().clamp_(0, label_map.shape[0] - 1)
    columns = ((left + centres * width) * label_map.shape[1]).long().clamp_(0, label_map.shape[1] - 1)
    return label_map[rows[:, None], columns[None, :]]
