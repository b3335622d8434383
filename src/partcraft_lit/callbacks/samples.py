"""Sample grids over the course of training."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from partcraft_lit.callbacks.binding import TrainingRun
from partcraft_lit.callbacks.hooks import part_module
from partcraft_lit.callbacks.panels import Panel
from partcraft_lit.core.settings import NonNegative, Positive
from partcraft_lit.core.visualization import grid, label, upscale, wrapped


class Samples(Panel):
    """The same prompts with the same seeds, every N steps: ``samples/step_000100.png``.

    Args:
        every_n_steps: optimizer steps between grids.
        columns: images in a row; near a square by default.
        negative_prompt: what the images should not show.
        steps: denoising steps; the module's own by default.
        guidance_scale: the module's own by default.
        min_side: images smaller than this are enlarged, so that a grid of a small model can be looked at.
        subfolder: of the run folder.
    """

    kind = "grid"
    title = "The sample grid"

    def __init__(
        self,
        every_n_steps: Positive,
        columns: Positive | None = None,
        negative_prompt: str = "",
        steps: Positive | None = None,
        guidance_scale: NonNegative | None = None,
        min_side: Positive = 160,
        subfolder: str = "samples",
    ) -> None:
        super().__init__(every_n_steps, subfolder)
        self.columns = columns
        self.negative_prompt = negative_prompt
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.min_side = min_side

    def bind(self, run: TrainingRun) -> None:
        super().bind(run)
        self.prompts, self.seeds = list(run.probe_prompts.prompts), list(run.probe_prompts.seeds)
        self._cached_grid = run.cached_grid

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        if trainer.global_step > 0:
            return self._grid(pl_module)
        look = [self.steps, self.guidance_scale, self.columns, self.min_side]
        return self._cached_grid([dict(self.metadata()), *look], lambda: self._grid(pl_module))

    def _grid(self, pl_module: LightningModule) -> Tensor:
        images = part_module(pl_module).generate(
            self.prompts,
            self.seeds,
            negative_prompt=self.negative_prompt,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
        )
        shown = [upscale(image, max(self.min_side, *image.shape[1:])) for image in images.cpu()]
        captions = wrapped(self.prompts, shown[0].shape[2], size=11)
        captioned = [label(image, caption, size=11) for image, caption in zip(shown, captions, strict=True)]
        return grid(captioned, columns=self.columns, pad=6, border=6)

    def metadata(self) -> Mapping[str, object]:
        return {
            "prompts": json.dumps(self.prompts, ensure_ascii=False),
            "seeds": json.dumps(self.seeds),
            "negative_prompt": self.negative_prompt,
        }
