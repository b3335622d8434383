"""Shared data structures and protocols.

Dimensions: batch (B), text length (L = 77), part tokens of a prompt (T), foreground parts (M; M + 1 with the
background, part 0), codes per part (K), feature width (D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from partcraft_lit.core.movable import Movable, packed, unpacked

#: Code of a part that is not in an image; never a row of a table.
ABSENT = -1
#: Index of the background among the parts.
BACKGROUND = 0


@dataclass(frozen=True)
class PartToken:
    """Part 0...M (0 is the background), code 0...K-1, and weight (1 is as trained)."""

    part: int
    code: int
    weight: float = 1.0


@dataclass
class TokenizedPrompts(Movable):
    """Token ids of prompts, with the positions of part tokens.

    Attributes:
        input_ids: one (B, L) tensor per tokenizer, with an ordinary id at part tokens: inside the vocabulary, and EOS
            pooling still works.
        part_positions: (B, T) position of each part token; -1 where a prompt has fewer than T.
        part_ids: (B, T) part of each part token; -1 where unused.
        code_ids: (B, T) code of each part token; -1 where unused.
        part_weights: (B, T) float; 1 where unused. None if all are 1.
    """

    input_ids: tuple[Tensor, ...]
    part_positions: Tensor
    part_ids: Tensor
    code_ids: Tensor
    part_weights: Tensor | None = None


@dataclass
class Conditioning(Movable):
    """Conditioning of the UNet.

    Attributes:
        encoder_hidden_states: (B, L, width).
        pooled_prompt_embeds: (B, width); None for backbones without it.
        time_ids: (B, 6); None likewise.
    """

    encoder_hidden_states: Tensor
    pooled_prompt_embeds: Tensor | None = None
    time_ids: Tensor | None = None


@dataclass
class TrainingExample:
    """One sample; nothing random happens after it.

    Attributes:
        latents: (C, s, s) float32, sampled from the posterior, cropped and flipped; with ``pixel_values``, the standard
            normal noise to sample them with.
        noise: same shape, standard normal.
        timestep: 0...num_train_timesteps - 1.
        label_map: (attention size, attention size) uint8, part of each cell, cropped and flipped alike.
        codes: (M + 1,) codes of the caption.
        prompt: the caption.
        sample_id: number of the sample since the start of training.
        image_id: index in the image source.
        crop: height and width of the original image, then top and left of the crop in the resized (and flipped) image,
            in pixels.
        loss_region: (s, s) soft loss mask, 0 to 1; None for ones.
        pixel_values: (3, S, S) uint8 crop that is still to be encoded; else None.
    """

    latents: Tensor
    noise: Tensor
    timestep: int
    label_map: Tensor
    codes: Tensor
    prompt: str
    sample_id: int
    image_id: int
    crop: tuple[int, int, int, int]
    loss_region: Tensor | None = None
    pixel_values: Tensor | None = None


class ExampleTransform(Protocol):
    """Transform of training examples by a method; picklable, for loader workers."""

    def __call__(self, example: TrainingExample, generator: torch.Generator) -> TrainingExample:
        """The transformed example; all randomness comes from the sample's generator."""
        ...


@dataclass
class TrainingBatch(Movable):
    """One batch; nothing random happens after it.

    Attributes:
        latents: (B, C, h, w) scaled latents, sampled from the posterior, cropped and flipped.
        noise: same shape, standard normal.
        timesteps: (B,) integers.
        label_map: (B, s, s) uint8, part of each cell of the attention map, cropped and flipped alike.
        tokens: the captions.
        prompts: the captions as text, for logs.
        sample_ids: (B,) number of each sample since the start of training.
        image_ids: (B,) index in the image source.
        prior: (B,) which samples are prior-preservation images; their loss has a weight of its own, and attention
            losses skip them. None without any.
        loss_region: (B, h, w) soft loss mask, 0 to 1; None for ones.
        crops: (B, 4) as ``TrainingExample.crop``; None for uncropped images of the backbone's resolution.
        pixel_values: (n, 3, H, W) uint8 crops of the first n samples if these are still to be encoded; else None.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    label_map: Tensor
    tokens: TokenizedPrompts
    prompts: list[str]
    sample_ids: Tensor
    image_ids: Tensor
    prior: Tensor | None = None
    loss_region: Tensor | None = None
    crops: Tensor | None = None
    pixel_values: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as one buffer: each tensor from a loader worker costs a file descriptor."""
        return unpacked, (TrainingBatch, *packed(self))


@dataclass
class StepOutput:
    """One forward pass, the input of loss terms.

    Attributes:
        batch: the input.
        model_pred: (B, C, h, w) prediction of the UNet.
        target: (B, C, h, w).
        attention_maps: (B, T, s, s) attention probabilities of the part tokens (order of ``batch.tokens``), mean over
            heads and captured layers, float32; None without a capture.
        noun_attention_maps: (B, T, s, s) the same for the noun after each part token ("<head:3> head"); None unless the
            method captures them.
    """

    batch: TrainingBatch
    model_pred: Tensor
    target: Tensor
    attention_maps: Tensor | None = None
    noun_attention_maps: Tensor | None = None


@dataclass
class PartPrediction:
    """Parts of a batch of images.

    Attributes:
        codes: (B, M + 1) code of each part, or ``ABSENT``.
        label_maps: one (grid height, grid width) uint8 map per image, 0...M; grids follow the images' aspects.
        part_features: (B, M + 1, D) mean feature of each part, zeros where absent.
    """

    codes: Tensor
    label_maps: list[Tensor]
    part_features: Tensor


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth of a drawn image.

    Attributes:
        label_map: (height, width) uint8, 0 for background, else 1 + index into ``part_names``.
        species: species of each part, ``ABSENT`` where no pixel of it is visible.
        part_names: names of the parts.
    """

    label_map: Tensor
    species: tuple[int, ...]
    part_names: tuple[str, ...]


class ImageSource(Protocol):
    """Images in their original sizes."""

    #: Noun of what the images show ("bird"), or "".
    class_noun: str
    #: Names of the classes of ``label``; empty without labels.
    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """(3, height, width) uint8 RGB, orientation applied, transparency composited; any size."""
        ...

    def name(self, index: int) -> str:
        """Readable name: the path inside the folder."""
        ...

    def content_hash(self, index: int) -> str:
        """Hex digest of the file's bytes, or of the settings of a drawing."""
        ...

    def label(self, index: int) -> int | None:
        """Class of the image, or None."""
        ...


@runtime_checkable
class GroundTruthSource(Protocol):
    """An image source with ground truth."""

    part_names: Sequence[str]

    def truth(self, index: int) -> GroundTruth: ...


@runtime_checkable
class CaptionedSource(Protocol):
    """An image source whose images may come with captions."""

    def text_of(self, index: int) -> str | None:
        """The caption as it was written, or None."""
        ...


@dataclass(frozen=True)
class Annotation:
    """Annotation of an image, in pixels.

    Attributes:
        size: (height, width) of the image.
        boxes: (boxes, 4) left, top, right, bottom of each object.
        keypoints: (P, 2) x and y of each keypoint.
        visible: (P,) bool.
    """

    size: tuple[int, int]
    boxes: Tensor
    keypoints: Tensor
    visible: Tensor


@runtime_checkable
class AnnotatedSource(Protocol):
    """An image source with boxes, and with keypoints where ``keypoint_names`` is not empty."""

    keypoint_names: Sequence[str]

    def annotation(self, index: int) -> Annotation: ...


class PatchFeatures(Protocol):
    """A frozen network of patch features."""

    #: Readable id ("dinov2_base"), and the hash of weights and preprocessing.
    id: str
    hash: str
    dim: int

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 (3, height, width) images of any sizes -> one float32 (grid height, grid width, D) tensor each."""
        ...


class PartPredictor(Protocol):
    """Predicts parts of images, in discovery, training data, metrics and the app."""

    @property
    def num_parts(self) -> int:
        """Foreground parts M."""
        ...

    def predict(self, images: Sequence[Tensor]) -> PartPrediction: ...

    def centroids(self, codes: Tensor) -> Tensor:
        """(B, M + 1) codes -> (B, M + 1, D) centroids, zeros where ``ABSENT``."""
        ...


class Backbone(Protocol):
    """A text-to-image model. All networks are frozen until an adapter is added."""

    name: str
    #: Hash of all frozen weights.
    hash: str
    unet: nn.Module
    vae: nn.Module
    text_encoders: Sequence[nn.Module]
    tokenizers: Sequence[Any]
    noise_scheduler: Any
    #: Side of the square images in pixels; latents have this over ``vae_scale_factor``.
    resolution: int
    vae_scale_factor: int
    latent_channels: int
    #: Width of the token embeddings of each text encoder; the mapper's output is split accordingly.
    token_widths: tuple[int, ...]
    #: Cross-attention layers of the attention losses, as module names inside the UNet.
    attention_layers: tuple[str, ...]
    #: Side of those layers' maps at ``resolution``.
    attention_size: int

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in -1...1 -> posterior mean and std, (B, C, H/f, W/f) each, scaled for the UNet."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) scaled latents -> (B, 3, H, W) in -1...1."""
        ...

    def encode_prompts(
        self, tokens: TokenizedPrompts, part_vectors: Tensor | None, crops: Tensor | None = None
    ) -> Conditioning:
        """Part vectors (B, T, sum of token_widths) replace the embeddings at ``tokens.part_positions``; ``crops`` as in
        ``TrainingBatch``."""
        ...

    def encode_unconditional(self) -> Conditioning:
        """Unconditional embedding of classifier-free guidance, one row."""
        ...

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction, (B, C, h, w)."""
        ...

    def enable_gradient_checkpointing(self) -> None:
        """Enables gradient checkpointing in the UNet."""
        ...

    def compile_blocks(self) -> None:
        """Compiles the UNet's transformer blocks; adapters must be in place."""
        ...

    def offload_vae(self, folder: Path | None = None) -> None:
        """Keeps the idle VAE on the CPU, or on a CPU in a memory-mapped file in ``folder``."""
        ...


class LossTerm(Protocol):
    """A term that is added to the loss of a step, see ``callbacks.loss_terms``."""

    #: Key under which it is logged: ``train/loss_<name>``.
    name: str
    weight: float
    #: Whether ``StepOutput.attention_maps`` must be there.
    reads_attention: bool

    def __call__(self, step: StepOutput) -> Tensor:
        """(B,) unweighted values, in float32."""
        ...
