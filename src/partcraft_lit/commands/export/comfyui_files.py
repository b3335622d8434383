"""Files for ComfyUI of a transformer whose text encoder is not CLIP: LoRA, embeddings, a node and a workflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from partcraft_lit.backbones.lora import lora_layers
from partcraft_lit.backbones.lora_files import from_diffusers, to_diffusers
from partcraft_lit.backbones.pipelines import pipeline_seed
from partcraft_lit.commands.export.verify import weights_error
from partcraft_lit.commands.export.workflow import canvas_seed, canvas_workflow, node
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.types import PartToken
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.tokens.embedding_files import ExportedPart, exported_part

#: Largest error of a layer's change, as a share of its largest entry.
_TOLERANCE = 1e-5
_README = """# {name} for ComfyUI

Copy `models` and `custom_nodes` into ComfyUI's folder, start it anew, and drop `workflow.json` on the canvas
(`workflow_api.json` is the same for scripts). Choose the files of {model} in the three loaders.

The node *Prompt with parts ({name})* reads part tokens as here and gives the text embedding of the trained model:
`{prompt}`. `{name}.safetensors` is the LoRA, strength 1; parts need it.
{embeddings}
Part tokens: {tokens}
"""
_EMBEDDINGS = """
Without the node, in a CLIPTextEncode, a part is an embedding: `{prompt}`.
Write a space behind every name, also behind the last: a name that is not found is left out without an error. Behind an
embedding ComfyUI drops the line breaks of the chat template and the space of the next word, so that its text embedding
differs from the trained model's.

| part | embedding |
| --- | --- |
{rows}
"""


def write_comfyui(
    folder: Path,
    name: str,
    module: PersonalizationModule,
    tokens: Sequence[PartToken],
    prompt: str,
    settings: Mapping[str, Any],
    seed: int,
) -> list[Path]:
    """Writes ``comfyui/``.

    Args:
        folder: to write to.
        name: of the bundle.
        module: the trained run, its adapter in place.
        tokens: what is exported.
        prompt: with a variant of each part.
        settings: what the exported code reads about prompts.
        seed: of the workflow, as of ``partcraft generate``.

    Raises:
        UserError: if a file does not give back what was trained.
    """
    backbone, vocabulary, baked = module.backbone, module.method.vocabulary, module.method.bake().float().cpu()
    parts = [exported_part(token, vocabulary, baked, (baked.shape[-1],), name) for token in tokens]
    own = folder / "custom_nodes" / name
    files: dict[Path, Mapping[str, Tensor]] = {
        own / "parts.safetensors": {part.placeholder.strip("<>"): part.vectors[0][0] for part in parts}
    }
    if backbone.inject == "before":
        files |= {
            folder / "models" / "embeddings" / f"{part.stem}.safetensors": {settings["clip"]: part.vectors[0]}
            for part in parts
        }
    layers = lora_layers(backbone.denoiser)
    adapter = folder / "models" / "loras" / f"{name}.safetensors"
    if layers:
        files[adapter] = to_diffusers({backbone.denoiser_name: layers})
    for path, tensors in files.items():
        atomic_write(path, to_safetensors({k: v.contiguous() for k, v in tensors.items()}, {"format": "pt"}))
    _check(files)
    if layers:
        trained = {f"{backbone.denoiser_name}.{layer}": factors for layer, factors in layers.items()}
        if (error := weights_error(trained, from_diffusers(load_file(adapter)))) > _TOLERANCE:
            raise UserError(f"{adapter} does not give back what was trained: the largest error is {error:.1e}.")
    nodes = _workflow(name, module, prompt, seed, bool(layers))
    texts = {
        own / "parts.json": json.dumps(settings, indent=1) + "\n",
        own / "__init__.py": _code(),
        folder / "workflow.json": json.dumps(canvas_workflow(nodes), indent=1) + "\n",
        folder / "workflow_api.json": json.dumps(nodes, indent=1) + "\n",
        folder / "README.md": _readme(name, backbone, parts, prompt),
    }
    for path, text in texts.items():
        atomic_write(path, text)
    return [*files, *texts]


def _check(files: Mapping[Path, Mapping[str, Tensor]]) -> None:
    for path, tensors in files.items():
        read = load_file(path)
        if read.keys() != tensors.keys() or not all(torch.equal(read[k], v) for k, v in tensors.items()):
            raise UserError(f"{path} does not give back what was trained.")


def _code() -> str:
    return (resources.files("partcraft_lit.commands.export") / "comfyui_node.py").read_text(encoding="utf-8")


def _readme(name: str, backbone: Any, parts: Sequence[ExportedPart], prompt: str) -> str:
    embeddings = ""
    if backbone.inject == "before":
        words = {part.placeholder: part.word("comfyui") for part in parts}
        rows = "\n".join(f"| `{part.placeholder}` | `{part.word('comfyui')}` |" for part in parts)
        written = prompt
        for placeholder, word in words.items():
            written = written.replace(placeholder, word)
        embeddings = _EMBEDDINGS.format(prompt=f"{written} ", rows=rows)
    return _README.format(
        name=name,
        model=backbone.name,
        prompt=prompt,
        embeddings=embeddings,
        tokens=", ".join(f"`{part.placeholder}`" for part in parts),
    )


def _workflow(name: str, module: PersonalizationModule, prompt: str, seed: int, has_lora: bool) -> dict[str, Any]:
    """Nodes as ComfyUI's own template for FLUX.2 has them, with the node and the LoRA of this export."""
    backbone: Any = module.backbone
    sample, names, side, reader = module.sampling, backbone.comfyui_files, backbone.resolution, f"PartPrompt {name}"
    model = "4" if has_lora else "1"
    nodes = {
        "1": node("UNETLoader", unet_name=names["diffusion_models"], weight_dtype="default"),
        "2": node("CLIPLoader", clip_name=names["text_encoders"], type="flux2", device="default"),
        "3": node("VAELoader", vae_name=names["vae"]),
        "5": node(reader, clip=["2", 0], text=prompt),
        "6": node(reader, clip=["2", 0], text=sample.negative_prompt),
        "7": node("EmptyFlux2LatentImage", width=side, height=side, batch_size=1),
        "8": node("Flux2Scheduler", steps=sample.steps, width=side, height=side),
        "9": node("CFGGuider", model=[model, 0], positive=["5", 0], negative=["6", 0], cfg=sample.guidance_scale),
        "10": node("KSamplerSelect", sampler_name="euler"),
        "11": node("RandomNoise", noise_seed=pipeline_seed(canvas_seed(seed))),
        "12": node(
            "SamplerCustomAdvanced",
            noise=["11", 0],
            guider=["9", 0],
            sampler=["10", 0],
            sigmas=["8", 0],
            latent_image=["7", 0],
        ),
        "13": node("VAEDecode", samples=["12", 0], vae=["3", 0]),
        "14": node("SaveImage", images=["13", 0], filename_prefix=name),
    }
    if has_lora:
        file = f"{name}.safetensors"
        nodes["4"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name=file, strength_model=1.0)
    return nodes
