"""The part predictor's loss on the clean latents that the model predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.core.labels import resize_labels
from partcraft_lit.core.types import ABSENT, StepOutput, TokenizedPrompts
from partcraft_lit.losses.objective import Objective
from partcraft_lit.losses.part_prediction import part_prediction_loss
from partcraft_lit.methods.latent_predictor import LatentPartPredictor


class PartPredictionTerm:
    """Loss term: what the predictor reads off the predicted clean latents, against label map and caption.

    Gradients reach tokens and adapter through the prediction; the predictor itself is frozen. The term is weighted by
    the signal's share of the noisy latents, since nothing can be read off a prediction from pure noise.

    Args:
        weight: of the term.
        predictor: fitted and frozen.
        objective: of the denoiser.
    """

    name = "predictor"
    reads_attention = False

    def __init__(self, weight: float, predictor: LatentPartPredictor, objective: Objective) -> None:
        self.weight = weight
        self._predictor, self._objective = predictor, objective

    def __call__(self, step: StepOutput) -> Tensor:
        """(B,) float32; parts that do not count in the diffusion loss, or are not in the caption, are not scored."""
        batch = step.batch
        predictor = self._predictor.to(batch.latents.device)
        noisy = self._objective.add_noise(batch.latents, batch.noise, batch.timesteps)
        with torch.autocast(batch.latents.device.type, enabled=False):
            clean = self._objective.predicted_latents(noisy, step.model_pred, batch.timesteps)
            labels = resize_labels(batch.label_map, clean.shape[-2:], predictor.num_parts + 1).long()
            if batch.loss_region is not None:
                labels = torch.where(batch.loss_region > 0, labels, predictor.num_parts + 1)
            parts, codes = predictor(clean, labels)
            values = part_prediction_loss(parts, codes, labels, prompted_codes(batch.tokens, predictor.num_parts))
            alpha, _ = self._objective.signal_and_noise(batch.timesteps)
        return alpha * values


def prompted_codes(tokens: TokenizedPrompts, num_parts: int) -> Tensor:
    """(B, M + 1) code of each part in the captions, ``ABSENT`` without one; of two tokens of a part the larger code."""
    parts = torch.arange(num_parts + 1, device=tokens.part_ids.device)
    belongs = tokens.part_ids[:, :, None] == parts  # (B, T, M + 1)
    codes = torch.where(belongs, tokens.code_ids[:, :, None], ABSENT)
    if codes.shape[1] == 0:
        return codes.new_full((len(codes), num_parts + 1), ABSENT)
    return codes.amax(dim=1)
