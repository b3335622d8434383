"""Low-rank adapters on a UNet's attention, through peft."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    """What an adapter adds to one linear layer.

    Attributes:
        down: (rank, inputs), float32 on the CPU.
        up: (outputs, rank), likewise.
        scale: by which their product is multiplied: alpha over rank.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return len(self.down)

    def delta(self) -> Tensor:
        """(outputs, inputs): what is added to the layer's weight."""
        return self.scale * (self.up.double() @ self.down.double())

    def folded(self) -> LoraLayer:
        """The same change with the scale inside ``up``: then alpha is the rank, and no reader can get it wrong."""
        return LoraLayer(self.down, self.up * self.scale)


def add_lora(
    unet: Any, rank: int = 4, alpha: float | None = None, scope: Literal["cross", "all"] = "cross", seed: int = 0
) -> list[nn.Parameter]:
    """Adds LoRA to q, k, v and out projections; everything else in the UNet is frozen.

    The down projection starts at N(0, 1 / rank) as a standard deviation and the up projection at zero, so that nothing
    changes before training; the draw depends on the seed and the layer's name only. Parameters are float32 also in a
    UNet of half precision.

    Args:
        unet: a UNet2DConditionModel without an adapter.
        rank: at least 1.
        alpha: scale times rank; None means equal to rank, the scale 1.
        scope: "cross" (the paper) or "all" attention (the released code).
        seed: of the down projections.

    Returns:
        The parameters that train.

    Raises:
        UserError: if the rank, alpha or the scope is not possible.
        ValueError: if the UNet already has an adapter.

    Source: PartCraft; the initialisation is diffusers' ``LoRALinearLayer`` of its release.
    """
    from peft import LoraConfig

    _check_settings(rank, alpha, scope)
    if _lora_parameters(unet):
        raise ValueError("The UNet already has a LoRA adapter; call remove_lora(unet) before adding another.")
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=lora_targets(unet, scope)),
        adapter_name=_ADAPTER,
    )
    parameters = _lora_parameters(unet)
    for name, parameter in parameters.items():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
        if ".lora_A." in name and not parameter.is_meta:
            values = torch.randn(parameter.shape, generator=torch_generator(seed, "lora", _plain(name))) / rank
            parameter.data.copy_(values)
    return list(parameters.values())


def lora_targets(unet: nn.Module, scope: str) -> list[str]:
    """Full names of the projections that an adapter of this scope changes."""
    pattern = re.compile(rf"(^|.*\.)({'|'.join(_SCOPES[scope])})\.({'|'.join(map(re.escape, _PROJECTIONS))})$")
    return [name for name, _ in unet.named_modules() if pattern.match(name)]


def remove_lora(unet: Any) -> None:
    """Takes the adapter out; the UNet is then as it was before ``add_lora``."""
    if _lora_parameters(unet):
        unet.unload_lora()


def lora_state_dict(unet: nn.Module) -> dict[str, Tensor]:
    """What the adapter learned, on the CPU, under peft's names without the adapter's: ``....to_q.lora_A.weight``."""
    return {_plain(name): parameter.detach().cpu().clone() for name, parameter in _lora_parameters(unet).items()}


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """What the adapter of a network changes: name of each layer -> its change."""
    layers = {}
    for name, part in module.named_modules():
        if _ADAPTER in getattr(part, "lora_A", {}):
            down, up = (getattr(part, side)[_ADAPTER].weight.detach().float().cpu() for side in ("lora_A", "lora_B"))
            layers[name] = LoraLayer(down.clone(), up.clone(), float(part.scaling[_ADAPTER]))
    return layers


def load_lora_state_dict(unet: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts back what ``lora_state_dict`` gave; the UNet must have an adapter of the same rank and scope.

    Raises:
        UserError: if names or shapes differ; nothing is changed then.
    """
    parameters = {_plain(name): parameter for name, parameter in _lora_parameters(unet).items()}
    missing, unexpected = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    if missing or unexpected:
        raise UserError(
            f"The LoRA weights do not fit this UNet: {len(missing)} missing{_first(missing)}, {len(unexpected)} "
            f"unexpected{_first(unexpected)}. Use the backbone and the lora.scope they were trained with."
        )
    for name, parameter in parameters.items():
        if state[name].shape != parameter.shape:
            raise UserError(
                f"The LoRA weight {name} has the shape {tuple(state[name].shape)}, this UNet wants "
                f"{tuple(parameter.shape)}. Use the backbone and the lora.rank they were trained with."
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def _check_settings(rank: int, alpha: float | None, scope: str) -> None:
    if rank < 1:
        raise UserError(f"lora.rank={rank}: it must be at least 1. Without LoRA, leave the adapter out altogether.")
    if alpha is not None and alpha <= 0:
        raise UserError(f"lora.alpha={alpha}: it must be positive; null means equal to lora.rank.")
    if scope not in _SCOPES:
        raise UserError(
            f"lora.scope={scope!r}: known are 'cross' (cross-attention only) and 'all' (also self-attention)."
        )


def _lora_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in unet.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def _plain(name: str) -> str:
    return name.replace(f".{_ADAPTER}.", ".")


def _first(names: list[str]) -> str:
    return f" (first {names[0]})" if names else ""
