"""A node for ComfyUI that reads prompts with part tokens of a partcraft-lit run: copy this folder into custom_nodes.

Copied into each export for ComfyUI of a transformer; needs nothing beside ComfyUI. A prompt is tokenized as in
training, which ``embedding:NAME`` in a prompt is not: ComfyUI drops line breaks behind it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

_FOLDER = Path(__file__).resolve().parent
_TOKEN = re.compile(r" *<([^<>:]+:[0-9]+)>")
_MARK = "\ue000"


class PartPrompt:
    """A prompt with part tokens such as <head:3>."""

    CATEGORY = "conditioning"
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for it."""
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {"multiline": True})}}

    def encode(self, clip: Any, text: str) -> tuple[list[Any]]:
        """Conditioning of one prompt.

        Raises:
            ValueError: for an unknown part token, another text encoder, or a prompt that is too long.
        """
        settings = json.loads((_FOLDER / "parts.json").read_text(encoding="utf-8"))
        encoder, vectors = settings["clip"], _vectors(text)
        tokenizer = getattr(getattr(clip.tokenizer, encoder, None), "tokenizer", None)
        if tokenizer is None:
            raise ValueError(f"These parts need the text encoder {encoder}; the loaded one is another.")
        row: list[Any] = list(settings["prefix"])
        places = []
        for number, segment in enumerate(_TOKEN.sub(_MARK, text).split(_MARK)):
            if number:
                places.append(len(row))
                row.append(vectors[number - 1] if settings["inject"] == "before" else settings["blank"])
            if segment.strip():
                row += tokenizer(segment.rstrip(), add_special_tokens=False)["input_ids"]
        row += settings["suffix"]
        if len(row) > settings["length"]:
            raise ValueError(f"The prompt takes {len(row)} positions, the text encoder has {settings['length']}.")
        row += [settings["pad"]] * (settings["length"] - len(row))
        conditioning = clip.encode_from_tokens_scheduled({encoder: [[(token, 1.0) for token in row]]})
        if settings["inject"] == "after":
            conditioning = [[_replaced(states, places, vectors), *rest] for states, *rest in conditioning]
        return (conditioning,)


def _vectors(text: str) -> list[Tensor]:
    known = load_file(_FOLDER / "parts.safetensors")
    names = _TOKEN.findall(text)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"<{unknown[0]}> is not among the parts of {_FOLDER.name}: {', '.join(sorted(known))}.")
    return [known[name] for name in names]


def _replaced(states: Tensor, places: list[int], vectors: list[Tensor]) -> Tensor:
    states = states.clone()
    for place, vector in zip(places, vectors, strict=True):
        states[:, place] = vector.to(states)
    return states


NODE_CLASS_MAPPINGS = {f"PartPrompt {_FOLDER.name}": PartPrompt}
NODE_DISPLAY_NAME_MAPPINGS = dict.fromkeys(NODE_CLASS_MAPPINGS, f"Prompt with parts ({_FOLDER.name})")
