"""CLIP image features and image-text similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from partcraft_lit.core.errors import UserError
from partcraft_lit.metrics.features import Shared, View, checked_images, unit_float64
from partcraft_lit.metrics.networks.pretrained import load_network, locate, model_type

#: Short names of hub ids. Most papers report ViT-B/32.
MODELS = {
    "clip_base32": "openai/clip-vit-base-patch32",
    "clip_base16": "openai/clip-vit-base-patch16",
    "clip_large14": "openai/clip-vit-large-patch14",
}
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_WHAT = "a CLIP model"


class ClipEncoder:
    """Images and texts as vectors of one space. Called, it is an :class:`ImageFeatures`.

    Args:
        model: a ``transformers.CLIPModel``.
        tokenizer: a ``transformers.CLIPTokenizer``.
        id: for the keys of metrics.
        batch_size: images or texts per forward pass.
        device: where it runs.

    Source: Radford et al. (arXiv 2103.00020): short side to 224 bicubic, centre cut out, CLIP's colours. Differs: the
    resizing is torch's, which agrees with Pillow's to a grey value.
    """

    def __init__(
        self, model: Any, tokenizer: Any, id: str, batch_size: int = 32, device: str | torch.device = "cpu"
    ) -> None:
        self.model = model.requires_grad_(False).eval().to(device)
        self.tokenizer = tokenizer
        self.id = id
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.dim = int(model.config.projection_dim)
        side = int(model.config.vision_config.image_size)
        self._view = View(side, side, _MEAN, _STD)
        self._length = int(model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, D) float32, of any length."""
        pieces = checked_images(images).split(self.batch_size)
        seen = (self._view(piece.to(self.device)) for piece in pieces)
        return torch.cat([self.model.get_image_features(pixel_values=pixels).pooler_output for pixels in seen])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(B, D) float32, of any length; a text longer than CLIP reads is cut at its end."""
        vectors = []
        for start in range(0, len(texts), self.batch_size):
            piece = list(texts[start : start + self.batch_size])
            ids = self.tokenizer(piece, padding=True, truncation=True, max_length=self._length, return_tensors="pt").to(
                self.device
            )
            output = self.model.get_text_features(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
            vectors.append(output.pooler_output)
        return torch.cat(vectors)


class ClipTextSimilarity(Metric):
    """CLIP-T: mean cosine of an image and its prompt. High is good.

    Take placeholder tokens out of the texts: CLIP does not know them.

    Args:
        encoder: a :class:`ClipEncoder`; shared by copies.

    Source: Ruiz et al., DreamBooth (arXiv 2208.12242), section 4.1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    name = "clip-t"

    total: Tensor
    count: Tensor

    def __init__(self, encoder: ClipEncoder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._encoder = Shared(encoder)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def key(self) -> str:
        """Metric and network: ``clip-t@clip-vit-base-patch32``."""
        return f"{self.name}@{self._encoder.value.id}"

    def scores(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) float64, one per image: for intervals and for finding the worst.

        Args:
            images: uint8 (B, 3, H, W), or their (B, D) CLIP features.
            texts: one per image.

        Raises:
            ValueError: if their numbers differ.
        """
        if len(images) != len(texts):
            raise ValueError(f"texts must be one per image: {len(images)} images, {len(texts)} texts.")
        encoder = self._encoder.value
        seen = images if images.is_floating_point() else encoder(images)
        read = encoder.texts(texts)
        return (unit_float64(seen) * unit_float64(read)).sum(dim=1)

    def update(self, images: Tensor, texts: Sequence[str]) -> None:
        """Adds images; as :meth:`scores`."""
        scores = self.scores(images, texts)
        self.total += scores.sum().to(self.total.device)
        self.count += len(scores)

    def compute(self) -> Tensor:
        """Mean over images, float64; NaN before the first."""
        return self.total / self.count


class ClipScore(ClipTextSimilarity):
    """CLIPScore: 2.5 max(cosine, 0), the text behind "A photo depicts". Custom Diffusion and DisenDiff report it.

    Source: Hessel et al. (arXiv 2104.08718), section 3.
    """

    name = "clip-score"
    weight = 2.5
    prefix = "A photo depicts "

    def scores(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        return self.weight * super().scores(images, [self.prefix + text for text in texts]).clamp_min(0)


def load_clip(source: str, batch_size: int = 32, device: str | torch.device = "cpu") -> ClipEncoder:
    """A CLIP model and its tokenizer.

    Args:
        source: ``clip_base32``, ``clip_base16``, ``clip_large14``, a hub id, or a folder that holds both.
        batch_size: images per forward pass.
        device: where it runs.

    Raises:
        UserError: if it is not there, or something else.
    """
    from transformers import CLIPModel, CLIPTokenizer

    location = locate(source, MODELS, _WHAT)
    kind = model_type(location, _WHAT)
    if kind != "clip":
        raise UserError(f"{location} holds a model of type {kind!r}, but 'clip' is wanted: a whole CLIPModel.")
    model = load_network(CLIPModel, location, _WHAT)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(location)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(_no_tokenizer(location)) from error
    if not 256 < len(tokenizer) <= int(model.config.text_config.vocab_size):
        raise UserError(_no_tokenizer(location))  # without its files transformers makes one of two tokens
    return ClipEncoder(model, tokenizer, Path(location).name, batch_size, device)


def _no_tokenizer(location: str) -> str:
    return f"{location} has no tokenizer that fits: tokenizer.json, or vocab.json and merges.txt, go beside the model."
