"""Sampling with classifier-free guidance and per-image noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.images import to_uint8
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import Backbone, Conditioning, TokenizedPrompts

#: Name -> diffusers' class and its arguments beside the model's noise schedule.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    # Starts from pure noise, which matters with few steps.
    "dpm++_trailing": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "timestep_spacing": "trailing"},
    ),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
}
#: Likewise for models of flow matching.
FLOW_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}


@torch.no_grad()
def sample(
    backbone: Backbone,
    tokens: TokenizedPrompts,
    part_vectors: Tensor | None,
    *,
    negative_tokens: TokenizedPrompts | None = None,
    negative_vectors: Tensor | None = None,
    seeds: Sequence[int],
    prompt_of: Sequence[int] | None = None,
    steps: int = 30,
    guidance_scale: float = 7.5,
    scheduler: str = "dpm++",
    batch_size: int | None = None,
) -> Tensor:
    """One image per seed.

    Image k depends on its prompt and seed k alone, up to rounding in batches of another size.

    Args:
        backbone: the model; its device is used.
        tokens: B prompts.
        part_vectors: (B, T, width) for the part tokens, or None without any.
        negative_tokens: B negative prompts or one for all; None for the unconditional embedding.
        negative_vectors: for part tokens in negative prompts.
        seeds: one per image.
        prompt_of: index of each image's prompt, so that each prompt is encoded once; None: prompt k for image k.
        steps: denoising steps.
        guidance_scale: 1 disables guidance, the negative prompt and half of the cost; see ``guidance_rescale``.
        scheduler: "dpm++", "dpm++_trailing" (for few steps) or "unipc", of second order and multistep; or "ddim",
            "euler" or "ddpm". For flow matching "flow_euler" or "flow_heun".
        batch_size: None for all images at once.

    Returns:
        (images, 3, resolution, resolution) uint8, on the CPU.

    Raises:
        UserError: if the scheduler is unknown or a number is out of range.
        ValueError: if the numbers of prompts, seeds and negative prompts do not match.
    """
    count = len(seeds)
    _check_settings(backbone, steps, guidance_scale, scheduler, batch_size)
    rows = torch.arange(count) if prompt_of is None else torch.tensor(prompt_of, dtype=torch.long)
    _check_counts(rows, seeds, tokens, negative_tokens, paired=prompt_of is None)
    if count == 0:
        return torch.empty((0, 3, backbone.resolution, backbone.resolution), dtype=torch.uint8)
    guided = guidance_scale != 1.0
    with _evaluation_mode(backbone.denoiser):
        positive = _encode(backbone, tokens, part_vectors)
        negative = _encode_negative(backbone, negative_tokens, negative_vectors) if guided else None
        rows = rows.to(positive.encoder_hidden_states.device)
        chunks = [
            _denoise(
                backbone,
                _rows(positive, rows[start:stop]),
                None if negative is None else _rows(negative, rows[start:stop]),
                seeds[start:stop],
                make_scheduler(backbone.noise_scheduler, scheduler),
                steps,
                guidance_scale,
            )
            for start, stop in _ranges(count, batch_size or count)
        ]
    return torch.cat(chunks)


def scheduler_class(name: str) -> tuple[str, dict[str, Any]]:
    """diffusers' class of a sampling scheduler, and its arguments."""
    return (SCHEDULERS | FLOW_SCHEDULERS)[name]


def make_scheduler(noise_scheduler: Any, name: str) -> Any:
    """A sampling scheduler with the noise schedule and prediction type of the model."""
    import diffusers

    kind, settings = scheduler_class(name)
    return getattr(diffusers, kind).from_config(noise_scheduler.config, **settings)


def initial_noise(backbone: Backbone, generators: Sequence[torch.Generator]) -> Tensor:
    """(B, C, h, w) standard normal on the CPU, one generator per image."""
    side = backbone.resolution // backbone.vae_scale_factor
    shape = (backbone.latent_channels, side, side)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _denoise(
    backbone: Backbone,
    positive: Conditioning,
    negative: Conditioning | None,
    seeds: Sequence[int],
    scheduler: Any,
    steps: int,
    guidance_scale: float,
) -> Tensor:
    device = positive.encoder_hidden_states.device
    generators = [torch_generator(seed, "sample") for seed in seeds]
    backbone.set_timesteps(scheduler, steps, device)
    conditioning = positive if negative is None else _joined(negative, positive)
    latents = initial_noise(backbone, generators).to(device)
    flows = backbone.flow is not None  # these schedulers neither scale the noise nor the model's input
    if not flows:
        latents = latents * scheduler.init_noise_sigma
    extra = {"generator": generators} if isinstance(scheduler, _stochastic()) else {}
    rescale = guidance_rescale(backbone.noise_scheduler)
    for timestep in scheduler.timesteps:
        model_input = latents if flows else scheduler.scale_model_input(latents, timestep)
        if negative is not None:
            model_input = torch.cat([model_input, model_input])  # negative prompts first, as in ``conditioning``
        model_pred = backbone.denoise(model_input, timestep.expand(len(model_input)), conditioning)
        if negative is not None:
            uncond, cond = model_pred.chunk(2)
            model_pred = rescale_noise_cfg(uncond + guidance_scale * (cond - uncond), cond, rescale)
        latents = scheduler.step(model_pred, timestep, latents, **extra).prev_sample
    return to_uint8(backbone.decode_latents(latents)).cpu()


def guidance_rescale(noise_scheduler: Any) -> float:
    """How much of guidance's gain in contrast is taken back; diffusers' pipelines have an argument of this name.

    0.7 for a noise schedule of zero terminal SNR, on which guidance would overexpose images, else 0.

    Source: Lin et al. (arXiv 2305.08891), section 3.4.
    """
    return 0.7 if getattr(noise_scheduler.config, "rescale_betas_zero_snr", False) else 0.0


def rescale_noise_cfg(guided: Tensor, cond: Tensor, rescale: float) -> Tensor:
    """The guided prediction, (B, C, h, w), with ``rescale`` of the way to the deviation of the conditional one.

    Source: Lin et al. (arXiv 2305.08891), equations 15 and 16.
    """
    if not rescale:
        return guided
    ratio = cond.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return guided * (rescale * ratio + 1 - rescale)


def _stochastic() -> tuple[type, ...]:
    """Schedulers that draw noise in every step, from a list of generators."""
    from diffusers import DDPMScheduler

    return (DDPMScheduler,)


def _encode(backbone: Backbone, tokens: TokenizedPrompts, part_vectors: Tensor | None) -> Conditioning:
    device = next(backbone.denoiser.parameters()).device
    vectors = None if part_vectors is None else part_vectors.to(device)
    return backbone.encode_prompts(tokens.to(device), vectors)


def _encode_negative(backbone: Backbone, tokens: TokenizedPrompts | None, vectors: Tensor | None) -> Conditioning:
    return backbone.encode_unconditional() if tokens is None else _encode(backbone, tokens, vectors)


def _rows(conditioning: Conditioning, rows: Tensor) -> Conditioning:
    """Selects rows of a conditioning; a single row is expanded."""

    def cut(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return value.expand(len(rows), *value.shape[1:]) if len(value) == 1 else value[rows]

    return _mapped(lambda values: cut(values[0]), conditioning)


def _joined(first: Conditioning, second: Conditioning) -> Conditioning:
    def join(values: Sequence[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.cat(present) if len(present) == len(values) else None

    return _mapped(join, first, second)


def _mapped(function: Callable[[Sequence[Tensor | None]], Tensor | None], *each: Conditioning) -> Conditioning:
    """Applies a function to each field of conditionings."""
    values: dict[str, Any] = {f.name: function([getattr(one, f.name) for one in each]) for f in fields(Conditioning)}
    return Conditioning(**values)


def _ranges(count: int, batch_size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, batch_size):
        yield start, min(start + batch_size, count)


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def check_scheduler(scheduler: str, flows: bool) -> None:
    """Checks that a sampling scheduler is for models of this kind.

    Args:
        scheduler: its name.
        flows: whether the model was trained by flow matching.

    Raises:
        UserError: if it is unknown, or for models of the other kind.
    """
    known, others = (FLOW_SCHEDULERS, SCHEDULERS) if flows else (SCHEDULERS, FLOW_SCHEDULERS)
    if scheduler in others:
        kinds = ("flow matching", "diffusion") if flows else ("diffusion", "flow matching")
        raise UserError(
            f"scheduler={scheduler!r} is for {kinds[1]}, and this backbone was trained by {kinds[0]}: set "
            f"sample.scheduler to {' or '.join(known)}."
        )
    if scheduler not in known:
        raise UserError(f"scheduler={scheduler!r} is unknown. {did_you_mean(scheduler, known)}")


def _check_settings(
    backbone: Backbone, steps: int, guidance_scale: float, scheduler: str, batch_size: int | None
) -> None:
    check_scheduler(scheduler, getattr(backbone, "flow", None) is not None)
    longest = backbone.noise_scheduler.config.num_train_timesteps
    if not 1 <= steps <= longest:
        raise UserError(f"steps={steps}: it must be between 1 and {longest}, the length of the noise schedule.")
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UserError(f"guidance_scale={guidance_scale}: it must be a number of at least 0; 1 turns guidance off.")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size={batch_size}: it must be at least 1, or null for all at once.")


def _check_counts(
    rows: Tensor,
    seeds: Sequence[int],
    tokens: TokenizedPrompts,
    negative_tokens: TokenizedPrompts | None,
    paired: bool,
) -> None:
    prompts = len(tokens.part_positions)
    if paired and prompts != len(seeds):
        raise ValueError(f"{prompts} prompts and {len(seeds)} seeds: give one seed per prompt.")
    if len(rows) != len(seeds) or not all(0 <= row < prompts for row in rows.tolist()):
        raise ValueError(f"prompt_of must name one of {prompts} prompts for each of {len(seeds)} seeds.")
    negatives = 1 if negative_tokens is None else len(negative_tokens.part_positions)
    if negatives not in (1, prompts):
        raise ValueError(f"{negatives} negative prompts for {prompts} prompts: give one for all, or one each.")
