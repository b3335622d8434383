"""The parts and the adapter of a run as files for other tools, each read again and compared before it is given out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from partcraft_lit.backbones.lora import LoraLayer, lora_layers, remove_lora
from partcraft_lit.backbones.lora_extraction import extract_lora_layers
from partcraft_lit.backbones.lora_files import UNET, encoder_names, to_diffusers, to_kohya
from partcraft_lit.backbones.model_families import family_of
from partcraft_lit.backbones.sampling import guidance_rescale, make_scheduler
from partcraft_lit.backbones.trainable_weights import cross_kv
from partcraft_lit.commands.export.bundle import LORA_NAME, Bundle, Origin
from partcraft_lit.commands.export.card import ONE_FILE, negative_in, prompt_in, write_card
from partcraft_lit.commands.export.publish import MANIFEST
from partcraft_lit.commands.export.settings import ExportSettings
from partcraft_lit.commands.export.verify import Expected, Found, check_one_file, check_target
from partcraft_lit.commands.export.webui import adapter_sidecar, alone, bundled_tensors, parameters, write_sidecars
from partcraft_lit.commands.export.workflow import (
    api_workflow,
    canvas_seed,
    canvas_workflow,
    matching_steps,
    png_chunks,
)
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.types import Backbone, PartToken
from partcraft_lit.core.visualization import save_png
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.corrections import name_codes
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.runs.assembly import UNTRAINED, load_trained, untrained_of_run
from partcraft_lit.runs.exportable import unexportable
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.runs.vocabulary import vocabulary_of
from partcraft_lit.tokens.embedding_files import ExportedPart, Tool, chosen_tokens, exported_part, usual_name
from partcraft_lit.tokens.grammar import PartVocabulary, parse, render

#: Part tokens in one prompt of the check: they fit beside the words, whatever the names of the parts.
_PER_PROMPT = 16


def export(
    settings: ExportSettings,
    folder: Path,
    *,
    run_folder: Path,
    trained: TrainSettings,
    load_backbone: Callable[[], Backbone],
    origin: Origin,
) -> dict[str, Any]:
    """``partcraft export``: writes one folder per tool, a model card, thumbnails, and what reading them again gave.

    Returns:
        What ``export.json`` holds.

    Raises:
        UserError: for a part that does not exist (before a model is loaded), a run that cannot be exported, or a file
            that does not give back what was trained.
    """
    stages = Stages()
    dictionary = PartDictionary.load(run_folder / "parts")
    vocabulary = vocabulary_of(dictionary)
    missing = untrained_of_run(run_folder, dictionary)
    tokens = chosen_tokens(settings.chosen, vocabulary, shown_codes(dictionary, missing))
    for token in tokens:
        if token.code in missing.get(token.part, ()):
            raise UserError(f"parts: {render([token], vocabulary)} is untrained: {UNTRAINED}.")
    for part, codes in missing.items():
        stages.log(f"  untrained, and left out: {name_codes(dictionary.names[part], codes)}")
    _check_negative_prompt(settings.sample.negative_prompt, tokens, vocabulary)
    with stages.stage("load"):
        backbone = load_backbone()
        untrained = {name: weight.detach().cpu().clone() for name, weight in cross_kv(backbone.denoiser)}
        module, _ = load_trained(trained, run_folder, backbone, class_noun="")
    _check_adapters(module)
    bundle = _bundle(settings, run_folder.name, trained, module, tokens, origin, untrained)
    with stages.stage("sample"):
        expected = _expected(bundle, module)
        thumbnails = _thumbnails(bundle, module)
        sampled = _workflow_image(bundle, module) if "comfyui" in settings.to and thumbnails else None
    remove_lora(backbone.denoiser)
    with torch.no_grad():
        for name, weight in cross_kv(backbone.denoiser):
            weight.copy_(untrained[name])
    files: list[Path] = []
    results: dict[Tool, Found] = {}
    for target in settings.to:
        written = _WRITERS[target](bundle, backbone, folder / target)
        with stages.stage(f"check {target}"):
            results[target] = check_target(target, folder / target, bundle, expected, backbone)
        files += written
        stages.log(f"  {target}: {_verdict(results[target], bundle)}")
    images = _write_thumbnails(bundle, thumbnails, folder)
    files += _write_extras(bundle, backbone, thumbnails, folder)
    if sampled is not None:
        files.append(save_png(folder / "comfyui" / "workflow.png", sampled, png_chunks(_workflow(bundle))))
    files += [*images, *write_card(bundle, results, folder, images)]
    manifest = _manifest(bundle, results, [path.relative_to(folder).as_posix() for path in files])
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    _raise_if_missed(bundle, results, folder)
    return manifest


def _check_negative_prompt(prompt: str, tokens: Sequence[PartToken], vocabulary: PartVocabulary) -> None:
    """Raises a UserError for a part of the negative prompt that other tools could not know."""
    for piece in parse(prompt, vocabulary, "sample.negative_prompt"):
        if not isinstance(piece, PartToken):
            continue
        variant = replace(piece, weight=1.0)
        written = render([piece], vocabulary)
        if variant not in tokens:
            name = render([variant], vocabulary).strip("<>")
            raise UserError(
                f"sample.negative_prompt names {written}, which is not exported: add {name} to parts=[...], or leave "
                "it out of the negative prompt."
            )
        if piece.weight != 1:
            raise UserError(
                f"sample.negative_prompt: {written} has a weight, which no other tool reads so; write it without."
            )


def _bundle(
    settings: ExportSettings,
    run: str,
    trained: TrainSettings,
    module: PersonalizationModule,
    tokens: Sequence[PartToken],
    origin: Origin,
    untrained: Mapping[str, Tensor],
) -> Bundle:
    backbone = module.backbone
    name = settings.name or usual_name(run)
    baked = module.method.bake()
    networks = {
        UNET: backbone.denoiser,
        **dict(zip(encoder_names(len(backbone.text_encoders)), backbone.text_encoders)),
    }
    layers = {network: lora_layers(part) for network, part in networks.items()}
    layers[UNET] |= _changed_projections(backbone.denoiser, untrained)
    return Bundle(
        name=name,
        run=run,
        origin=origin,
        family=family_of(backbone),
        base_hash=backbone.hash,
        parts=[exported_part(token, module.method.vocabulary, baked, backbone.token_widths, name) for token in tokens],
        adapters={network: found for network, found in layers.items() if found},
        settings=settings,
        trained=trained,
        resolution=backbone.resolution,
        guidance_rescale=guidance_rescale(backbone.noise_scheduler),
        predicts_velocity=backbone.noise_scheduler.config.prediction_type == "v_prediction",
        vocabulary=module.method.vocabulary,
    )


def shown_codes(dictionary: PartDictionary, untrained: Mapping[int, Sequence[int]]) -> list[list[bool]]:
    """Per part and code, whether it is trained; a class that never shows a part has a centroid of zeros."""
    shown = [table.any(dim=1).tolist() for table in dictionary.code_centroids]
    return [
        [seen and code not in untrained.get(part, ()) for code, seen in enumerate(column)]
        for part, column in enumerate(shown)
    ]


def _changed_projections(unet: Any, untrained: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """Keys and values of cross-attention that were trained as they are, as in Custom Diffusion."""
    trained = {name: weight.detach().cpu() for name, weight in cross_kv(unet) if weight.requires_grad}
    return extract_lora_layers({name: untrained[name] for name in trained}, trained) if trained else {}


def _check_adapters(module: PersonalizationModule) -> None:
    """Rejects runs that are not representable as LoRA and embeddings."""
    if (found := unexportable(module)) is not None:
        network, others = found
        raise UserError(
            f"This run trained {len(others)} weights of the {network} itself, for instance {others[0]!r}; an "
            f"export holds LoRA and embeddings only. Train with method.unet=lora, or cross_kv, and "
            f"method.text_encoder=false."
        )


# What the files have to reproduce.


@torch.no_grad()
def _expected(bundle: Bundle, module: PersonalizationModule) -> Expected:
    """Text embeddings and an image of the trained model, for prompts that hold every exported part."""
    words = [part.placeholder for part in bundle.parts]
    prompts = [
        f"a photo of a {' '.join(words[start : start + _PER_PROMPT])}" for start in range(0, len(words), _PER_PROMPT)
    ]
    texts = []
    for prompt in prompts:
        tokens = module.method.tokenize([prompt]).to(module.device)
        texts.append(module.backbone.encode_prompts(tokens, module.method.part_vectors(tokens)).to("cpu"))
    sampling = replace(bundle.settings.sample, steps=min(bundle.settings.sample.steps, bundle.settings.check.steps))
    module.use_sampling(sampling)
    image_prompt = f"a photo of a {' '.join(part.placeholder for part in _one_of_each(bundle.parts))}"
    image = module.generate([image_prompt], [bundle.settings.seed])[0]
    return Expected(prompts, texts, image_prompt, image, sampling)


def _one_of_each(parts: Sequence[ExportedPart]) -> list[ExportedPart]:
    """The first exported variant of every part, as many as fit a prompt."""
    first = {part.token.part: part for part in reversed(parts)}
    return list(first.values())[::-1][:_PER_PROMPT]


def _thumbnails(bundle: Bundle, module: PersonalizationModule) -> list[Tensor]:
    few = bundle.parts[: bundle.settings.thumbnails]
    if not few:
        return []
    module.use_sampling(bundle.settings.sample)
    prompts = [part.alone for part in few]
    return list(module.generate(prompts, [bundle.settings.seed] * len(few)))


def _workflow_image(bundle: Bundle, module: PersonalizationModule) -> Tensor:
    """(3, H, W) uint8: what the workflow for ComfyUI gives."""
    sample = bundle.settings.sample
    module.use_sampling(replace(sample, scheduler="euler", steps=matching_steps(sample.steps)))
    return module.generate([prompt_in(bundle, "diffusers")], [canvas_seed(bundle.settings.seed)])[0]


# Writing.


def _write_diffusers(bundle: Bundle, backbone: Backbone, folder: Path) -> list[Path]:
    files = []
    if bundle.adapters:
        files.append(_save_lora(folder / LORA_NAME, to_diffusers(bundle.adapters), bundle, "diffusers"))
    for index, network in enumerate(encoder_names(len(backbone.text_encoders))):
        for part in bundle.parts:
            vectors = {part.placeholder: part.vectors[index]}
            files.append(_save_embedding(folder / network, part, vectors, bundle, "diffusers"))
    scheduler = make_scheduler(backbone.noise_scheduler, bundle.settings.sample.scheduler)
    path = folder / "scheduler" / "scheduler_config.json"
    atomic_write(path, scheduler.to_json_string())
    return [*files, path]


def _write_a1111(bundle: Bundle, backbone: Backbone, folder: Path) -> list[Path]:
    return _write_webui(bundle, backbone, folder / "models" / "Lora", folder / "embeddings", "a1111")


def _write_comfyui(bundle: Bundle, backbone: Backbone, folder: Path) -> list[Path]:
    files = _write_webui(bundle, backbone, folder / "models" / "loras", folder / "models" / "embeddings", "comfyui")
    nodes = _workflow(bundle)
    for name, content in (("workflow.json", canvas_workflow(nodes)), ("workflow_api.json", nodes)):
        atomic_write(folder / name, json.dumps(content, indent=1) + "\n")
        files.append(folder / name)
    return files


def _workflow(bundle: Bundle) -> dict[str, Any]:
    seed = canvas_seed(bundle.settings.seed)
    return api_workflow(bundle, prompt_in(bundle, "comfyui"), negative_in(bundle, "comfyui"), seed)


def _write_extras(bundle: Bundle, backbone: Backbone, thumbnails: Sequence[Tensor], folder: Path) -> list[Path]:
    """What A1111's users expect beside the files: side-cars, a preview of the adapter, and everything in one file."""
    if "a1111" not in bundle.settings.to:
        return []
    trigger = " ".join(part.word("a1111") for part in _one_of_each(bundle.parts))
    negative = negative_in(bundle, "a1111")
    files = write_sidecars(bundle, folder / "a1111", trigger, negative)
    if not bundle.adapters:
        return files
    adapter = to_kohya(bundle.adapters, bundle.family, backbone.denoiser.config)
    one = folder / ONE_FILE / f"{bundle.name}.safetensors"
    files.append(_save(one, bundled_tensors(bundle, adapter), bundle, bundle.metadata("lora", "a1111", trigger)))
    check_one_file(one, folder / "a1111", bundle)
    sidecar = adapter_sidecar(bundle, trigger, negative)
    atomic_write(one.with_suffix(".json"), json.dumps(sidecar, indent=4) + "\n")
    files.append(one.with_suffix(".json"))
    for place in (one, folder / "a1111" / "models" / "Lora" / one.name) if thumbnails else ():
        chunks = parameters(bundle, alone(bundle, bundle.parts[0]), negative, bundle.settings.seed)
        files.append(save_png(place.with_suffix(".preview.png"), thumbnails[0], chunks))
    return files


def _write_webui(
    bundle: Bundle, backbone: Backbone, lora_folder: Path, embedding_folder: Path, tool: Tool
) -> list[Path]:
    files = []
    if bundle.adapters:
        tensors = to_kohya(bundle.adapters, bundle.family, backbone.denoiser.config)
        files.append(_save_lora(lora_folder / f"{bundle.name}.safetensors", tensors, bundle, tool))
    for part in bundle.parts:
        vectors = dict(zip(bundle.family.embedding_keys, part.vectors, strict=True))
        files.append(_save_embedding(embedding_folder, part, vectors, bundle, tool))
    return files


_WRITERS: dict[Tool, Callable[[Bundle, Backbone, Path], list[Path]]] = {
    "diffusers": _write_diffusers,
    "a1111": _write_a1111,
    "comfyui": _write_comfyui,
}


def _save_lora(path: Path, tensors: Mapping[str, Tensor], bundle: Bundle, tool: Tool) -> Path:
    trigger = ", ".join(part.word(tool) for part in _one_of_each(bundle.parts))
    return _save(path, tensors, bundle, bundle.metadata("lora", tool, trigger))


def _save_embedding(
    folder: Path, part: ExportedPart, vectors: Mapping[str, Tensor], bundle: Bundle, tool: Tool
) -> Path:
    header = bundle.metadata("textual-inversion", tool, part.word(tool))
    return _save(folder / f"{part.stem}.safetensors", vectors, bundle, header)


def _save(path: Path, tensors: Mapping[str, Tensor], bundle: Bundle, header: dict[str, str]) -> Path:
    dtype = getattr(torch, bundle.settings.number_format)
    cast = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    atomic_write(path, to_safetensors(cast, header))
    return path


def _write_thumbnails(bundle: Bundle, thumbnails: Sequence[Tensor], folder: Path) -> list[Path]:
    """One per part for the card, and beside its embedding where A1111 looks for one.

    There the name must end in ``.preview.png``: any other PNG in that folder is taken for an embedding.
    """
    paths = []
    for part, image in zip(bundle.parts, thumbnails, strict=False):
        recipe = {"prompt": part.alone, "seed": bundle.settings.seed, "run": bundle.run}
        paths.append(save_png(folder / "thumbnails" / f"{part.stem}.png", image, recipe))
        if "a1111" in bundle.settings.to:
            chunks = parameters(bundle, alone(bundle, part), negative_in(bundle, "a1111"), bundle.settings.seed)
            preview = folder / "a1111" / "embeddings" / f"{part.stem}.preview.png"
            paths.append(save_png(preview, image, chunks))
    return paths


# The verdict.


def _verdict(found: Found, bundle: Bundle) -> str:
    return (
        f"{found.layers}/{bundle.num_layers} layers, largest error {found.weights:.1e}; {found.parts} parts, text "
        f"{found.text:.1e}; image {found.image:.2f} grey levels: {'ok' if found.ok(bundle) else 'MISSED'}"
    )


def _manifest(bundle: Bundle, results: Mapping[Tool, Found], files: Sequence[str]) -> dict[str, Any]:
    return {
        "name": bundle.name,
        "run": bundle.run,
        "base": {
            "model": bundle.origin.model,
            "family": bundle.family.title,
            "hash": bundle.base_hash,
            "resolution": bundle.resolution,
        },
        "vocabulary": {"names": list(bundle.vocabulary.names), "num_codes": list(bundle.vocabulary.num_codes)},
        "sample": vars(bundle.settings.sample),
        "parts": [
            {"token": part.placeholder, "part": part.token.part, "code": part.token.code, "file": part.stem}
            for part in bundle.parts
        ],
        "layers": bundle.num_layers,
        "tolerances": vars(bundle.settings.check),
        "checks": {target: {**vars(found), "ok": found.ok(bundle)} for target, found in results.items()},
        "files": list(files),
    }


def _raise_if_missed(bundle: Bundle, results: Mapping[Tool, Found], folder: Path) -> None:
    missed = [target for target, found in results.items() if not found.ok(bundle)]
    if missed:
        raise UserError(
            f"The files for {', '.join(missed)} do not give back what was trained: {folder / MANIFEST} has the "
            f"numbers, and the tolerances are check.weights, check.text and check.image. With "
            f"number_format=float16, float32 is closer."
        )
