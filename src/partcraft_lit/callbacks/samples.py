"""Sample grids over the course of training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from partcraft_lit.callbacks.hooks import check_pairs, part_module
from partcraft_lit.callbacks.panels import Panel
from partcraft_lit.core.visualization import grid, label, upscale


class Samples(Panel):
    """The same prompts with the same seeds, every N steps: ``samples/step_000100.png``.

    Args:
        prompts: probe prompts, with part tokens.
        seeds: one per prompt, fixed for the whole run, so that images of two steps differ by training alone.
        folder: where the grids go.
        every_n_steps: optimizer steps between grids.
        columns: images in a row; near a square by default.
        negative_prompt: what the images should not show.
        steps: denoising steps; the module's own by default.
        guidance_scale: the module's own by default.
        min_side: images smaller than this are enlarged, so that a grid of a small model can be looked at.
        remember: given what decides the grid before training, beside the model, and how to draw it, returns it; equal
            starts have it in common. None draws it.

    Raises:
        ValueError: unless there is one seed per prompt, and at least one.
    """

    key = "samples/grid"
    title = "The sample grid"

    def __init__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        folder: Path | str,
        every_n_steps: int,
        columns: int | None = None,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
        min_side: int = 160,
        remember: Callable[[Sequence[Any], Callable[[], Tensor]], Tensor] | None = None,
    ) -> None:
        check_pairs(prompts, seeds)
        super().__init__(folder, every_n_steps)
        self.prompts = list(prompts)
        self.seeds = list(seeds)
        self.columns = columns
        self.negative_prompt = negative_prompt
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.min_side = min_side
        self._remember = remember

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        if self._remember is None or trainer.global_step > 0:
            return self._grid(pl_module)
        look = [self.steps, self.guidance_scale, self.columns, self.min_side]
        return self._remember([dict(self.metadata()), *look], lambda: self._grid(pl_module))

    def _grid(self, pl_module: LightningModule) -> Tensor:
        images = part_module(pl_module).generate(
            self.prompts,
            self.seeds,
            negative_prompt=self.negative_prompt,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
        )
        shown = [upscale(image, max(self.min_side, *image.shape[1:])) for image in images.cpu()]
        captioned = [label(image, prompt, size=11) for image, prompt in zip(shown, self.prompts, strict=True)]
        return grid(captioned, columns=self.columns, pad=6, border=6)

    def metadata(self) -> Mapping[str, object]:
        return {
            "prompts": json.dumps(self.prompts, ensure_ascii=False),
            "seeds": json.dumps(self.seeds),
            "negative_prompt": self.negative_prompt,
        }
