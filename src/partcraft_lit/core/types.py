"""What the layers meet at: the data that crosses a seam, and the protocols on either side of it.

Legend used throughout: batch (B), tokens of the text (L = 77), part tokens in a prompt (T), foreground parts (M), so
that there are M + 1 parts with the background as part 0, codes per part (K), feature width (D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from partcraft_lit.core.movable import Movable, packed, unpacked

#: Code of a part that is not in an image. It is never a row of a table, so it can never be trained or drawn.
ABSENT = -1
#: Index of the background among the parts.
BACKGROUND = 0


@dataclass(frozen=True)
class PartToken:
    """One part variant: ``part`` 0...M (0 is the background), ``code`` 0...K-1, and how strongly: 1 is as trained."""

    part: int
    code: int
    weight: float = 1.0


@dataclass
class TokenizedPrompts(Movable):
    """Prompts as ids, with the places that the token mapper fills.

    Attributes:
        input_ids: one (B, L) tensor per tokenizer; a part token's place holds an ordinary, harmless id, so that no id
            is larger than the vocabulary and the pooled embedding is still read at the end of the text.
        part_positions: (B, T) place of each part token in the sequence; -1 where a prompt has fewer than T.
        part_ids: (B, T) part of each part token; -1 where unused.
        code_ids: (B, T) code of each part token; -1 where unused.
        part_weights: (B, T) float, how strongly; 1 where unused. None where every token is as trained.
    """

    input_ids: tuple[Tensor, ...]
    part_positions: Tensor
    part_ids: Tensor
    code_ids: Tensor
    part_weights: Tensor | None = None


@dataclass
class Conditioning(Movable):
    """What the UNet receives beside the latents.

    Attributes:
        encoder_hidden_states: (B, L, width).
        pooled_prompt_embeds: (B, width) or None where the backbone has no pooled input.
        time_ids: (B, 6) or None, likewise.
    """

    encoder_hidden_states: Tensor
    pooled_prompt_embeds: Tensor | None = None
    time_ids: Tensor | None = None


@dataclass
class TrainingExample:
    """One sample, complete: nothing random happens after it.

    Attributes:
        latents: (C, s, s) float32, sampled from the posterior, cropped and flipped; with ``pixel_values``, the standard
            normal numbers that it is to be sampled with.
        noise: same shape, standard normal.
        timestep: 0...num_train_timesteps - 1.
        label_map: (attention size, attention size) uint8, part of each cell, under the same crop and flip.
        codes: (M + 1,) codes that the caption was made from.
        prompt: the caption.
        sample_id: number of the sample since the start of training.
        image_id: index of the image in its source.
        crop: height and width of the whole image as it came, then top and left of the crop in it after it was resized
            (and mirrored), in pixels.
        loss_region: (s, s) from 0 to 1, how much each latent counts; None for all alike.
        pixel_values: (3, S, S) uint8, the crop where it is still to be encoded; else None.
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
    """What a method does to each example, such as scaling it; small and picklable, for loader workers."""

    def __call__(self, example: TrainingExample, generator: torch.Generator) -> TrainingExample:
        """The example to train on; all chance comes from the generator, which belongs to the sample."""
        ...


@dataclass
class TrainingBatch(Movable):
    """One batch, complete: nothing random happens after it.

    Attributes:
        latents: (B, C, h, w) scaled as the UNet wants them, already sampled from the posterior, cropped and flipped.
        noise: same shape, standard normal.
        timesteps: (B,) integers.
        label_map: (B, s, s) uint8, part of each cell of the attention grid, under the same crop and flip.
        tokens: the captions.
        prompts: the captions as text, for logs.
        sample_ids: (B,) number of each sample since the start of training.
        image_ids: (B,) index of each image in its source.
        prior: (B,) whether a sample is of the prior images, which hold no part and keep the model what it was; its loss
            has a weight of its own, and attention losses leave it out. None where none is.
        loss_region: (B, h, w) from 0 to 1, how much each place of the latents counts; None where all count alike.
        crops: (B, 4) height and width of the whole image as it came, then top and left of the crop in it after it was
            resized, in pixels; None says that every crop is a whole image of the backbone's resolution.
        pixel_values: (n, 3, H, W) uint8, the first n samples where they are still to be encoded: until then their
            latents are the numbers to sample them with. None where nothing is left to do.
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
        """Is pickled as one buffer: for every tensor that a loader's worker hands over, the step opens a file."""
        return unpacked, (TrainingBatch, *packed(self))


@dataclass
class StepOutput:
    """One forward pass, as loss terms see it.

    Attributes:
        batch: what went in.
        model_pred: (B, C, h, w) what the UNet said.
        target: (B, C, h, w) noise or velocity.
        attention_maps: (B, T, s, s) attention probability of every place for each part token (order of
            ``batch.tokens``), mean over heads and captured layers, float32; None if nothing asked for capture.
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
        codes: (B, M + 1) code of each part, ``ABSENT`` where the image does not show it.
        label_maps: one (grid height, grid width) uint8 map per image, 0...M; grids follow the images' aspects.
        part_features: (B, M + 1, D) mean feature of each part, zeros where absent.
    """

    codes: Tensor
    label_maps: list[Tensor]
    part_features: Tensor


@dataclass(frozen=True)
class GroundTruth:
    """What a drawn picture shows.

    Attributes:
        label_map: (height, width) uint8, 0 for background, else 1 + index into ``part_names``.
        species: species of each part, ``ABSENT`` where no pixel of it is visible.
        part_names: names of the parts.
    """

    label_map: Tensor
    species: tuple[int, ...]
    part_names: tuple[str, ...]


class ImageSource(Protocol):
    """Images, whole and as they come."""

    #: What the images show, as one noun ("bird"), or "" if unknown.
    class_noun: str
    #: Names of the classes that ``label`` counts; empty without labels.
    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """(3, height, width) uint8 RGB, orientation applied, transparency composited; any size."""
        ...

    def name(self, index: int) -> str:
        """What a person calls the image: its path inside the folder."""
        ...

    def content_hash(self, index: int) -> str:
        """Hex digest of what decides the pixels: the file's bytes, or the settings of a drawing."""
        ...

    def label(self, index: int) -> int | None:
        """Class of the image, or None."""
        ...


@runtime_checkable
class GroundTruthSource(Protocol):
    """An image source that knows the truth."""

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
    """What people marked in an image, in its own pixels.

    Attributes:
        size: (height, width) of the image.
        boxes: (boxes, 4) left, top, right, bottom of each object.
        keypoints: (P, 2) x and y of each kind of keypoint; none where the source has no keypoints.
        visible: (P,) bool, whether the keypoint can be seen.
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
    """A frozen network that describes patches."""

    #: Readable id ("dinov2_base"), and the hash of weights and preparation, for stores and dictionaries.
    id: str
    hash: str
    dim: int

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 (3, height, width) images of any sizes -> one float32 (grid height, grid width, D) tensor each."""
        ...


class PartPredictor(Protocol):
    """Reads parts off images. One object, used by discovery, training data, metrics and the app."""

    @property
    def num_parts(self) -> int:
        """Foreground parts M."""
        ...

    def predict(self, images: Sequence[Tensor]) -> PartPrediction: ...

    def centroids(self, codes: Tensor) -> Tensor:
        """(B, M + 1) codes -> (B, M + 1, D) centroids, zeros where ``ABSENT``."""
        ...


class Backbone(Protocol):
    """A text-to-image model in parts. All networks are frozen until an adapter is added."""

    name: str
    #: Hash of all frozen weights.
    hash: str
    unet: nn.Module
    vae: nn.Module
    text_encoders: Sequence[nn.Module]
    tokenizers: Sequence[Any]
    noise_scheduler: Any
    #: Side of the square images it was trained on, in pixels; side of its latents is that over ``vae_scale_factor``.
    resolution: int
    vae_scale_factor: int
    latent_channels: int
    #: Width of the token embeddings, one per text encoder; the mapper's output is split accordingly.
    token_widths: tuple[int, ...]
    #: Cross-attention layers that are read for the attention losses, as module names inside the UNet.
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
        """One row: what stands for no prompt in classifier-free guidance."""
        ...

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction, (B, C, h, w)."""
        ...

    def enable_gradient_checkpointing(self) -> None:
        """The UNet's activations are computed again in the backward pass."""
        ...

    def compile_blocks(self) -> None:
        """The UNet's transformer blocks are compiled; called when adapters are in place."""
        ...

    def offload_vae(self, folder: Path | None = None) -> None:
        """From now on the VAE is on the CPU while it does nothing; where all is there, in a file in ``folder``."""
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
