"""What the denoisers of the embedded world learn from: images drawn for each step, or drawn once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from partcraft_lit.core.images import to_unit
from partcraft_lit.world.zoo.captions import AND_A, parts_of_words, tells_shapes
from partcraft_lit.world.zoo.looks import FAMILIES, NUM_PARTS, Family
from partcraft_lit.world.zoo.scenes import PretrainingScenes

#: Share of captions left empty, for classifier-free guidance.
EMPTY_CAPTIONS = 0.1


@dataclass(frozen=True)
class Truth:
    """What is known of B images beside their pixels.

    Attributes:
        label_maps: (B, H, W) uint8, 0 background, 1 + part elsewhere; parts of a second creature follow.
        input_ids: (B, 77) of the captions.
        places, parts: (B, T) places of the words that describe parts, and the label of the part that each describes;
            -1 where a caption has fewer than T such words.
        looks: (B, 2 * parts, 3) shape, colour, texture.
        families: (B, 2) place of each creature's family among all families.
        told: (B, 2 * parts) bool, whether the caption says the shape of the part.
    """

    label_maps: Tensor
    input_ids: Tensor
    places: Tensor
    parts: Tensor
    looks: Tensor
    families: Tensor
    told: Tensor

    def to(self, device: torch.device) -> Truth:
        """The same on another device."""
        return Truth(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def rows(self, chosen: Tensor) -> Truth:
        """Of these images."""
        return Truth(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


@dataclass(frozen=True)
class Examples:
    """A batch on the device that trains.

    Attributes:
        latents: (B, C, h, w) mean latents, scaled.
        truth: of the same images.
        longest: places up to which a caption reaches.
    """

    latents: Tensor
    truth: Truth
    longest: int


class ExampleSource(Protocol):
    """Batches as a function of the step."""

    def batch(self, step: int, size: int, generator: torch.Generator) -> Examples:
        """``EMPTY_CAPTIONS`` of the captions of them, drawn from ``generator``, are empty."""
        ...


class FreshExamples:
    """Draws the images of each step: none is seen twice.

    Args:
        scenes: images and captions by index.
        tokenizer: of the captions.
        vae: its latents.
        device: where the batches go.
    """

    def __init__(
        self, scenes: PretrainingScenes, tokenizer: CLIPTokenizer, vae: AutoencoderKL, device: torch.device
    ) -> None:
        self.scenes, self.tokenizer, self.vae, self.device = scenes, tokenizer, vae, device

    def batch(self, step: int, size: int, generator: torch.Generator) -> Examples:
        indices = range(step * size, (step + 1) * size)
        empty = torch.rand(size, generator=generator) < EMPTY_CAPTIONS
        images, truth = drawn(self.scenes, self.tokenizer, indices, empty.tolist())
        longest = caption_length(truth.input_ids, self.tokenizer)
        return Examples(encode(self.vae, images.to(self.device)), truth.to(self.device), longest)


def drawn(
    scenes: PretrainingScenes, tokenizer: CLIPTokenizer, indices: range, empty: Sequence[bool] | None = None
) -> tuple[Tensor, Truth]:
    """Images, (B, 3, H, W) uint8, and what is known of them.

    Args:
        scenes: images and captions by index.
        tokenizer: of the captions.
        indices: which of them.
        empty: which captions to leave empty; none by default.
    """
    drawing, captions = scenes.batch(indices)
    if empty is not None:
        captions = ["" if blank else text for text, blank in zip(captions, empty, strict=True)]
    families = [scenes.families(index) for index in indices]
    places, parts = words_of_parts(families, captions)
    known = list(FAMILIES.values())
    truth = Truth(
        label_maps=drawing.label_maps,
        input_ids=tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids,
        places=places,
        parts=parts,
        looks=scenes.looks(indices),
        families=torch.tensor([[known.index(one) for one in (shown[0], shown[-1])] for shown in families]),
        told=told_shapes(families, captions),
    )
    return drawing.images, truth


def caption_length(input_ids: Tensor, tokenizer: CLIPTokenizer) -> int:
    """Places up to the end of the longest of (B, 77) captions, that included."""
    return int((input_ids == tokenizer.eos_token_id).int().argmax(dim=1).max()) + 1


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> scaled mean latents, float32."""
    pixel_values = to_unit(images)
    with torch.autocast(pixel_values.device.type, torch.bfloat16):
        mean = vae.encode(pixel_values).latent_dist.mean
    return mean.float() * vae.config.scaling_factor


def noise_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal; on a GPU drawn there, from a seed that the generator gives: a fifth of a step otherwise."""
    if latents.device.type == "cpu":
        return torch.randn(latents.shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.randn(
        latents.shape, generator=torch.Generator(latents.device).manual_seed(seed), device=latents.device
    )


def words_of_parts(families: Sequence[tuple[Family, ...]], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Places of the words that describe parts, and the label of the part that each describes.

    Args:
        families: of the creatures in each image, one or two.
        captions: of each image.

    Returns:
        Two (B, T) tensors, -1 where a caption has fewer than T such words.
    """
    rows = []
    for shown, text in zip(families, captions, strict=True):
        spoken = [
            label
            for creature, (family, half) in enumerate(zip(shown, text.split(AND_A), strict=False))
            for label in [*([None, None] if creature else []), *_labels(family, half, creature * NUM_PARTS)]
        ]  # the two empty words are those of AND_A
        # the first place is the start of the text
        rows.append([(place + 1, label) for place, label in enumerate(spoken) if label is not None])
    most = max(1, max(map(len, rows)))
    padded = torch.tensor([row + [(-1, -1)] * (most - len(row)) for row in rows])
    return padded[..., 0], padded[..., 1]


def told_shapes(families: Sequence[tuple[Family, ...]], captions: Sequence[str]) -> Tensor:
    """(B, 2 * parts) bool: whether the caption says the shape of each part of the one or two creatures."""
    told = torch.zeros(len(captions), 2 * NUM_PARTS, dtype=torch.bool)
    for row, (shown, text) in enumerate(zip(families, captions, strict=True)):
        for creature, (family, half) in enumerate(zip(shown, text.split(AND_A), strict=False)):
            told[row, creature * NUM_PARTS : (creature + 1) * NUM_PARTS] = torch.tensor(tells_shapes(family, half))
    return told


def _labels(family: Family, text: str, offset: int) -> list[int | None]:
    return [None if part is None else part + 1 + offset for part in parts_of_words(family, text)]
