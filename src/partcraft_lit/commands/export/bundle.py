"""What is exported, and the metadata of every file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from partcraft_lit import __version__
from partcraft_lit.backbones.lora import LoraLayer
from partcraft_lit.backbones.model_families import Family
from partcraft_lit.commands.export.settings import ExportSettings
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.tokens.embedding_files import ExportedPart, Tool
from partcraft_lit.tokens.grammar import PartVocabulary

#: The name under which diffusers looks for an adapter in a folder.
LORA_NAME = "pytorch_lora_weights.safetensors"
_ORIGINAL = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class Origin:
    """Where a run's model and images came from, fit for the public.

    Attributes:
        model: hub id of the base model, or the name of its folder or file.
        model_is_public: whether that is a hub id.
        model_is_packaged: whether it is the miniature of this package.
        data_is_drawn: whether the training images were drawn by this package.
    """

    model: str
    model_is_public: bool
    model_is_packaged: bool
    data_is_drawn: bool


@dataclass(frozen=True)
class Bundle:
    """What is exported.

    Attributes:
        name: file names begin with it.
        run: name of the run.
        origin: of model and images.
        family: of the model.
        base_hash: of all frozen weights.
        parts: baked tokens.
        adapters: network -> layer -> what the adapter adds.
        settings: of the export.
        trained: settings of the run.
        resolution: side of the model's images, in pixels.
        predicts_velocity: whether the model predicts velocity, and not noise.
        guidance_rescale: see ``sampling.guidance_rescale``.
        vocabulary: parts and codes of the run.
    """

    name: str
    run: str
    origin: Origin
    family: Family
    base_hash: str
    parts: Sequence[ExportedPart]
    adapters: Mapping[str, Mapping[str, LoraLayer]]
    settings: ExportSettings
    trained: TrainSettings
    resolution: int
    predicts_velocity: bool
    guidance_rescale: float
    vocabulary: PartVocabulary

    @property
    def num_layers(self) -> int:
        return sum(map(len, self.adapters.values()))

    @property
    def rank(self) -> int:
        """Of the adapter; that of the settings where there is none."""
        ranks = [layer.rank for layers in self.adapters.values() for layer in layers.values()]
        return max(ranks, default=self.trained.lora.rank)

    def metadata(self, kind: Literal["lora", "textual-inversion"], tool: Tool, trigger: str) -> dict[str, str]:
        """The header of a file, by the conventions of modelspec and kohya: nothing of this machine.

        Args:
            kind: what the file holds.
            tool: that it is for.
            trigger: words that call it up in that tool.
        """
        header = {
            "format": "pt",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.implementation": self._implementation(kind, tool),
            "modelspec.title": self.name,
            "modelspec.date": date.today().isoformat(),
            "modelspec.resolution": f"{self.resolution}x{self.resolution}",
            "modelspec.prediction_type": "v" if self.predicts_velocity else "epsilon",
            "modelspec.trigger_phrase": trigger,
            "modelspec.tags": "partcraft, parts",
            "modelspec.license": self.license,
            "ss_sd_model_name": self.origin.model or "partcraft-lit mini",
            "partcraft.version": __version__,
            "partcraft.run": self.run,
            "partcraft.base_hash": self.base_hash,
        }
        family = self.family
        if family.architecture:
            header["modelspec.architecture"] = f"{family.architecture_of(self.predicts_velocity)}/{kind}"
        if family.base_version:
            # A1111 takes a file for SD 1.x unless one of these says otherwise.
            header |= {"ss_base_model_version": family.base_version, "ss_v2": str(family.is_v2)}
        return header | (self._adapter_metadata() if kind == "lora" else {})

    def _adapter_metadata(self) -> dict[str, str]:
        """What only the header of an adapter says."""
        rank, trained = self.rank, self.trained  # the alpha is folded, whatever it was: see backbones.lora_files
        settings = {
            "lora_rank": rank,
            "lora_alpha": trained.lora.alpha or rank,
            "lora_scope": trained.lora.scope,
            "lambda_attn": trained.loss.lambda_attn,
            "num_parts": trained.parts.M,
            "num_codes": trained.parts.K,
            "seed": trained.seed,
        }
        return {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(rank),
            "partcraft.settings": json.dumps(settings),
        }

    def _implementation(self, kind: str, tool: Tool) -> str:
        """Whose names of layers a file has, as kohya's scripts fill this in."""
        is_original = kind == "textual-inversion" or self.family.unet_names == "sgm"
        return _ORIGINAL if is_original and tool != "diffusers" else "diffusers"

    @property
    def license(self) -> str:
        """Of the base model, as far as it is known."""
        if self.origin.model_is_packaged:
            return "apache-2.0"
        return self.family.license if self.family.is_known else "other"
