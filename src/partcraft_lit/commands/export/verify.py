"""Reads exported files again, with diffusers' own loaders, and compares them with what was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from partcraft_lit.backbones.lora import LoraLayer
from partcraft_lit.backbones.lora_files import UNET, encoder_names, from_diffusers, from_kohya
from partcraft_lit.backbones.pipelines import diffusers_pipeline, fix_eos_pooling, pipeline_seed
from partcraft_lit.backbones.sampling import guidance_rescale
from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.commands.export.bundle import LORA_NAME, Bundle
from partcraft_lit.commands.export.webui import BUNDLED
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Backbone, Conditioning, PartToken
from partcraft_lit.tokens.embedding_files import Tool, renamed_prompt


@dataclass(frozen=True)
class Expected:
    """What the trained model gives.

    Attributes:
        prompts: in our grammar; together they hold every exported part.
        texts: the conditioning of each.
        image_prompt: of the image.
        image: (3, H, W) uint8.
        sampling: how it was sampled.
    """

    prompts: Sequence[str]
    texts: Sequence[Conditioning]
    image_prompt: str
    image: Tensor
    sampling: SampleSettings


@dataclass(frozen=True)
class Found:
    """How far the files of one tool are from that.

    Attributes:
        layers: of the adapter that were found again.
        parts: embeddings that were loaded.
        weights: largest difference in a layer's change, as a share of the layer's largest entry.
        text: the same over all prompts, the pooled embedding included.
        image: mean difference of the image, in grey levels of 255.
        image_max: largest difference of a pixel, likewise.
    """

    layers: int
    parts: int
    weights: float
    text: float
    image: float
    image_max: int

    def ok(self, bundle: Bundle) -> bool:
        """Whether everything is there and within the tolerances; what is not a number is not."""
        allowed = bundle.settings.check
        complete = self.layers == bundle.num_layers and self.parts == len(bundle.parts)
        return (
            complete and self.weights <= allowed.weights and self.text <= allowed.text and self.image <= allowed.image
        )


@torch.no_grad()
def check_target(target: Tool, folder: Path, bundle: Bundle, expected: Expected, backbone: Backbone) -> Found:
    """Loads one tool's files into a pipeline of diffusers that holds nothing of ours.

    No tool but diffusers is at hand here: A1111's and ComfyUI's layers are looked up by their rule, by the names of
    all layers of the model, and their files are then loaded by diffusers, which reads both kinds.

    Args:
        target: which tool.
        folder: its files.
        bundle: what was exported.
        expected: what the trained model gives.
        backbone: without its adapter.
    """
    pipeline = diffusers_pipeline(backbone, bundle.settings.sample.scheduler)
    load = _load_diffusers if target == "diffusers" else _load_webui
    with _without_advice():
        layers, words = load(folder, bundle, pipeline, backbone)
    fix_eos_pooling(pipeline)
    try:
        text = max(
            _text_error(pipeline, renamed_prompt(prompt, bundle.vocabulary, words), wanted)
            for prompt, wanted in zip(expected.prompts, expected.texts, strict=True)
        )
        prompt, negative = (
            renamed_prompt(text, bundle.vocabulary, words)
            for text in (expected.image_prompt, expected.sampling.negative_prompt)
        )
        sampling = replace(expected.sampling, negative_prompt=negative)
        image = sample(pipeline, prompt, bundle.settings.seed, sampling, backbone.resolution)
    finally:
        if bundle.adapters:
            pipeline.unload_lora_weights()  # the UNet is shared
    difference = (image.int() - expected.image.int()).abs()
    trained = {f"{network}.{name}": layer for network, part in bundle.adapters.items() for name, layer in part.items()}
    return Found(
        layers=len(trained.keys() & layers.keys()),
        parts=len(words),
        weights=weights_error(trained, layers),
        text=text,
        image=float(difference.float().mean()),
        image_max=int(difference.max()),
    )


def check_one_file(path: Path, folder: Path, bundle: Bundle) -> None:
    """Raises a UserError unless a file with everything holds just the adapter and the embeddings of ``folder``.

    Its keys are read as A1111 does: ``bundle_emb.<name>.<key>`` is a tensor of an embedding, all else is the adapter.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(path).items():
        kind, _, rest = name.partition(".")
        stem, key = rest.split(".", 1) if kind == BUNDLED else (bundle.name, name)
        found.setdefault(stem, {})[key] = tensor
    wanted = {file.stem: load_file(file) for file in folder.rglob("*.safetensors")}
    same = found.keys() == wanted.keys() and all(
        found[stem].keys() == tensors.keys() and all(torch.equal(found[stem][key], tensors[key]) for key in tensors)
        for stem, tensors in wanted.items()
    )
    if not same:
        raise UserError(f"{path.name} does not give back the adapter and the {len(bundle.parts)} parts that are in it.")


@contextmanager
def _without_advice() -> Iterator[None]:
    """diffusers warns of every text encoder that a file has no change for; what is in a file is counted here anyway."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def weights_error(trained: Mapping[str, LoraLayer], layers: Mapping[str, LoraLayer]) -> float:
    """Largest difference in a layer's change, as a share of its largest entry; infinite if the layers differ."""
    if trained.keys() != layers.keys():
        return float("inf")
    errors = [relative_error(layers[name].delta(), layer.delta()) for name, layer in trained.items()]
    return max(errors, default=0.0)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest number that is wanted."""
    largest = float(wanted.abs().max())
    return float((found - wanted).abs().max()) / max(largest, torch.finfo(torch.float32).tiny)


def sample(pipeline: Any, prompt: str, seed: int, sampling: SampleSettings, resolution: int) -> Tensor:
    """(3, H, W) uint8: the image that ``partcraft generate`` samples with this seed, by a plain pipeline."""
    result = pipeline(
        prompt,
        negative_prompt=sampling.negative_prompt or None,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        **rescaling(pipeline.scheduler),
        generator=torch.Generator().manual_seed(pipeline_seed(seed)),
        height=resolution,
        width=resolution,
        output_type="pil",
    )
    return torch.from_numpy(np.array(result.images[0].convert("RGB"))).permute(2, 0, 1)


def rescaling(scheduler: Any) -> dict[str, float]:
    """The argument of diffusers' pipelines for what ``guidance_rescale`` says of a model; none if it says nothing."""
    rescale = guidance_rescale(scheduler)
    return {"guidance_rescale": rescale} if rescale else {}


def _text_error(pipeline: Any, prompt: str, wanted: Conditioning) -> float:
    encoded = pipeline.encode_prompt(
        prompt, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    error = relative_error(encoded[0].cpu().float(), wanted.encoder_hidden_states.float())
    if wanted.pooled_prompt_embeds is None:
        return error
    return max(error, relative_error(encoded[2].cpu().float(), wanted.pooled_prompt_embeds.float()))


_Loaded = tuple[dict[str, LoraLayer], dict[PartToken, str]]


def _load_diffusers(folder: Path, bundle: Bundle, pipeline: Any, backbone: Backbone) -> _Loaded:
    """As the model card says it: a folder for the adapter, a list of files per text encoder."""
    layers: dict[str, LoraLayer] = {}
    if bundle.adapters:
        pipeline.load_lora_weights(str(folder), weight_name=LORA_NAME)
        layers = from_diffusers(load_file(folder / LORA_NAME))
    for index, network in enumerate(encoder_names(len(backbone.text_encoders))):
        files = [str(path) for path in sorted((folder / network).glob("*.safetensors"))]
        ending = "" if index == 0 else f"_{index + 1}"
        pipeline.load_textual_inversion(
            files,
            tokenizer=getattr(pipeline, f"tokenizer{ending}"),
            text_encoder=getattr(pipeline, f"text_encoder{ending}"),
        )
    return layers, _known_words(pipeline, {part.token: part.placeholder for part in bundle.parts})


def _load_webui(folder: Path, bundle: Bundle, pipeline: Any, backbone: Backbone) -> _Loaded:
    """By the files' names, wherever in the folder they are."""
    networks = {
        UNET: backbone.denoiser,
        **dict(zip(encoder_names(len(backbone.text_encoders)), backbone.text_encoders)),
    }
    layers: dict[str, LoraLayer] = {}
    if bundle.adapters:
        (path,) = folder.rglob(f"{bundle.name}.safetensors")
        layers = from_kohya(load_file(path), networks, bundle.family)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    embeddings = {path.stem: load_file(path) for path in folder.rglob("*.safetensors") if path.stem != bundle.name}
    for index, key in enumerate(bundle.family.embedding_keys):
        ending = "" if index == 0 else f"_{index + 1}"
        pipeline.load_textual_inversion(
            [{stem: tensors[key]} for stem, tensors in embeddings.items()],
            tokenizer=getattr(pipeline, f"tokenizer{ending}"),
            text_encoder=getattr(pipeline, f"text_encoder{ending}"),
        )
    return layers, _known_words(pipeline, {part.token: part.stem for part in bundle.parts})


def _known_words(pipeline: Any, words: dict[PartToken, str]) -> dict[PartToken, str]:
    known: Callable[[], dict[str, int]] = pipeline.tokenizer.get_added_vocab
    return {token: word for token, word in words.items() if word in known()}
