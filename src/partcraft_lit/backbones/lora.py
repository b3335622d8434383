"""Low-rank adapters on a denoiser's attention, through peft."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator

#: Attention modules by scope: attn1 is self-attention, attn2 cross-attention.
_SCOPES = {"cross": ("attn2",), "all": ("attn1", "attn2")}
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_ADAPTER = "default"


@dataclass(frozen=True)
class LoraLayer:
    """LoRA factors of one linear layer.

    Attributes:
        down: (rank, inputs), float32 on the CPU.
        up: (outputs, rank), likewise.
        scale: alpha over rank.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return len(self.down)

    def delta(self) -> Tensor:
        """(outputs, inputs) weight delta, float64 on the CPU."""
        return self.scale * (self.up.cpu().double() @ self.down.cpu().double())

    def folded(self) -> LoraLayer:
        """The same delta with the scale folded into ``up``, so alpha equals the rank: tools disagree on any other."""
        return LoraLayer(self.down, self.up * self.scale)


def add_lora(
    unet: Any,
    rank: int = 4,
    alpha: float | None = None,
    scope: Literal["cross", "all"] = "cross",
    seed: int = 0,
    targets: list[str] | None = None,
) -> list[nn.Parameter]:
    """Adds LoRA to the projections of attention; everything else in the denoiser is frozen.

    The down projection starts at N(0, 1 / rank) as a standard deviation and the up projection at zero, so that nothing
    changes before training; the draw depends on the seed and the layer's name only. Parameters are float32 also in a
    denoiser of half precision.

    Args:
        unet: the denoiser, without an adapter.
        rank: at least 1.
        alpha: scale times rank; None means equal to rank, the scale 1.
        scope: "cross" (the paper) or "all" attention (the released code).
        seed: of the down projections.
        targets: names of the adapted layers; None for q, k, v and out of a UNet's attention of this scope.

    Returns:
        The parameters that train.

    Raises:
        UserError: for a rank, alpha or scope out of range.
        ValueError: if the UNet already has an adapter.

    Source: PartCraft; the initialisation is diffusers' ``LoRALinearLayer`` of its release.
    """
    from peft import LoraConfig, inject_adapter_in_model

    _check_settings(rank, alpha, scope)
    if _lora_parameters(unet):
        raise ValueError("The UNet already has a LoRA adapter; call remove_lora(unet) before adding another.")
    unet.requires_grad_(False)
    chosen = lora_targets(unet, scope) if targets is None else targets
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=chosen)
    with warnings.catch_warnings():
        # Of quantized layers, which are never merged here.
        warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass.*")
        if hasattr(unet, "add_adapter"):
            unet.add_adapter(config, adapter_name=_ADAPTER)
        else:  # not every model of diffusers has its PeftAdapterMixin
            inject_adapter_in_model(config, unet, adapter_name=_ADAPTER)
    parameters = _lora_parameters(unet)
    for name, parameter in parameters.items():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
        if ".lora_A." in name and not parameter.is_meta:
            values = torch.randn(parameter.shape, generator=torch_generator(seed, "lora", _plain(name))) / rank
            parameter.data.copy_(values)
    return list(parameters.values())


def lora_targets(unet: nn.Module, scope: str) -> list[str]:
    """Module names of the projections that an adapter of this scope targets."""
    pattern = re.compile(rf"(^|.*\.)({'|'.join(_SCOPES[scope])})\.({'|'.join(map(re.escape, _PROJECTIONS))})$")
    return [name for name, _ in unet.named_modules() if pattern.match(name)]


def remove_lora(unet: Any) -> None:
    """Undoes ``add_lora``; without an adapter it does nothing."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    if not _lora_parameters(unet):
        return
    if hasattr(unet, "unload_lora"):
        unet.unload_lora()
    else:
        recurse_remove_peft_layers(unet)


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """LoRA factors of a network's adapter, by layer name."""
    layers = {}
    for name, part in module.named_modules():
        if _ADAPTER in getattr(part, "lora_A", {}):
            down, up = (getattr(part, side)[_ADAPTER].weight.detach().float().cpu() for side in ("lora_A", "lora_B"))
            layers[name] = LoraLayer(down.clone(), up.clone(), float(part.scaling[_ADAPTER]))
    return layers


def _check_settings(rank: int, alpha: float | None, scope: str) -> None:
    if rank < 1:
        raise UserError(f"lora.rank={rank}: it must be at least 1; method.unet=none trains without LoRA.")
    if alpha is not None and alpha <= 0:
        raise UserError(f"lora.alpha={alpha}: it must be positive; null means equal to lora.rank.")
    check_scope(scope)


def check_scope(scope: str) -> None:
    """Checks the name of a scope.

    Raises:
        UserError: if it is unknown.
    """
    if scope not in _SCOPES:
        raise UserError(
            f"lora.scope={scope!r}: known are 'cross' (cross-attention only) and 'all' (also self-attention)."
        )


def _lora_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in unet.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def _plain(name: str) -> str:
    return name.replace(f".{_ADAPTER}.", ".")
