"""Exports for diffusers of runs whose part vectors are not textual inversion embeddings: vectors, LoRA and the code."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from partcraft_lit.backbones.lora import LoraLayer, lora_layers, remove_lora
from partcraft_lit.backbones.pipelines import pipeline_name, plain_pipeline
from partcraft_lit.backbones.sampling import initial_noise
from partcraft_lit.commands.export.comfyui_files import write_comfyui
from partcraft_lit.commands.export.export import shown_codes
from partcraft_lit.commands.export.publish import MANIFEST
from partcraft_lit.commands.export.settings import ExportSettings
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.images import to_uint8
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import Backbone, PartToken
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.runs.assembly import load_trained, untrained_of_run
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.runs.vocabulary import vocabulary_of
from partcraft_lit.tokens.embedding_files import chosen_tokens
from partcraft_lit.tokens.grammar import render

_CODE = "partcraft_parts.py"
_README = """# {name}

Part tokens and a LoRA for `{pipeline}` of diffusers, made from the run {run}. {where}

```python
import diffusers
from partcraft_parts import add_adapter, encode   # beside this file; needs diffusers, peft and safetensors

pipe = diffusers.DiffusionPipeline.from_pretrained(MODEL).to("cuda")
add_adapter(pipe, ".")
embeds, mask = encode(pipe, ".", "{prompt}")
empty, empty_mask = encode(pipe, ".", "")
image = pipe({call}guidance_scale={guidance_scale}, num_inference_steps={steps}).images[0]
```

Part tokens: {tokens}
"""
_WHERE = {
    "before": "The vectors replace token embeddings in front of the text encoder.",
    "after": "The vectors replace hidden states behind the text encoder, so no tool can load them as embeddings.",
}
_MASKED = (
    "prompt_embeds=embeds, prompt_attention_mask=mask, negative_prompt_embeds=empty, "
    "negative_prompt_attention_mask=empty_mask, "
)
_PLAIN = "prompt_embeds=embeds, negative_prompt_embeds=empty, "


def export_prompt_embeds(
    settings: ExportSettings,
    folder: Path,
    *,
    run_folder: Path,
    trained: TrainSettings,
    load_backbone: Callable[[], Backbone],
) -> dict[str, Any]:
    """Writes ``diffusers/``, then reads it again with its own code and compares embeddings and an image.

    Where ComfyUI is asked for too, also ``comfyui/``, see ``comfyui_files``.

    Returns:
        What ``export.json`` holds.

    Raises:
        UserError: for a part that does not exist, a run that cannot be exported, or files that do not give back what
            was trained.
    """
    stages = Stages()
    dictionary = PartDictionary.load(run_folder / "parts")
    vocabulary = vocabulary_of(dictionary)
    tokens = chosen_tokens(
        settings.chosen, vocabulary, shown_codes(dictionary, untrained_of_run(run_folder, dictionary))
    )
    with stages.stage("load"):
        module, _ = load_trained(trained, run_folder, load_backbone(), class_noun="")
    _check_weights(module)
    prompt = f"a photo of a {' '.join(render([token], vocabulary) for token in _one_of_each(tokens))}"
    steps = min(settings.check.steps, trained.sample.steps)
    with stages.stage("sample"):
        wanted = _embeds(module, prompt)
        module.use_sampling(replace(trained.sample, steps=steps))
        image = module.generate([prompt], [settings.seed])[0]
        module.use_sampling(trained.sample)
    name = settings.name or f"partcraft-{run_folder.name.rpartition('-')[2]}"
    files = _write(folder / "diffusers", name, run_folder.name, module, tokens, prompt)
    if "comfyui" in settings.to:
        code = _settings(module, {}) | {"clip": module.backbone.comfyui_key}  # type: ignore[attr-defined]
        files += write_comfyui(folder / "comfyui", name, module, tokens, prompt, code, settings.seed)
    remove_lora(module.backbone.denoiser)
    with stages.stage("check diffusers"):
        found = _check(folder / "diffusers", module, prompt, wanted, image, steps, settings.seed)
    stages.log(f"  diffusers: {', '.join(f'{key} {value:.2g}' for key, value in found.items())}")
    if found["text"] > settings.check.text or found["image"] > settings.check.image:
        raise UserError(f"The files in {folder / 'diffusers'} do not give back what was trained: {found}.")
    manifest = {
        "name": name,
        "run": run_folder.name,
        "kind": "prompt_embeds",
        "base": {"hash": module.backbone.hash, "backbone": module.backbone.name},
        "checks": found,
        "files": sorted(path.relative_to(folder).as_posix() for path in files),
    }
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _write(
    folder: Path, name: str, run: str, module: PersonalizationModule, tokens: Sequence[PartToken], prompt: str
) -> list[Path]:
    backbone, vocabulary, baked = module.backbone, module.method.vocabulary, module.method.bake().float().cpu()
    layers = {layer: factors.folded() for layer, factors in lora_layers(backbone.denoiser).items()}
    vectors = {render([t], vocabulary).strip("<>"): baked[t.part, t.code].contiguous() for t in tokens}
    settings = _settings(module, layers)
    sample = module.sampling
    masked = settings["masked"]
    readme = _README.format(
        name=name,
        run=run,
        pipeline=settings["pipeline"],
        where=_WHERE[backbone.inject],
        prompt=prompt,
        call=_MASKED if masked else _PLAIN,
        guidance_scale=sample.guidance_scale,
        steps=sample.steps,
        tokens=", ".join(f"`<{name}>`" for name in vectors),
    )
    contents: dict[str, str | bytes] = {
        "parts.safetensors": to_safetensors(vectors, {"format": "pt"}),
        "parts.json": json.dumps(settings, indent=1) + "\n",
        "README.md": readme,
        _CODE: (resources.files("partcraft_lit.commands.export") / "standalone.py").read_text(encoding="utf-8"),
    }
    if layers:
        contents["lora.safetensors"] = to_safetensors(_lora_tensors(settings["denoiser"], layers), {"format": "pt"})
    for file, content in contents.items():
        atomic_write(folder / file, content)
    return [folder / file for file in contents]


def _settings(module: PersonalizationModule, layers: Mapping[str, LoraLayer]) -> dict[str, Any]:
    """What the code beside it reads: everything about prompts that a tokenizer does not know."""
    backbone = module.backbone
    tokens = module.method.tokenize([render([PartToken(0, 0)], module.method.vocabulary)])
    ids, place = tokens.input_ids[0][0], int(tokens.part_positions[0, 0])
    mask, tokenizer = backbone.encode_unconditional().attention_mask, backbone.tokenizers[0]
    if backbone.text_format is None:
        ends = ([int(tokenizer.bos_token_id)], [int(tokenizer.eos_token_id)])
    else:  # a tokenizer may have no such tokens
        ends = (list(backbone.text_format.prefix), list(backbone.text_format.suffix))
    return {
        "pipeline": pipeline_name(backbone),
        "denoiser": backbone.denoiser_name,
        "inject": backbone.inject,
        "prefix": ends[0],
        "suffix": ends[1],
        "padding_side": "right" if backbone.text_format is None else str(tokenizer.padding_side),
        "blank": int(ids[place]),
        "pad": tokenizer.pad_token_id,
        "length": len(ids),
        "masked": mask is not None,
        "layers": list(getattr(backbone, "text_layers", ())),
        "rank": max((layer.rank for layer in layers.values()), default=0),
        "targets": sorted(layers),
    }


def _lora_tensors(denoiser: str, layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """Names as peft and diffusers read them."""
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{denoiser}.{name}.lora_A.weight"] = layer.down.contiguous()
        tensors[f"{denoiser}.{name}.lora_B.weight"] = layer.up.contiguous()
    return tensors


@torch.no_grad()
def _embeds(module: PersonalizationModule, prompt: str) -> Tensor:
    tokens = module.method.tokenize([prompt]).to(module.device)
    conditioning = module.backbone.encode_prompts(tokens, module.method.part_vectors(tokens))
    return conditioning.encoder_hidden_states.float().cpu()


def _check(
    folder: Path, module: PersonalizationModule, prompt: str, wanted: Tensor, image: Tensor, steps: int, seed: int
) -> dict[str, float]:
    """Runs the exported code on diffusers' pipeline.

    Returns:
        "text": largest difference of the embeddings as a share of the largest entry; "image": mean difference of the
        image in grey levels.
    """
    backbone, sample = module.backbone, module.sampling
    pipeline, code = plain_pipeline(backbone, sample.scheduler), _load_code(folder / _CODE)
    code.add_adapter(pipeline, folder)
    (embeds, mask), (empty, empty_mask) = (code.encode(pipeline, folder, text) for text in (prompt, ""))
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": empty}
    if json.loads((folder / "parts.json").read_text(encoding="utf-8"))["masked"]:
        given |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": empty_mask}
        given["use_resolution_binning"] = False
        wanted, embeds = wanted[mask.cpu()], embeds[mask]
    drawn = pipeline(
        **given,
        latents=initial_noise(backbone, [torch_generator(seed, "sample")]),
        height=backbone.resolution,
        width=backbone.resolution,
        num_inference_steps=steps,
        guidance_scale=sample.guidance_scale,
        output_type="pt",
    ).images[0]
    text = (embeds.float().cpu() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)
    grey = (to_uint8(drawn.cpu() * 2 - 1).float() - image.float()).abs().mean()
    return {"text": float(text), "image": float(grey)}


def _load_code(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


def _check_weights(module: PersonalizationModule) -> None:
    """Raises a UserError for a run that trained more than a LoRA and tokens."""
    others = [name for name, p in module.backbone.named_parameters() if p.requires_grad and ".lora_" not in name]  # type: ignore[attr-defined]
    if others:
        raise UserError(
            f"This run trained {len(others)} weights of the model itself, for instance {others[0]!r}; an export holds "
            "LoRA and part vectors only. Train with method.unet=lora and method.text_encoder=false."
        )


def _one_of_each(tokens: Sequence[PartToken]) -> list[PartToken]:
    """The first exported variant of every part."""
    return list({token.part: token for token in reversed(tokens)}.values())[::-1]
