"""The training step: what goes in, what comes out, what trains, and what a checkpoint holds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from partcraft_lit.backbones.sampling import sample
from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.backbones.trainable_weights import trainable_groups
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.finite import first_nonfinite
from partcraft_lit.core.images import to_unit
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import AttentionRecorder, Backbone, LossTerm, StepOutput, TokenizedPrompts, TrainingBatch
from partcraft_lit.losses.area import part_area_weights
from partcraft_lit.losses.diffusion import diffusion_loss
from partcraft_lit.losses.objective import objective_of
from partcraft_lit.losses.region import combine_regions, prompted_region
from partcraft_lit.losses.settings import RegionMean, SnrForm
from partcraft_lit.methods.method import DrawsItself, Method
from partcraft_lit.methods.optim import OptimSettings
from partcraft_lit.parts.corrections import untrained_codes
from partcraft_lit.tokens.growth import grow
from partcraft_lit.tokens.weights import apply_part_weights


class PersonalizationModule(LightningModule):
    """A frozen backbone with adapters, and a method with part tokens, trained together.

    Loss terms beside the diffusion loss are added through ``add_loss_term``; a term that reads attention asks for it
    with ``request_attention``. Without such a request no capture is installed.

    Args:
        backbone: with its adapters in place; of its parameters only those train that require gradients.
        method: captions, tokens and their vectors.
        optim: AdamW's settings.
        snr_gamma: gamma of min-SNR weighting, or None.
        snr_form: see ``min_snr_weight``.
        sampling: how ``generate`` draws.
        region: where the diffusion loss counts: "all" places, or those of the "prompted" parts.
        region_mean: what the error of a region is divided by, see ``diffusion_loss``.
        prior_weight: of the diffusion loss of prior samples.
        small_parts, outlines: weights of the diffusion loss by area, see ``part_area_weights``; 0 and 1 for none.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        optim: OptimSettings,
        snr_gamma: float | None,
        sampling: SampleSettings,
        *,
        snr_form: SnrForm = "published",
        region: Literal["all", "prompted"] = "all",
        region_mean: RegionMean = "latents",
        prior_weight: float = 1.0,
        small_parts: float = 0.0,
        outlines: float = 1.0,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold what trains; load_state_dict checks the names itself
        self.backbone = backbone
        self.method = method
        self._optim = optim
        self._snr_gamma = snr_gamma
        self._snr_form: SnrForm = snr_form
        self._sampling = sampling
        self._region: Literal["all", "prompted"] = region
        self._region_mean: RegionMean = region_mean
        self._prior_weight = prior_weight
        self._small_parts, self._outlines = small_parts, outlines
        self._terms: dict[str, LossTerm] = {}
        self._capture: AttentionRecorder | None = None
        self._requests = 0
        #: Codes of each part of a corrected dictionary, and of the one underneath; see ``use_corrected``.
        self._num_codes: tuple[int, ...] | None = None
        self._trained_codes: tuple[int, ...] = tuple(method.vocabulary.num_codes)
        self._codes_before: tuple[int, ...] = ()
        # Of learning rates: what the checkpoint was trained with, and what came to it in this process.
        self._scale_before, self._scale_here = 1.0, 1.0

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        step = self.forward_step(batch)
        weight = objective_of(self.backbone).weights(batch.timesteps, self._snr_gamma, self._snr_form)
        errors = diffusion_loss(step.model_pred, step.target, weight, self._loss_region(batch), self._region_mean)
        diffusion = _mean(errors, batch.prior)
        total = diffusion
        metrics = {"train/loss_diffusion": diffusion.detach()}
        if batch.prior is not None:
            # Without a mask, and so without the factor of "region": the published codes average prior images plainly.
            prior = _mean(diffusion_loss(step.model_pred, step.target, weight), ~batch.prior)
            metrics["train/loss_prior"] = prior.detach()
            total = total + self._prior_weight * prior
        for term in self._terms.values():
            value = _mean(term(step), batch.prior)
            metrics[f"train/loss_{term.name}"] = value.detach()
            total = total + term.weight * value
        metrics["train/loss"] = total.detach()
        self.log_dict(metrics, batch_size=len(batch.latents), sync_dist=True)  # of all processes' shares
        return total

    def forward_step(self, batch: TrainingBatch) -> StepOutput:
        """One forward pass of a batch that is complete: no chance is left in it."""
        objective = objective_of(self.backbone)
        conditioning = self.backbone.encode_prompts(batch.tokens, self.part_vectors(batch), batch.crops)
        noisy_latents = objective.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = objective.target(batch.latents, batch.noise, batch.timesteps)
        capture = self._capture
        with capture.armed(self._captured_positions(batch)) if capture else nullcontext():
            model_pred = self.backbone.denoise(noisy_latents, batch.timesteps, conditioning)
        maps, words = self._maps(capture, batch)
        return StepOutput(batch, model_pred, target, maps, words)

    def _captured_positions(self, batch: TrainingBatch) -> Tensor:
        """(B, T) places of part tokens; (B, 2 T) with the places behind them, for methods that watch these too."""
        positions = batch.tokens.part_positions
        if not self.method.captures_noun_attention:
            return positions
        return torch.cat([positions, torch.where(positions < 0, positions, positions + 1)], dim=1)

    def _maps(self, capture: AttentionRecorder | None, batch: TrainingBatch) -> tuple[Tensor | None, Tensor | None]:
        """Attention of part tokens, and of the words behind them."""
        if capture is None:
            return None, None
        maps = capture.maps()
        capture.clear()  # the maps live on in the graph; the capture must not keep them beyond the step
        if not self.method.captures_noun_attention:
            return maps, None
        tokens = batch.tokens.part_positions.shape[1]
        return maps[:, :tokens], maps[:, tokens:]

    def _loss_region(self, batch: TrainingBatch) -> Tensor | None:
        """(B, h, w) how much each latent counts, or None where all do."""
        region, size = batch.loss_region, (int(batch.latents.shape[-2]), int(batch.latents.shape[-1]))
        if self._region != "all":
            region = combine_regions(prompted_region(batch.label_map, batch.tokens.part_ids, *size), region)
        if self._small_parts == 0 and self._outlines == 1:
            return region
        parts = self.method.vocabulary.num_parts
        weights = part_area_weights(batch.label_map, parts, *size, self._small_parts, self._outlines)
        return combine_regions(weights, region)

    def part_vectors(self, batch: TrainingBatch) -> Tensor:
        return self.method.part_vectors(batch.tokens)

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": parameters, "lr": self._optim.rate(name), "name": name}
            for name, parameters in self.trainable_groups().items()
        ]
        optimizer = torch.optim.AdamW(
            groups,
            betas=self._optim.betas,
            eps=self._optim.eps,
            weight_decay=self._optim.weight_decay,
            fused=True,
        )
        # A fused optimizer offers to undo the scaling of gradients by itself, in the step; clipping comes before that.
        optimizer._step_supports_amp_scaling = False
        if self._optim.is_constant:
            return optimizer
        factors: list[Callable[[int], float]] = [
            functools.partial(self._optim.factor, str(group["name"])) for group in groups
        ]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def _rate_scale(self) -> float:
        return self._scale_before * self._scale_here

    def scale_rates(self, factor: float) -> None:
        """All learning rates of the next fit, and of runs that continue its checkpoints, times ``factor``."""
        self._scale_here *= factor

    def on_train_start(self) -> None:
        """Rates and schedules are those of the settings at this step; a checkpoint has those of the run that wrote it.

        The two differ where a run that had cooled down is extended, and where a branch has other settings.
        """
        schedules = self.lr_schedulers()
        for optimizer in self.trainer.optimizers:
            rates = [self._rate_scale * self._optim.rate(group["name"]) for group in optimizer.param_groups]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self._optim.factor(group["name"], self.global_step)
                group.update(betas=self._optim.betas, eps=self._optim.eps, weight_decay=self._optim.weight_decay)
            if schedules is not None:
                cast(Any, schedules).base_lrs = rates
                cast(Any, schedules).last_epoch = self.global_step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """-1, by which Lightning passes over the batch, where a callback has ended training before it."""
        return -1 if self.trainer.should_stop else None

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Groups that rest keep their state: AdamW passes by what has no gradient, and clipping does not see it."""
        for group in optimizer.param_groups:
            if not self._optim.trains(group["name"], self.global_step):
                for parameter in group["params"]:
                    parameter.grad = None

    def trainable_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that train, by the name of their learning rate; groups of nothing are left out."""
        groups = {**trainable_groups(self.backbone), **self.method.trainable_groups()}
        return {name: parameters for name, parameters in groups.items() if parameters}

    # What callbacks use.

    def add_loss_term(self, term: LossTerm) -> None:
        """From now on ``term.weight`` times the term's mean is part of the loss.

        Raises:
            ValueError: if a term of that name is there already.
        """
        if term.name in self._terms or term.name == "diffusion":
            raise ValueError(f"There is a loss term {term.name!r} already; give the new one another name.")
        self._terms[term.name] = term

    def remove_loss_term(self, name: str) -> None:
        del self._terms[name]

    def request_attention(self) -> None:
        """From now on ``StepOutput.attention_maps`` is filled; requests are counted."""
        if self._capture is None:
            self._capture = self.backbone.capture_attention()
        self._requests += 1

    def release_attention(self) -> None:
        """Takes one request back; with the last one the layers get their own processors again."""
        self._requests -= 1
        if self._requests == 0 and self._capture is not None:
            self._capture.remove()
            self._capture = None

    @property
    def sampling(self) -> SampleSettings:
        """How ``generate`` draws."""
        return self._sampling

    def use_sampling(self, sampling: SampleSettings) -> None:
        """Other settings for ``generate`` from now on."""
        self._sampling = sampling

    @torch.no_grad()
    def generate(
        self,
        prompts: list[str],
        seeds: Sequence[int],
        negative_prompt: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """(B, 3, H, W) uint8, one image per prompt (with part tokens) and seed; defaults are the run's settings.

        The text encoder reads each distinct prompt once.
        """
        settings = self._sampling
        if isinstance(self.method, DrawsItself):
            asked: dict[str, Any] = {
                "steps": steps,
                "guidance_scale": guidance_scale,
                "negative_prompt": negative_prompt or None,
            }
            chosen = {key: value for key, value in asked.items() if value is not None}
            return self.method.draw(self.backbone, prompts, seeds, replace(settings, **chosen))
        distinct = list(dict.fromkeys(prompts))
        tokens = self.method.tokenize(distinct).to(self.device)
        negative_prompt = negative_prompt or settings.negative_prompt
        negative = self.method.tokenize([negative_prompt]).to(self.device) if negative_prompt else None
        return sample(
            self.backbone,
            tokens,
            self._weighted_vectors(tokens),
            negative_tokens=negative,
            negative_vectors=None if negative is None else self._weighted_vectors(negative),
            seeds=seeds,
            prompt_of=[distinct.index(prompt) for prompt in prompts],
            steps=steps or settings.steps,
            guidance_scale=settings.guidance_scale if guidance_scale is None else guidance_scale,
            scheduler=settings.scheduler,
            batch_size=settings.batch_size,
        )

    def _weighted_vectors(self, tokens: TokenizedPrompts) -> Tensor:
        """``part_vectors`` of the method with the prompt's part weights applied."""
        vectors = self.method.part_vectors(tokens)
        if tokens.part_weights is None:
            return vectors
        return apply_part_weights(vectors, tokens, self.method.bake(), self.method.vocabulary.num_codes)

    @torch.no_grad()
    def probe_attention(self, batch: TrainingBatch) -> Tensor:
        """(B, T, s, s) attention of each part token in one forward pass that trains nothing."""
        self.request_attention()
        try:
            maps = self.forward_step(batch).attention_maps
        finally:
            self.release_attention()
        return cast(Tensor, maps)

    @torch.no_grad()
    def image_attention(
        self, images: Tensor, prompts: list[str], seeds: Sequence[int]
    ) -> tuple[Tensor, TokenizedPrompts]:
        """Attention of the part tokens of prompts on images, in one denoising step at ``Objective.probe_timestep``.

        Args:
            images: (B, 3, H, W) uint8, of the backbone's resolution.
            prompts: one per image.
            seeds: of the noise that is added, one per image.

        Returns:
            (B, T, s, s) probabilities, as ``StepOutput.attention_maps``, and the prompts with their part tokens.
        """
        backbone = self.backbone
        tokens = self.method.tokenize(prompts).to(self.device)
        latents, _ = backbone.encode_images(to_unit(images).to(self.device))
        generators = [torch_generator(seed, "attention") for seed in seeds]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
        objective = objective_of(backbone)
        timesteps = torch.full((len(images),), objective.probe_timestep, device=self.device)
        noisy_latents = objective.add_noise(latents, noise.to(latents), timesteps)
        conditioning = backbone.encode_prompts(tokens, self._weighted_vectors(tokens))
        capture = backbone.capture_attention()
        try:
            with capture.armed(tokens.part_positions):
                backbone.denoise(noisy_latents, timesteps, conditioning)
            maps = capture.maps()
        finally:
            capture.remove()
        return maps.cpu(), tokens.to("cpu")

    def use_corrected(self, base_codes: Sequence[int]) -> None:
        """Parts are corrected: checkpoints of fewer parts or codes may be loaded, and record what they have trained.

        Args:
            base_codes: codes of each part before correction, which a checkpoint without such a record has trained.
        """
        self._num_codes = tuple(self.method.vocabulary.num_codes)
        self._trained_codes = tuple(base_codes)

    @property
    def untrained_codes(self) -> dict[int, list[int]]:
        """Part -> codes that the weights of the loaded checkpoint were never trained for."""
        return untrained_codes(self._trained_codes, self.method.vocabulary.num_codes)

    # What a checkpoint holds.

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What trains, nothing else."""
        trainable = set(self._trainable_names())
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trainable}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes exactly what trains.

        Raises:
            UserError: if a tensor is missing, unexpected, of another shape, or not finite.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in self._trainable_names().items()}
        _check_same(shapes, {name: tuple(value.shape) for name, value in state_dict.items()})
        if name := first_nonfinite(state_dict):
            raise UserError(f"The checkpoint cannot be used: its weights are not finite ({name}). Take an earlier one.")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["frozen"] = {"backbone": self.backbone.name, "hash": self.backbone.hash}
        if self._rate_scale != 1.0:
            checkpoint["rate_scale"] = self._rate_scale
        if self._num_codes is not None:
            checkpoint["num_codes"] = [
                max(pair) for pair in itertools.zip_longest(self._num_codes, self._codes_before, fillvalue=0)
            ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._scale_before = float(checkpoint.get("rate_scale", 1.0))
        frozen = checkpoint.get("frozen", {})
        if frozen and frozen.get("hash") != self.backbone.hash:
            raise UserError(
                f"The checkpoint was trained on weights {frozen.get('hash', '')[:12]} of {frozen.get('backbone')!r}, "
                f"but the backbone here is {self.backbone.name!r} with weights {self.backbone.hash[:12]}. Load the "
                "same backbone, or start a new run with ckpt_path=null."
            )
        if self._num_codes is not None:
            self._trained_codes = self._codes_before = tuple(checkpoint.get("num_codes", self._trained_codes))
            grow(checkpoint, self._trainable_names(), list(itertools.chain(*self.trainable_groups().values())))

    def _trainable_names(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def _mean(values: Tensor, left_out: Tensor | None) -> Tensor:
    """Mean of (B,) values without those that are left out; a mask and no indexing, which would wait for the device."""
    if left_out is None:
        return values.mean()
    return values.masked_fill(left_out, 0.0).sum() / (~left_out).sum().clamp_min(1)


def _check_same(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    def first(names: Iterable[str]) -> str:
        names = sorted(names)
        return f"{len(names)}, for instance {names[0]!r}" if names else "none"

    missing, unexpected = expected.keys() - given.keys(), given.keys() - expected.keys()
    if missing or unexpected:
        raise UserError(
            f"The checkpoint does not fit this run: missing tensors {first(missing)}; unexpected {first(unexpected)}. "
            "It belongs to other settings of method, mapper or lora."
        )
    for name, shape in expected.items():
        if given[name] != shape:
            raise UserError(
                f"The checkpoint does not fit this run: {name!r} has shape {given[name]}, expected {shape}. M, K, "
                "lora.rank or the backbone differ."
            )
