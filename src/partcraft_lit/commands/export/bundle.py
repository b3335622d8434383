"""What is exported, and what is said about it in every file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from partcraft_lit import __version__
from partcraft_lit.backbones.lora import LoraLayer
from partcraft_lit.backbones.model_families import Family
from partcraft_lit.commands.export.settings import ExportSettings
from partcraft_lit.commands.train.settings import TrainSettings
from partcraft_lit.tokens.embedding_files import ExportedPart

#: The name under which diffusers looks for an adapter in a folder.
LORA_NAME = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Origin:
    """Where a run's model and pictures came from, fit for the public.

    Attributes:
        model: hub id of the base model, or the name of its folder or file.
        model_is_public: whether that is a hub id.
        model_is_packaged: whether it is the miniature of this package.
        data_is_drawn: whether the training pictures were drawn by this package.
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
        origin: of model and pictures.
        family: of the model.
        base_hash: of all frozen weights.
        parts: baked tokens.
        adapters: network -> layer -> what the adapter adds.
        settings: of the export.
        trained: settings of the run.
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

    @property
    def num_layers(self) -> int:
        return sum(map(len, self.adapters.values()))

    @property
    def rank(self) -> int:
        """Of the adapter; that of the settings where there is none."""
        ranks = [layer.rank for layers in self.adapters.values() for layer in layers.values()]
        return max(ranks, default=self.trained.lora.rank)

    def metadata(self) -> dict[str, str]:
        """The header of every file: what it is, what calls it up, what it needs. Nothing of this machine."""
        family, rank = self.family, self.rank
        known = {"modelspec.architecture": f"{family.architecture}/lora"} if family.architecture else {}
        if family.base_version:
            known["ss_base_model_version"] = family.base_version
        if self.adapters:  # the alpha is folded, whatever it was: see backbones.lora_files
            known |= {
                "ss_network_module": "networks.lora",
                "ss_network_dim": str(rank),
                "ss_network_alpha": str(rank),
            }
        return known | {
            "format": "pt",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.title": self.name,
            "modelspec.date": date.today().isoformat(),
            "modelspec.trigger_phrase": ", ".join(part.placeholder for part in self.parts),
            "modelspec.tags": "partcraft, parts, lora",
            "modelspec.license": self.license,
            "ss_sd_model_name": self.origin.model or "partcraft-lit mini",
            "partcraft.version": __version__,
            "partcraft.run": self.run,
            "partcraft.base_hash": self.base_hash,
            "partcraft.settings": json.dumps(
                {
                    "lora_rank": rank,
                    "lora_alpha": self.trained.lora.alpha or rank,
                    "lora_scope": self.trained.lora.scope,
                    "lambda_attn": self.trained.loss.lambda_attn,
                    "num_parts": self.trained.parts.M,
                    "num_codes": self.trained.parts.K,
                    "seed": self.trained.seed,
                }
            ),
        }

    @property
    def license(self) -> str:
        """Of the base model, as far as it is known."""
        if self.origin.model_is_packaged:
            return "apache-2.0"
        return self.family.license if self.family.is_known else "other"
