"""What of a trained run other tools can hold: an adapter and embeddings."""

from __future__ import annotations

from torch import nn

from partcraft_lit.backbones.trainable_weights import cross_kv
from partcraft_lit.module import PersonalizationModule


def unexportable(module: PersonalizationModule) -> tuple[str, list[str]] | None:
    """A network and the names of its trained weights that are no adapter; None if there are none.

    Keys and values of cross-attention that were trained as they are become a LoRA; see ``lora_extraction``.
    """
    for network, part in _networks(module).items():
        kept = {id(weight) for _, weight in cross_kv(part)} if network == "unet" else set()
        trained = [name for name, p in part.named_parameters() if p.requires_grad and id(p) not in kept]
        if others := [name for name in trained if ".lora_" not in name]:
            return network, others
    return None


def is_exportable(module: PersonalizationModule) -> bool:
    """Whether tokens stand in front of the text encoder, and nothing but an adapter was trained beside them."""
    return module.backbone.inject == "before" and unexportable(module) is None


def has_adapter(module: PersonalizationModule) -> bool:
    """Whether more than embeddings was trained."""
    return any(p.requires_grad for part in _networks(module).values() for p in part.parameters())


def _networks(module: PersonalizationModule) -> dict[str, nn.Module]:
    return {"unet": module.backbone.denoiser, "text_encoder": nn.ModuleList(module.backbone.text_encoders)}
