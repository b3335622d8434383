"""Attention of part tokens, laid over images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from partcraft_lit.callbacks.binding import TrainingRun
from partcraft_lit.callbacks.hooks import log_image, log_metrics, part_module
from partcraft_lit.callbacks.leakage import save_leakage
from partcraft_lit.callbacks.panels import Panel
from partcraft_lit.core.images import read_image
from partcraft_lit.core.settings import Positive
from partcraft_lit.core.visualization import fit_square, grid, heat_overlay, label, overlay_parts, part_colors
from partcraft_lit.metrics.leakage import leakage_matrix


class AttentionMaps(Panel):
    """For each probe image one row: the image with its parts, then where each part token of its caption looks.

    Beside the image it logs ``parts/attention_inside`` (mean over parts) and ``parts/attention_inside_<part>``: the
    share of a part's attention that lies on the part itself; and as an image in ``<subfolder>_leakage`` the whole
    matrix, of each part's attention on each part.

    Args:
        every_n_steps: optimizer steps between images.
        side: pixels of one cell of the image.
        subfolder: of the run folder.
    """

    kind = "overlay"
    title = "The attention overlay"

    def __init__(self, every_n_steps: Positive, side: Positive = 144, subfolder: str = "attention") -> None:
        super().__init__(every_n_steps, subfolder)
        self.side = side

    def bind(self, run: TrainingRun) -> None:
        super().bind(run)
        self.batch, self.part_names = run.probe_batch, list(run.part_names)

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        module = part_module(pl_module)
        batch = self.batch.to(pl_module.device)
        maps = module.probe_attention(batch).float().cpu()
        pixels = module.backbone.decode_latents(batch.latents).float().cpu()
        images = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        ids, labels = self.batch.tokens.part_ids.cpu(), self.batch.label_map.cpu()
        matrix = leakage_matrix(maps, ids, labels, len(self.part_names) - 1)
        self._log_inside(trainer, matrix)
        self._show_leakage(trainer, matrix)
        return attention_panel(
            images, self.batch.label_map.cpu(), maps, self.batch.tokens.part_ids.cpu(), self.part_names, self.side
        )

    def metadata(self) -> Mapping[str, object]:
        return {"prompts": json.dumps(self.batch.prompts, ensure_ascii=False)}

    def _log_inside(self, trainer: Trainer, matrix: Tensor) -> None:
        inside = matrix.diagonal()
        metrics = {
            f"parts/attention_inside_{name}": float(value)
            for name, value in zip(self.part_names, inside, strict=True)
            if not value.isnan()
        }
        if metrics:
            log_metrics(trainer, {"parts/attention_inside": float(inside.nanmean()), **metrics})

    def _show_leakage(self, trainer: Trainer, matrix: Tensor) -> None:
        step = trainer.global_step
        folder = self.folder.with_name(f"{self.folder.name}_leakage")
        path = save_leakage(folder / self.path(step).name, matrix, self.part_names, step)
        log_image(trainer, f"{self.subfolder}/leakage", read_image(path), caption=f"step {step}")


def attention_panel(
    images: Tensor, label_map: Tensor, maps: Tensor, part_ids: Tensor, part_names: Sequence[str], side: int = 144
) -> Tensor:
    """The image that :class:`AttentionMaps` draws; one column per part that any caption names.

    Args:
        images: (B, 3, H, W) uint8.
        label_map: (B, s, s) part of each place.
        maps: (B, T, s, s) attention of each part token.
        part_ids: (B, T) part of each token, -1 where unused.
        part_names: names of all M + 1 parts.
        side: pixels of one cell.
    """
    colors = part_colors(len(part_names))
    shown = [part for part in range(len(part_names)) if bool((part_ids == part).any())]
    cells = []
    for row, image in enumerate(images):
        whole = fit_square(image, side)
        cells.append(label(overlay_parts(whole, label_map[row], colors), "parts", "above", size=12))
        for part in shown:
            heat = maps[row][part_ids[row] == part].sum(dim=0)
            cells.append(
                label(heat_overlay(whole, heat), _heading(part_names[part], heat, label_map[row] == part), "above", 12)
            )
    return grid(cells, columns=len(shown) + 1, pad=6, border=6)


def _heading(name: str, heat: Tensor, region: Tensor) -> str:
    total = float(heat.sum())
    return f"{name}  {float(heat[region].sum()) / total:.0%} inside" if total > 0 else f"{name}  (no token)"
