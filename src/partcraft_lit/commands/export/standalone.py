"""Part tokens and adapter of a partcraft-lit run in diffusers: needs diffusers, peft and safetensors, nothing else.

Copied into each export for diffusers whose part vectors are not textual inversion embeddings.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

_TOKEN = re.compile(r" *<([^<>:]+:[0-9]+)>")
_MARK = "\ue000"


def add_adapter(pipe: Any, folder: str | Path) -> None:
    """Adds the LoRA of this folder to the pipeline's denoiser."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    path, settings = Path(folder) / "lora.safetensors", _settings(folder)
    if not path.is_file():
        return
    network = getattr(pipe, settings["denoiser"])
    weight = next(network.parameters())
    config = LoraConfig(r=settings["rank"], lora_alpha=settings["rank"], target_modules=settings["targets"])
    inject_adapter_in_model(config, network, adapter_name="default")
    tensors = load_file(path)
    named = {name.removeprefix(f"{settings['denoiser']}."): tensor for name, tensor in tensors.items()}
    set_peft_model_state_dict(network, named, adapter_name="default")
    network.to(weight.device, weight.dtype)


@torch.no_grad()
def encode(pipe: Any, folder: str | Path, prompt: str) -> tuple[Tensor, Tensor]:
    """Embeddings of a prompt with part tokens such as <head:3>, and the mask of its text.

    Returns:
        (1, L, width) for ``prompt_embeds``, and (1, L) bool for ``prompt_attention_mask`` where the pipeline takes one.

    Raises:
        KeyError: for a part token that is not in this folder.
        ValueError: for a prompt that is too long.
    """
    settings, parts = _settings(folder), load_file(Path(folder) / "parts.safetensors")
    names = _TOKEN.findall(prompt)
    text = _TOKEN.sub(_MARK, prompt)
    if hasattr(pipe, "text_preprocessor"):
        text = pipe.text_preprocessor.clean_text(text)
    row, places = list(settings["prefix"]), []
    for number, segment in enumerate(text.split(_MARK)):
        if number:
            places.append(len(row))
            row.append(settings["blank"])
        if segment.strip():
            row += pipe.tokenizer(segment.rstrip(), add_special_tokens=False).input_ids
    row += settings["suffix"]
    length, device = settings["length"], pipe.text_encoder.device
    if len(row) > length:
        raise ValueError(f"The prompt takes {len(row)} positions, the text encoder has {length}.")
    start = length - len(row) if settings["padding_side"] == "left" else 0
    ids = torch.full((1, length), pipe.tokenizer.pad_token_id, device=device)
    ids[0, start : start + len(row)] = torch.tensor(row, device=device)
    mask = torch.zeros(1, length, dtype=torch.bool, device=device)
    mask[0, start : start + len(row)] = True
    vectors = torch.stack([parts[name] for name in names]).to(device) if names else torch.zeros(0, 1, device=device)

    def replaced(states: Tensor) -> Tensor:
        states = states.clone()
        for place, vector in zip(places, vectors, strict=True):
            states[0, start + place] = vector.to(states.dtype)
        return states

    before = settings["inject"] == "before"
    table, hooks = pipe.text_encoder.get_input_embeddings(), []
    if before:
        hooks.append(table.register_forward_hook(lambda module, args, output: replaced(output)))
    try:
        layers = settings["layers"]  # read side by side; none: the last one
        given = {"attention_mask": mask.long() if layers else mask} if settings["masked"] or layers else {}
        output = pipe.text_encoder(input_ids=ids, output_hidden_states=bool(layers), **given)
        hidden = torch.cat([output.hidden_states[n] for n in layers], -1) if layers else output.last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return hidden if before else replaced(hidden), mask


def _settings(folder: str | Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((Path(folder) / "parts.json").read_text(encoding="utf-8"))
    return settings
