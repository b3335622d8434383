"""Training examples as a pure function of the seed and the sample number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.images import short_side_size
from partcraft_lit.core.labels import axis, resize_labels, vote
from partcraft_lit.core.randomness import epoch_index, torch_generator
from partcraft_lit.core.types import ABSENT, ExampleTransform, TrainingExample
from partcraft_lit.data.latents import LatentCrop, LatentSource
from partcraft_lit.data.part_mixing import PartMixing
from partcraft_lit.data.recomposition import View
from partcraft_lit.parts.on_disk import LabelMaps

#: Short side of the finest label maps that are kept: more than latents have.
_FINEST = 128


class TrainingSet(Dataset[TrainingExample]):
    """Maps sample numbers to training examples; endless, hence without a length.

    Image, flip, crop, posterior sample, timestep, noise and caption have independent random streams. So a run resumes
    to the same next batch with any number of workers, and two runs that differ in one setting (flips, captions, batch
    size) agree in everything else.

    Args:
        seed: base seed.
        source_len: number of images N.
        latents: of the images or of crops; see ``data.crops``.
        label_maps: N part maps of whole images, uint8 (grid height, grid width), any grid size.
        codes: (N, M + 1) codes, ``ABSENT`` for parts not in an image.
        make_caption: codes (M + 1,), a generator and, where there are texts, the image's -> caption.
        resolution: side of the training crop in pixels.
        vae_scale_factor: pixels per latent.
        attention_size: side of the returned label maps.
        num_train_timesteps: timesteps are drawn uniformly below this.
        flip: mirror half of the samples.
        crop: "random" or "center", in whole latents.
        present_only: omit parts from the caption that the crop cut away, so that no token attends to nothing.
        texts: N captions that come with the images, given to ``make_caption``; "" for none. None if no image has one.
        transform: applied to each complete example, or None.
        draw_timestep: draws a sample's timestep instead, as the model's own training does; picklable.
        mixing: of parts; None for plain samples. Needs encoded latents and label maps as fine as these.
        empty_captions: share of samples with an empty caption.

    Raises:
        UserError: for incompatible settings.
        ValueError: if the arguments do not describe the same N images.
    """

    def __init__(
        self,
        seed: int,
        source_len: int,
        latents: LatentSource,
        label_maps: Sequence[Tensor],
        codes: Tensor,
        make_caption: Callable[..., str],
        resolution: int,
        vae_scale_factor: int,
        attention_size: int,
        num_train_timesteps: int,
        flip: bool,
        crop: Literal["random", "center"],
        present_only: bool = True,
        texts: Sequence[str] | None = None,
        transform: ExampleTransform | None = None,
        draw_timestep: Callable[[torch.Generator], float] | None = None,
        mixing: PartMixing | None = None,
        empty_captions: float = 0.0,
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
            "texts": source_len if texts is None else len(texts),
        }
        if len(set(lengths.values())) > 1 or source_len < 1:
            raise ValueError(f"Expected one of each per image, and at least one image; got {lengths}.")
        self._seed = seed
        self._latents = latents
        # Memory-mapped maps stay on disk; others go to workers as one tensor instead of one file handle per image.
        self._maps = label_maps if isinstance(label_maps, LabelMaps) else LabelMaps.in_memory(map(_coarse, label_maps))
        self._codes = codes.clone()
        self._make_caption = make_caption
        self._texts = texts
        self._side = resolution // vae_scale_factor
        self._pixels = vae_scale_factor
        self._attention_size = attention_size
        self._num_train_timesteps = num_train_timesteps
        self._flip = flip
        self._crop = crop
        self._present_only = present_only
        self._transform = transform
        self._draw_timestep = draw_timestep
        self._mixing = mixing
        self._empty_captions = empty_captions

    @property
    def num_images(self) -> int:
        return len(self._codes)

    def __getitem__(self, sample_id: int) -> TrainingExample:
        image_id = epoch_index(self._seed, sample_id, self.num_images)
        flip = self._flip and bool(torch.rand((), generator=self._generator("flip", sample_id)) < 0.5)
        crop = self._latents.crop(image_id, flip, self._side, self._place(sample_id))
        label_map = self._label_map(image_id, flip, crop)
        codes = self._present_codes(image_id, label_map)
        posterior = torch.randn(crop.shape, generator=self._generator("posterior", sample_id))
        view = View(_sampled(crop, posterior), label_map, codes, torch.ones(crop.shape[1:], dtype=torch.bool))
        if self._mixing is not None:
            view = self._mixed(view, self._mixing, sample_id)
        example = TrainingExample(
            latents=view.latents,
            noise=torch.randn(crop.shape, generator=self._generator("noise", sample_id)),
            timestep=self._timestep(self._generator("timestep", sample_id)),
            label_map=view.label_map,
            codes=view.codes,
            prompt=self._caption(image_id, view.codes, sample_id),
            sample_id=sample_id,
            image_id=image_id,
            crop=(*crop.original_size, crop.top * self._pixels, crop.left * self._pixels),
            loss_region=None if self._mixing is None else view.counts.float(),
            pixel_values=crop.pixels,
        )
        # The stream keeps its first name: another one would change the bytes of every augmented run.
        return self._transform(example, self._generator("alter", sample_id)) if self._transform else example

    def _timestep(self, generator: torch.Generator) -> float:
        if self._draw_timestep is not None:
            return self._draw_timestep(generator)
        return int(torch.randint(self._num_train_timesteps, (), generator=generator))

    def _mixed(self, view: View, mixing: PartMixing, sample_id: int) -> View:
        def another(turn: int, number: int) -> View:
            generator = torch_generator(self._seed, "candidate", sample_id, turn, number)
            return self._random_view(generator)

        return mixing(view, sample_id, another, self._codes, lambda purpose: self._generator(purpose, sample_id))

    def _random_view(self, generator: torch.Generator) -> View:
        """A random image, mirrored or not, in a random crop."""
        image_id = int(torch.randint(self.num_images, (), generator=generator))
        flip = self._flip and bool(torch.rand((), generator=generator) < 0.5)
        place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        crop = self._latents.crop(image_id, flip, self._side, None if self._crop == "center" else place)
        label_map = self._label_map(image_id, flip, crop)
        latents = _sampled(crop, torch.randn(crop.shape, generator=generator))
        counts = torch.ones(crop.shape[1:], dtype=torch.bool)
        return View(latents, label_map, self._present_codes(image_id, label_map), counts)

    def _caption(self, image_id: int, codes: Tensor, sample_id: int) -> str:
        if (
            self._empty_captions
            and torch.rand((), generator=self._generator("empty", sample_id)) < self._empty_captions
        ):
            return ""
        generator = self._generator("caption", sample_id)
        if self._texts is None:
            return self._make_caption(codes, generator)
        return self._make_caption(codes, generator, self._texts[image_id])

    def _generator(self, purpose: str, sample_id: int) -> torch.Generator:
        return torch_generator(self._seed, purpose, sample_id)

    def _place(self, sample_id: int) -> list[float] | None:
        if self._crop == "center":
            return None
        place: list[float] = torch.rand(2, generator=self._generator("crop", sample_id), dtype=torch.float64).tolist()
        return place

    def _label_map(self, image_id: int, flip: bool, crop: LatentCrop) -> Tensor:
        whole = self._maps[image_id].flip(-1) if flip else self._maps[image_id]
        return crop_label_map(whole, (crop.top, crop.left), self._side, (crop.height, crop.width), self._attention_size)

    def _present_codes(self, image_id: int, label_map: Tensor) -> Tensor:
        codes = self._codes[image_id].clone()
        if self._present_only:
            shown = torch.bincount(label_map.reshape(-1).long(), minlength=len(codes))[: len(codes)] > 0
            codes[~shown] = ABSENT
        return codes


def _sampled(crop: LatentCrop, posterior: Tensor) -> Tensor:
    """Latents of a crop; the noise to sample them with where it is not encoded yet."""
    return posterior if crop.posterior is None else crop.posterior[0] + crop.posterior[1] * posterior


def _coarse(label_map: Tensor) -> Tensor:
    """A label map no finer than training can see: masks at full resolution would be counted anew for each sample."""
    height, width = label_map.shape
    if min(height, width) <= _FINEST:
        return label_map
    return resize_labels(label_map, short_side_size(height, width, _FINEST))


def crop_label_map(label_map: Tensor, corner: tuple[int, int], side: int, whole: tuple[int, int], size: int) -> Tensor:
    """Crops a label map to a square and resizes it by majority.

    Args:
        label_map: (grid height, grid width), of the whole image.
        corner: top and left of the square, in units of which the whole image has ``whole``.
        side: of the square, in these units.
        whole: height and width of the image in these units.
        size: side of the result.

    Returns:
        (size, size), same type.
    """
    down, across = (
        axis(start * cells * size, side * cells, size, length * size, cells, label_map.device)
        for start, cells, length in zip(corner, label_map.shape, whole, strict=True)
    )
    return vote(label_map, down, across)
