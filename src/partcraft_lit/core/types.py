"""Shared data structures and protocols.

Dimensions: batch (B), text length (L = 77), part tokens of a prompt (T), foreground parts (M; M + 1 with the
background, part 0), codes per part (K), feature width (D).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from partcraft_lit.core.movable import Movable, packed, unpacked
from partcraft_lit.core.settings import Inject

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
        attention_mask: (B, L) bool, False at padding; None for backbones that read the padding too.
    """

    input_ids: tuple[Tensor, ...]
    part_positions: Tensor
    part_ids: Tensor
    code_ids: Tensor
    part_weights: Tensor | None = None
    attention_mask: Tensor | None = None


@dataclass
class Conditioning(Movable):
    """Conditioning of the denoiser; the first dimension of every tensor is the batch.

    Attributes:
        encoder_hidden_states: (B, L, width).
        pooled_prompt_embeds: (B, width); None for backbones without it.
        time_ids: (B, 6); None likewise.
        attention_mask: (B, L) bool, False where the denoiser must not look; None likewise.
    """

    encoder_hidden_states: Tensor
    pooled_prompt_embeds: Tensor | None = None
    time_ids: Tensor | None = None
    attention_mask: Tensor | None = None


@dataclass
class TrainingExample:
    """One sample; nothing random happens after it.

    Attributes:
        latents: (C, s, s) float32, sampled from the posterior, cropped and flipped; with ``pixel_values``, the standard
            normal noise to sample them with.
        noise: same shape, standard normal.
        timestep: as ``Objective.draw_timestep`` gives it.
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
    timestep: float
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
        timesteps: (B,) integers for diffusion, float32 for flow matching.
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
        model_pred: (B, C, h, w) prediction of the denoiser.
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


@dataclass(frozen=True)
class Flow:
    """Flow matching on straight paths: noisy latents are (1 - sigma) * latents + sigma * noise.

    The model predicts the velocity noise - latents; its timestep is ``num_train_timesteps`` * sigma.

    Attributes:
        density: of sigma in training before the shift: "uniform" in (0, 1), or "logit_normal".
        mean, std: of the logit, for "logit_normal".
        shift: sigma -> shift * sigma / (1 + (shift - 1) * sigma); more than 1 trains more at the noisy end.
        uniform_share: share of the samples whose sigma is uniform and not shifted, beside those of ``density``.
        num_train_timesteps: the timestep of pure noise.
    """

    density: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    uniform_share: float = 0.0
    num_train_timesteps: int = 1000


class TextFormat(Protocol):
    """How prompts become token ids where the text encoder is not CLIP: cleaning, template, length, padding.

    Picklable, for loader workers: tokenizers and plain values alone.
    """

    @property
    def max_length(self) -> int:
        """Positions of the text (L)."""
        ...

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids before each prompt: special tokens, and those of a template."""
        ...

    @property
    def suffix(self) -> tuple[int, ...]:
        """Likewise behind it."""
        ...

    def __call__(self, prompts: Sequence[Sequence[str | PartToken]], fill: str | None = None) -> TokenizedPrompts:
        """Tokenizes prompts in which each part token takes one position.

        Args:
            prompts: of each prompt the texts and part tokens in their order; spaces belong to the texts.
            fill: the word of a single token that stands at part tokens; None for any ordinary id.

        Raises:
            UserError: for a prompt that is too long.
        """
        ...

    def word_id(self, word: str) -> int:
        """The id of a word inside a text.

        Raises:
            UserError: if it is not a single token.
        """
        ...


class AttentionRecorder(Protocol):
    """Attention of part tokens in the layers of a backbone, see ``backbones.attention.AttentionCapture``."""

    def armed(self, token_positions: Tensor) -> AbstractContextManager[Any]:
        """Records forward passes; (B, T) positions in the text, -1 where unused."""
        ...

    def maps(self) -> Tensor:
        """(B, T, s, s) of the last forward pass, float32."""
        ...

    def layer_maps(self) -> Mapping[str, Tensor]:
        """The same of each layer, at the layer's own side."""
        ...

    def clear(self) -> None: ...

    def remove(self) -> None:
        """Gives the layers their own processors again."""
        ...


class Backbone(Protocol):
    """A text-to-image model: text encoders, a denoiser and a VAE. All are frozen until an adapter is added."""

    name: str
    #: Hash of all frozen weights.
    hash: str
    vae: nn.Module
    text_encoders: Sequence[nn.Module]
    tokenizers: Sequence[Any]
    #: Scheduler of diffusers, from whose configuration those of sampling are made.
    noise_scheduler: Any
    #: What the denoiser was trained for: flow matching, or None for diffusion with the schedule of ``noise_scheduler``.
    flow: Flow | None
    #: None for CLIP: 77 positions, all of them read.
    text_format: TextFormat | None
    #: Where part vectors enter; set by the method before training.
    inject: Inject
    #: Side of the square images in pixels; latents have this over ``vae_scale_factor``.
    resolution: int
    vae_scale_factor: int
    latent_channels: int
    #: Width of the token embeddings of each text encoder; the mapper's output is split accordingly.
    token_widths: tuple[int, ...]
    #: Layers of the attention losses, as module names inside the denoiser.
    attention_layers: tuple[str, ...]
    #: What is captured of them: a key of ``readable_attention``.
    attention_target: str
    #: Side of those layers' maps at ``resolution``.
    attention_size: int

    #: Attribute of the denoiser, the prefix of its weights in checkpoints.
    denoiser_name: str

    @property
    def context_widths(self) -> tuple[int, ...]:
        """Like ``token_widths``, of what the denoiser reads: for part vectors that enter "after" the text encoder."""
        ...

    @property
    def denoiser(self) -> nn.Module:
        """The network that adapters are added to: a UNet or a transformer."""
        ...

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in -1...1 -> posterior mean and std, (B, C, H/f, W/f) each, scaled for the denoiser."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) scaled latents -> (B, 3, H, W) in -1...1."""
        ...

    def plain_tokens(self, prompts: Sequence[str]) -> TokenizedPrompts:
        """Tokenizes prompts without part tokens."""
        ...

    def encode_prompts(
        self, tokens: TokenizedPrompts, part_vectors: Tensor | None, crops: Tensor | None = None
    ) -> Conditioning:
        """Part vectors (B, T, sum of widths) replace the embeddings or the hidden states at ``tokens.part_positions``,
        as ``inject`` says; ``crops`` as in ``TrainingBatch``."""
        ...

    def encode_unconditional(self) -> Conditioning:
        """Unconditional embedding of classifier-free guidance, one row."""
        ...

    def word_states(self, words: Sequence[str]) -> Tensor:
        """(words, sum of ``context_widths``) what the denoiser reads at each word of "a photo of a WORD", float32."""
        ...

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction, (B, C, h, w)."""
        ...

    def set_timesteps(self, scheduler: Any, steps: int, device: torch.device) -> None:
        """Prepares a sampling scheduler for this model and resolution."""
        ...

    def readable_attention(self) -> Mapping[str, Sequence[str]]:
        """What can be captured: "probabilities", "outputs" -> names of all layers, in the order of the forward pass."""
        ...

    def capture_attention(self, layers: Sequence[str] | None = None, target: str | None = None) -> AttentionRecorder:
        """Starts to capture attention; None takes ``attention_layers`` and the backbone's own target."""
        ...

    def lora_targets(self, scope: str) -> list[str]:
        """Module names in the denoiser of the layers that a LoRA adapts: "cross" or "all" attention."""
        ...

    def cross_kv(self) -> list[tuple[str, nn.Parameter]]:
        """Names and weights of the keys and values of the text in the denoiser."""
        ...

    def enable_gradient_checkpointing(self) -> None:
        """Enables gradient checkpointing in the denoiser."""
        ...

    def compile_blocks(self) -> None:
        """Compiles the denoiser's transformer blocks; adapters must be in place."""
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
