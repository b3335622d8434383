"""Which family a model belongs to: how other tools name its layers and text encoders, and what its licence says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.types import Backbone


@dataclass(frozen=True)
class Family:
    """Models that other tools treat alike.

    Attributes:
        title: what a person calls it.
        architecture: name in the "modelspec" convention for headers, or None for a model that no other tool knows.
        base_version: kohya's name, by which A1111 decides what to offer, or None likewise.
        license: id of the licence under which the family's first model was published; a descendant may differ.
        license_address: where that licence is.
        pipeline: diffusers' class.
        unet_names: how kohya's files call the UNet's layers: "blocks" (diffusers' names) or "sgm" (the original's).
        encoder_prefixes: how those files call the text encoders.
        embedding_keys: keys of one embedding's tensors in the files that A1111 and ComfyUI read, one per text encoder.
        is_known: whether A1111 and ComfyUI can load models of this family.
        is_v2: whether it is SD 2.x, whose models have equal sizes whether they predict noise or velocity.
    """

    title: str
    architecture: str | None
    base_version: str | None
    license: str
    license_address: str
    pipeline: str
    unet_names: Literal["blocks", "sgm"]
    encoder_prefixes: tuple[str, ...]
    embedding_keys: tuple[str, ...]
    is_known: bool = True
    is_v2: bool = False

    def architecture_of(self, predicts_velocity: bool) -> str | None:
        """Name of a model's architecture; that of SD 2.x depends on what the model predicts."""
        if not self.is_v2:
            return self.architecture
        return f"{self.architecture}-{'768-v' if predicts_velocity else '512'}"


_SD1 = Family(
    title="Stable Diffusion 1.x",
    architecture="stable-diffusion-v1",
    base_version="sd_v1",
    license="creativeml-openrail-m",
    license_address="https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    pipeline="StableDiffusionPipeline",
    unet_names="blocks",
    encoder_prefixes=("lora_te",),
    embedding_keys=("emb_params",),
)
_SD2 = Family(
    title="Stable Diffusion 2.x",
    architecture="stable-diffusion-v2",
    base_version="sd_v2",
    license="openrail++",
    license_address="https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
    pipeline="StableDiffusionPipeline",
    unet_names="blocks",
    encoder_prefixes=("lora_te",),
    embedding_keys=("emb_params",),
    is_v2=True,
)
_SDXL = Family(
    title="SDXL",
    architecture="stable-diffusion-xl-v1-base",
    base_version="sdxl_base_v1-0",
    license="openrail++",
    license_address="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    pipeline="StableDiffusionXLPipeline",
    unet_names="sgm",
    encoder_prefixes=("lora_te1", "lora_te2"),
    embedding_keys=("clip_l", "clip_g"),
)
#: (number of text encoders, width of the text that the UNet reads, channels of its first level) -> family
_FAMILIES = {(1, 768, 320): _SD1, (1, 1024, 320): _SD2, (2, 2048, 320): _SDXL}


def family_of(backbone: Backbone) -> Family:
    """The family of a model, by the sizes of its networks; miniatures follow the rules of their kind."""
    config = backbone.unet.config
    encoders = len(backbone.text_encoders)
    known = _FAMILIES.get((encoders, config.cross_attention_dim, config.block_out_channels[0]))  # type: ignore[union-attr,arg-type,index]
    return known or miniature(_SDXL if encoders == 2 else _SD1)


def miniature(kind: Family) -> Family:
    """A family of one, for a model that is built like ``kind`` and that no other tool knows."""
    return Family(
        title=f"a miniature in the layout of {kind.title}",
        architecture=None,
        base_version=None,
        license="apache-2.0",
        license_address="https://www.apache.org/licenses/LICENSE-2.0",
        pipeline=kind.pipeline,
        unet_names=kind.unet_names,
        encoder_prefixes=kind.encoder_prefixes,
        embedding_keys=kind.embedding_keys,
        is_known=False,
    )
