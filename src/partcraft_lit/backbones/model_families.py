"""Model families: names of layers and text encoders in other tools, header fields, licences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.types import Backbone


@dataclass(frozen=True)
class Family:
    """Names, header fields and licence of a model family.

    Attributes:
        title: for messages.
        architecture: ``modelspec.architecture`` of headers; None for models that no other tool knows.
        base_version: kohya's ``ss_base_model_version``, by which A1111 filters; None likewise.
        license: SPDX-like id of the licence of the family's first model; a descendant may differ.
        license_address: URL of the licence.
        pipeline: diffusers' class.
        unet_names: names of UNet layers in kohya's files: "blocks" (diffusers) or "sgm" (original).
        encoder_prefixes: prefixes of text encoders in kohya's files.
        embedding_keys: keys of an embedding's tensors for A1111 and ComfyUI, one per text encoder.
        is_known: whether A1111 and ComfyUI load models of this family.
        is_v2: whether it is SD 2.x, whose sizes are equal for epsilon- and v-prediction.
        sd_version: A1111's name of the family, by which it filters.
        checkpoint: usual name of the file of the family's first model, for ComfyUI; "" where there is none.
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
    sd_version: str = "Unknown"
    checkpoint: str = ""

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
    sd_version="SD1",
    checkpoint="v1-5-pruned-emaonly.safetensors",
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
    sd_version="SD2",
    checkpoint="v2-1_768-ema-pruned.safetensors",
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
    sd_version="SDXL",
    checkpoint="sd_xl_base_1.0.safetensors",
)
#: (number of text encoders, width of the text that the UNet reads, channels of its first level) -> family
_FAMILIES = {(1, 768, 320): _SD1, (1, 1024, 320): _SD2, (2, 2048, 320): _SDXL}


def family_of(backbone: Backbone) -> Family:
    """Family of a model, by the sizes of its networks; a miniature has that of its layout."""
    config = backbone.denoiser.config
    encoders = len(backbone.text_encoders)
    known = _FAMILIES.get((encoders, config.cross_attention_dim, config.block_out_channels[0]))  # type: ignore[union-attr,arg-type,index]
    return known or miniature(_SDXL if encoders == 2 else _SD1)


def miniature(kind: Family) -> Family:
    """Family of a model with the layout of ``kind`` that no other tool knows."""
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
