"""What A1111 and Forge expect beside the files of an export: side-cars, one-file bundles, generation parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from partcraft_lit.backbones.infotext import INFOTEXT_KEY, infotext
from partcraft_lit.commands.export.bundle import Bundle
from partcraft_lit.core.files import atomic_write
from partcraft_lit.tokens.embedding_files import ExportedPart

#: Of the tensors of an embedding inside the file of an adapter.
BUNDLED = "bundle_emb"


def write_sidecars(bundle: Bundle, folder: Path, trigger: str, negative: str) -> list[Path]:
    """A JSON file beside the adapter and each embedding, which fills in the tool's fields for it.

    Args:
        bundle: what was exported.
        folder: of the files for A1111.
        trigger: words that a click on the adapter adds to the prompt.
        negative: the same for the negative prompt.
    """
    paths = []
    if bundle.adapters:
        path = folder / "models" / "Lora" / f"{bundle.name}.json"
        paths.append(_write_json(path, adapter_sidecar(bundle, trigger, negative)))
    for part in bundle.parts:
        description = f"Variant {part.token.code} of a part, {part.placeholder} in partcraft-lit."
        about = {"description": description, "notes": _needs(bundle)}
        paths.append(_write_json(folder / "embeddings" / f"{part.stem}.json", about))
    return paths


def adapter_sidecar(bundle: Bundle, trigger: str, negative: str) -> dict[str, object]:
    """User metadata of an adapter, by the keys of the tool's own editor."""
    return {
        "description": f"{len(bundle.parts)} parts to compose images from, made with partcraft-lit.",
        "sd version": bundle.family.sd_version,
        "activation text": trigger,
        "preferred weight": 1.0,
        "negative text": negative,
        "notes": "Strength 1 is as trained. Each part is one word; its code is zero-padded in file names.",
    }


def bundled_tensors(bundle: Bundle, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one file that holds the adapter and all embeddings: ``bundle_emb.<name>.<key>``."""
    tensors = dict(adapter)
    for part in bundle.parts:
        for key, vectors in zip(bundle.family.embedding_keys, part.vectors, strict=True):
            tensors[f"{BUNDLED}.{part.stem}.{key}"] = vectors
    return tensors


def parameters(bundle: Bundle, prompt: str, negative: str, seed: int) -> dict[str, str]:
    """The chunk of a PNG with the generation parameters of an image of the export."""
    size = (bundle.resolution, bundle.resolution)
    return {INFOTEXT_KEY: infotext(prompt, negative, bundle.settings.sample, seed, size, bundle.origin.model)}


def alone(bundle: Bundle, part: ExportedPart) -> str:
    """A1111's prompt of one part, with its adapter."""
    adapter = f" <lora:{bundle.name}:1>" if bundle.adapters else ""
    return part.alone.replace(part.placeholder, part.word("a1111")) + adapter


def _needs(bundle: Bundle) -> str:
    if not bundle.adapters:
        return ""
    return f"Needs its adapter: <lora:{bundle.name}:1>. The embedding alone is not the part."


def _write_json(path: Path, content: Mapping[str, object]) -> Path:
    atomic_write(path, json.dumps(content, indent=4, ensure_ascii=False) + "\n")
    return path
