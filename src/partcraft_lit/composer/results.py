"""Drawn images: what they were asked for, what the part predictor reads in them, and where their part tokens looked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from partcraft_lit.backbones.infotext import INFOTEXT_KEY
from partcraft_lit.backbones.pipelines import pipeline_seed
from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.composer.composition import PNG_KEY, Composition
from partcraft_lit.composer.views import ImageView
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.visualization import heat_overlay, save_png, to_pil, upscale


@dataclass(frozen=True)
class PartReading:
    """Whether a part came out as asked.

    Attributes:
        part: its name.
        asked: its codes in the composition.
        found: the nearest code, or None if the part is absent. With the context of the part masked out, where the run's
            images are there; EMR reads it in context.
        matches: whether ``found`` is among ``asked``.
        cosine: of the part in the image to the nearest code that was asked for, -1...1; None if it is absent.
    """

    part: str
    asked: tuple[int, ...]
    found: int | None
    matches: bool
    cosine: float | None

    def __str__(self) -> str:
        near = "absent" if self.cosine is None else f"cosine {self.cosine:.2f}"
        return f"{'✓' if self.matches else '✗'} {self.part}: {near}"


@dataclass(frozen=True, eq=False)
class Result:
    """One drawn image.

    Attributes:
        tensor: (3, height, width) uint8.
        seed: of its noise.
        composition: what was asked for.
        sample: settings that it was drawn with.
        preview: whether these are those of a preview.
        infotext: generation parameters for A1111 and Forge, with the names that an export of the run gives its parts;
            None where those tools have no words for it.
    """

    tensor: Tensor
    seed: int
    composition: Composition
    sample: SampleSettings
    preview: bool
    infotext: str | None
    _view: Callable[[Tensor], ImageView]
    _compare: Callable[[ImageView, str, tuple[int, ...]], tuple[int | None, float | None]]
    _attention: Callable[[Tensor, str, int], dict[str, Tensor]]

    @cached_property
    def image(self) -> Image.Image:
        """In RGB."""
        return to_pil(self.tensor)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that decides the image, as it stands in the PNG."""
        composition, sample = self.composition, self.sample
        return {
            "prompt": composition.prompt,
            "run": composition.run,
            "steps": sample.steps,
            "guidance_scale": sample.guidance_scale,
            "scheduler": sample.scheduler,
            "negative_prompt": composition.negative_prompt,
            "seed": self.seed,
            "diffusers_seed": pipeline_seed(self.seed),
            PNG_KEY: json.dumps(composition.to_dict(), ensure_ascii=False),
        }

    def save(self, path: str | Path) -> Path:
        """Writes a PNG with the recipe in it; ``Composition.from_png`` reads it, and A1111 the parameters beside it.

        Raises:
            UserError: if the name has another ending, or the place cannot be written to.
        """
        if Path(path).suffix.lower() != ".png":
            raise UserError(f"{path}: the recipe of an image goes into a PNG; give it a name that ends in .png.")
        foreign = {} if self.infotext is None else {INFOTEXT_KEY: self.infotext}
        return save_png(path, self.tensor, {**self.recipe, **foreign})

    @cached_property
    def view(self) -> ImageView:
        """The image with the parts that the predictor reads in it; from it one can pick again.

        Raises:
            UserError: if there is no predictor, as in an exported bundle.
        """
        return self._view(self.tensor)

    def read(self) -> tuple[PartReading, ...]:
        """Whether each part came out that was asked for, in the order of the prompt.

        Raises:
            UserError: if there is no predictor.
        """
        return tuple(self._reading(part, codes) for part, codes in self.composition.codes.items())

    def _reading(self, part: str, asked: tuple[int, ...]) -> PartReading:
        found, cosine = self._compare(self.view, part, asked)
        return PartReading(part, asked, found, found in asked, cosine)

    def attention(self) -> dict[str, NDArray[np.float32]]:
        """Where the tokens of each part look, in one denoising step on this image with noise added.

        Returns:
            Name -> (s, s) float32 on the grid of the backbone's attention layers: the share of its attention that each
            place gives to the part's tokens, summed over them, 0...1. At one place the shares of all parts sum to 1 at
            most; the rest goes to the other words.
        """
        maps = self._attention(self.tensor, self.composition.prompt, self.seed)
        return {part: heat.numpy() for part, heat in maps.items()}

    def attention_overlay(self, part: str, side: int = 384) -> Image.Image:
        """The attention of one part laid over the image, brightest at its own maximum.

        Raises:
            UserError: if the composition does not ask for the part.
        """
        maps = self._attention(self.tensor, self.composition.prompt, self.seed)
        if part not in maps:
            raise UserError(f"{part!r} is not in this composition; it has {', '.join(maps)}.")
        return to_pil(heat_overlay(upscale(self.tensor, side), maps[part]))
