"""A training step as PartCraft's released trainer does it, written anew from a description of that trainer.

Nothing is kept from one step to the next: autoencoder, patch features, masks and texts are computed every time; all
networks are float32; attention is eager in all layers, so every probability map exists; the adapter is on all
attention; part vectors and maps are placed by loops over the batch and the parts that read single values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: (B, 3, H, W) images in -1...1 -> (B, h, w, D) features of their patches.
PatchFeatures = Callable[[Tensor], Tensor]


@dataclass
class ReleasedInputs:
    """Inputs of a step: images, codes, and the values of its random draws."""

    pixel_values: Tensor  # (B, 3, H, W) in -1...1
    input_ids: Tensor  # (B, L); placeholders have ids from the end of the vocabulary on
    codes: Tensor  # (B, M + 1)
    timesteps: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w)
    posterior_noise: Tensor  # (B, C, h, w)


@dataclass
class ReleasedStep:
    """The networks, and what a step leaves behind.

    Attributes:
        unet, vae, text_encoder: diffusers' and transformers' classes; the UNet already has its adapter.
        mapper: (part ids, code ids) -> vectors.
        features: describes patches.
        foreground, parts: centroids of the first two tiers, (2, D) and (M + 1, D).
        alphas_cumprod: (timesteps,).
        scale: of the latents.
        attention_size: side of the maps that the loss reads.
        snr_gamma: of min-SNR weighting.
        velocity: the UNet predicts the velocity, as the miniature does, and not the noise.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    mapper: nn.Module
    features: PatchFeatures
    foreground: Tensor
    parts: Tensor
    alphas_cumprod: Tensor
    scale: float
    attention_size: int
    snr_gamma: float
    velocity: bool
    maps: list[Tensor] = field(default_factory=list)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.unet.set_attn_processor(EagerAttention(self.maps, self.attention_size))

    def loss(self, inputs: ReleasedInputs) -> tuple[Tensor, Tensor]:
        """Diffusion loss and attention loss, scalars."""
        posterior = self.encode(inputs)
        latents = (posterior.mean + posterior.std * inputs.posterior_noise) * self.scale
        masks = self.segment(inputs.pixel_values)  # (B, M + 1, s, s)
        alpha = self.alphas_cumprod[inputs.timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * inputs.noise
        text = self.encode_text(inputs)
        self.maps.clear()
        prediction = self.unet(noisy, inputs.timesteps, encoder_hidden_states=text).sample
        snr = alpha.flatten() / (1 - alpha.flatten())
        snr = snr + float(self.velocity)  # before the minimum: pure noise has the weight 1
        weight = torch.minimum(snr, torch.full_like(snr, self.snr_gamma)) / snr
        target = alpha.sqrt() * inputs.noise - (1 - alpha).sqrt() * latents if self.velocity else inputs.noise
        diffusion = ((prediction - target).square().mean(dim=(1, 2, 3)) * weight).mean()
        return diffusion, self.attention_loss(inputs.input_ids, masks)

    @torch.no_grad()
    def encode(self, inputs: ReleasedInputs) -> Any:
        posterior = self.vae.encode(inputs.pixel_values).latent_dist
        self.seen |= {"mean": posterior.mean * self.scale, "std": posterior.std * self.scale}
        return posterior

    @torch.no_grad()
    def segment(self, pixel_values: Tensor) -> Tensor:
        """(B, M + 1, s, s) masks from features of each image, one at a time."""
        every = []
        for image in pixel_values:
            patches = self.features(image[None])[0]  # (h, w, D)
            height, width, dim = patches.shape
            flat = patches.reshape(-1, dim)
            front = _cosine(flat, self.foreground).argmax(dim=1) == 0
            kept = torch.where(front[:, None], flat, -torch.ones_like(flat))
            labels = _cosine(kept, self.parts).argmax(dim=1).view(height, width)
            masks = torch.stack([(labels == part).float() for part in range(len(self.parts))])
            every.append(F.interpolate(masks[None], size=(self.attention_size,) * 2, mode="nearest")[0])
        self.seen["label_map"] = torch.stack(every).argmax(dim=1).to(torch.uint8)
        return torch.stack(every)

    def encode_text(self, inputs: ReleasedInputs) -> Tensor:
        """(B, L, width), part vectors put in place one by one."""
        table = self.text_encoder.get_input_embeddings()
        vocabulary = table.weight.shape[0]
        part_ids = torch.arange(len(self.parts), device=inputs.codes.device).expand(len(inputs.codes), -1)
        vectors = self.mapper(part_ids, inputs.codes)

        def overwrite(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            rows = []
            for row, ids in enumerate(inputs.input_ids):
                embedded = output[row].clone()
                for part in range(len(self.parts)):
                    for place in (ids == vocabulary + part).nonzero().flatten().tolist():
                        embedded[place] = vectors[row, part]
                rows.append(embedded)
            return torch.stack(rows)

        handle = table.register_forward_hook(overwrite)
        try:
            known = inputs.input_ids.clamp_max(vocabulary - 1)
            return self.text_encoder(known).last_hidden_state
        finally:
            handle.remove()

    def attention_loss(self, input_ids: Tensor, masks: Tensor) -> Tensor:
        """Binary cross-entropy between normalised maps and masks."""
        vocabulary = self.text_encoder.get_input_embeddings().weight.shape[0]
        mean = torch.stack([_mean_over_heads(probs, len(input_ids)) for probs in self.maps]).mean(dim=0)
        chosen = []
        for row, ids in enumerate(input_ids):
            for part in range(len(self.parts)):
                place = (ids == vocabulary + part).nonzero().flatten()
                if len(place) > 1:
                    raise ValueError("A part token occurs twice in a caption, which the released way cannot train.")
                found = mean[row, :, int(place.item())] if len(place) else torch.zeros_like(mean[row, :, 0])
                chosen.append(found.view(self.attention_size, self.attention_size))
        maps = torch.stack(chosen).view(masks.shape)
        shares = maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-6)
        return F.binary_cross_entropy(shares.clamp(0, 1), masks)


class EagerAttention:
    """Attention by explicit probabilities; those over 77 text positions at one side are kept for the loss."""

    def __init__(self, maps: list[Tensor], size: int) -> None:
        self.maps, self.size = maps, size

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        probabilities = attn.get_attention_scores(query, key)
        if probabilities.shape[1:] == (self.size**2, 77) and encoder_hidden_states is not None:
            self.maps.append(probabilities)
        output = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        return attn.to_out[1](attn.to_out[0](output))


def _mean_over_heads(probabilities: Tensor, batch: int) -> Tensor:
    return probabilities.view(batch, -1, *probabilities.shape[1:]).mean(dim=1)  # (B, places, L)


def _cosine(vectors: Tensor, centroids: Tensor) -> Tensor:
    return vectors @ centroids.T / ((vectors.norm(dim=1) + 1e-8)[:, None] * (centroids.norm(dim=1) + 1e-8))
