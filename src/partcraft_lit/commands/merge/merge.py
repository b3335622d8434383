"""Closed-form merge of runs of Custom Diffusion, without training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.backbones.concept_merging import merge_models
from partcraft_lit.backbones.trainable_weights import cross_kv
from partcraft_lit.callbacks.checkpoint import manifest_of, manifest_path, newest_good
from partcraft_lit.commands.merge.settings import MergeSettings
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_path, atomic_write, read_lines
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.types import ABSENT, Backbone
from partcraft_lit.methods.method import Method
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.merge import merge as merge_dictionaries
from partcraft_lit.runs.assembly import build_method, build_module
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.runs.stored import discovery_metadata
from partcraft_lit.runs.vocabulary import vocabulary_of
from partcraft_lit.tokens.captions import TEMPLATES

#: With the 27 templates, about 1,000 regularization captions.
_NOUNS = (
    "dog cat horse cow sheep bird fish bear person man woman child house street city garden tree flower forest "
    "mountain beach river sky car bus train bicycle boat chair table lamp bed door window cup bottle book bag shoe hat"
)
_UNET, _METHOD = "backbone.unet.", "method."
#: Captions per forward pass of the text encoder.
_BATCH = 64


@dataclass(frozen=True)
class Trained:
    """A run to merge.

    Attributes:
        folder: of the run.
        settings: with which it was trained.
    """

    folder: Path
    settings: TrainSettings


@dataclass(frozen=True)
class _Learned:
    """Content of a run.

    Attributes:
        frozen: name and hash of its base model.
        state: trained weights.
        step: global step.
        dictionary: its parts.
    """

    frozen: Mapping[str, str]
    state: Mapping[str, Tensor]
    step: int
    dictionary: PartDictionary


def merge(
    settings: MergeSettings,
    folder: Path,
    *,
    runs: Sequence[Trained],
    merged: TrainSettings,
    load_backbone: Callable[[], Backbone],
) -> dict[str, Any]:
    """``partcraft merge``: writes a run with the concepts of all runs.

    Args:
        settings: of the merge.
        folder: of the new run, with its configuration.
        runs: of Custom Diffusion, two or more.
        merged: settings of the new run.
        load_backbone: loads the base model.

    Returns:
        The content of ``merge.json``.

    Raises:
        UserError: if the runs cannot be merged, if possible before the model is loaded.
    """
    stages = Stages()
    captions = read_captions(settings)
    learned = [_read(run.folder) for run in runs]
    _check_same_model([run.folder for run in runs], learned)
    dictionary = merge_dictionaries([found.dictionary for found in learned])
    with stages.stage("load"):
        backbone = load_backbone()
    with stages.stage("merge"), torch.no_grad():
        methods = [_method(run, found, backbone) for run, found in zip(runs, learned, strict=True)]
        concepts = [concept_states(method, backbone) for method in methods]
        originals = {name: weight.detach().cpu().clone() for name, weight in cross_kv(backbone.denoiser)}
        trained = [_projections(found.state, originals) for found in learned]
        weights = merge_models(originals, trained, concepts, ordinary_states(captions, methods[0], backbone))
        tokens = _joined_tokens(methods)
    module = build_module(merged, dictionary, backbone, class_noun="")
    module.load_state_dict({**{_UNET + name: w for name, w in weights.items()}, f"{_METHOD}mapper.codes": tokens})
    _save(folder / "checkpoints", module.state_dict(), learned)
    _write_parts(folder / "parts", dictionary, runs)
    facts = {
        "runs": [run.folder.name for run in runs],
        "concepts": list(dictionary.names[1:]),
        "conditions": sum(map(len, concepts)),
        "captions": len(captions),
        "largest_error": _largest_error(weights, trained, concepts),
    }
    atomic_write(folder / "merge.json", json.dumps(facts, indent=1) + "\n")
    stages.log(
        f"  {facts['conditions']} conditions on each of {len(weights)} projections hold to {facts['largest_error']:.1e}"
    )
    stages.log(f"Merged run: {folder}")
    return facts


def read_captions(settings: MergeSettings) -> list[str]:
    """Regularization captions: the lines of a file, else the templates with common nouns.

    Raises:
        UserError: if the file is unreadable or empty.
    """
    if settings.captions_file is None:
        return [template.replace("{}", noun) for template in TEMPLATES for noun in _NOUNS.split()]
    return read_lines(settings.captions_file, "captions_file")


def concept_states(method: Method, backbone: Backbone) -> Tensor:
    """(s, width) text encoder states of each concept's token and the words after it, in its plain caption."""
    rows = []
    for part, codes in enumerate(method.vocabulary.num_codes):
        for code in range(codes if part else 0):
            shown = torch.full((method.vocabulary.num_parts + 1,), ABSENT)
            shown[part] = code
            tokens = method.tokenize([method.plain_caption(shown)])
            end = int(_ends(tokens.input_ids[0], backbone)[0])
            rows.append(_states(method, backbone, tokens)[0, int(tokens.part_positions[0, 0]) : end])
    return torch.cat(rows)


def ordinary_states(captions: Sequence[str], method: Method, backbone: Backbone) -> Tensor:
    """(n, width) states of regularization captions, BOS to EOS."""
    rows = []
    for start in range(0, len(captions), _BATCH):
        tokens = method.tokenize(captions[start : start + _BATCH])
        ends = _ends(tokens.input_ids[0], backbone)
        rows += [states[: int(end) + 1] for states, end in zip(_states(method, backbone, tokens), ends, strict=True)]
    return torch.cat(rows)


def _states(method: Method, backbone: Backbone, tokens: Any) -> Tensor:
    """(B, L, width) on the CPU."""
    device = next(backbone.denoiser.parameters()).device
    tokens = tokens.to(device)
    return backbone.encode_prompts(tokens, method.part_vectors(tokens)).encoder_hidden_states.float().cpu()


def _ends(input_ids: Tensor, backbone: Backbone) -> Tensor:
    """(B,) position of EOS."""
    return (input_ids == backbone.tokenizers[0].eos_token_id).int().argmax(dim=1)


def _read(folder: Path) -> _Learned:
    checkpoint = newest_good(folder / "checkpoints")
    if checkpoint is None:
        raise UserError(f"The run {folder} has no checkpoint that can be read; train it first (or further).")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    dictionary = PartDictionary.load(folder / "parts")
    return _Learned(content.get("frozen", {}), content["state_dict"], int(content["global_step"]), dictionary)


def _check_same_model(folders: Sequence[Path], learned: Sequence[_Learned]) -> None:
    first = learned[0].frozen
    for folder, found in zip(folders, learned, strict=True):
        if found.frozen.get("hash") != first.get("hash"):
            raise UserError(
                f"The runs were trained on different models: {folders[0].name} on {first.get('backbone')} with weights "
                f"{str(first.get('hash'))[:12]}, {folder.name} on {found.frozen.get('backbone')} with "
                f"{str(found.frozen.get('hash'))[:12]}. Only runs on one model can be merged."
            )


def _method(run: Trained, found: _Learned, backbone: Backbone) -> Method:
    """The method of a run with its trained tokens; the backbone stays unchanged."""
    method = build_method(run.settings, vocabulary_of(found.dictionary), backbone, class_noun="")
    state = {name.removeprefix(_METHOD): v for name, v in found.state.items() if name.startswith(_METHOD)}
    if state:  # else the tokens are frozen at words
        method.load_state_dict(state)  # type: ignore[attr-defined]
    return method.to(next(backbone.denoiser.parameters()).device)  # type: ignore[attr-defined]


def _projections(state: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Projections that a run has trained, by their names in the UNet.

    Raises:
        UserError: if one has another shape than the model's.
    """
    trained = {name: state[_UNET + name] for name in names if _UNET + name in state}
    for name, weight in trained.items():
        if weight.shape != names[name].shape:
            raise UserError(
                f"A checkpoint holds {name} with the shape {tuple(weight.shape)}, and the model's is "
                f"{tuple(names[name].shape)}: it is damaged or of another model. Train that run again."
            )
    return trained


def _joined_tokens(methods: Sequence[Method]) -> Tensor:
    """(M + 1, K, width) baked tokens of all runs; the background's are those of the first."""
    baked = [method.bake().cpu() for method in methods]
    most = max(table.shape[1] for table in baked)
    padded = [torch.nn.functional.pad(table, (0, 0, 0, most - table.shape[1])) for table in baked]
    return torch.cat([padded[0], *(table[1:] for table in padded[1:])])


def _largest_error(
    weights: Mapping[str, Tensor], trained: Sequence[Mapping[str, Tensor]], concepts: Sequence[Tensor]
) -> float:
    """Largest error of the merged projections' outputs for the concepts, relative to the largest trained output."""
    errors = []
    for name, weight in weights.items():
        for model, states in zip(trained, concepts, strict=True):
            wanted = states.double() @ model[name].double().T
            errors.append(float((states.double() @ weight.double().T - wanted).abs().max() / wanted.abs().max()))
    return max(errors)


def _save(folder: Path, state: Mapping[str, Tensor], learned: Sequence[_Learned]) -> None:
    step = max(found.step for found in learned)
    path = folder / f"step={step:06d}.ckpt"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        content = {"global_step": step, "state_dict": dict(state), "frozen": dict(learned[0].frozen)}
        torch.save(content, temporary)
        atomic_write(manifest_path(path), json.dumps(manifest_of(temporary, step), indent=1) + "\n")


def _write_parts(folder: Path, dictionary: PartDictionary, runs: Sequence[Trained]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dictionary.save(folder)
    facts = [discovery_metadata(run.folder) for run in runs]
    parts = [facts[0]["parts"][0], *(part for found in facts for part in found["parts"][1:])]
    notes = [f"Parts are those of {', '.join(run.folder.name for run in runs)}."]
    atomic_write(folder / "discovery.json", json.dumps({"parts": parts, "notes": notes}, indent=1) + "\n")
