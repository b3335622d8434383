"""The folder that ``partcraft export`` makes, opened again: its parts, and drawing with them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from partcraft_lit.backbones.loading import packaged_weights
from partcraft_lit.backbones.lora_files import UNET, encoder_names, from_diffusers
from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.composer.base import Composer
from partcraft_lit.composer.catalog import Part
from partcraft_lit.composer.composition import Composition, PartChoice
from partcraft_lit.composer.drawer import Drawer
from partcraft_lit.composer.exported_words import ExportedWords
from partcraft_lit.composer.stored_parts import Images
from partcraft_lit.composer.views import ImageView
from partcraft_lit.config import factories
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Backbone
from partcraft_lit.tokens.grammar import PartVocabulary

if TYPE_CHECKING:  # Lightning takes seconds, and is needed to draw alone
    from partcraft_lit.module import PersonalizationModule

MANIFEST = "export.json"
_LORA = "pytorch_lora_weights.safetensors"
#: Rows of the token table at most: an export may come from anyone.
_MOST_ROWS = 1 << 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Base:
    """The base model: hub id or name, hash of its weights, side of its images."""

    model: str
    hash: str
    resolution: int


@dataclass(frozen=True)
class _Token:
    """A part variant: numbers of part and code, and stem of its files."""

    part: int
    code: int
    file: str


@dataclass(frozen=True)
class _Vocabulary:
    """Names of all parts and numbers of codes, the background first."""

    names: tuple[str, ...]
    num_codes: tuple[int, ...]


@dataclass(frozen=True)
class _Manifest:
    """What ``export.json`` says that is needed here."""

    name: str
    run: str
    base: _Base
    parts: tuple[_Token, ...]
    vocabulary: _Vocabulary
    sample: SampleSettings


def is_export(folder: Path) -> bool:
    """Whether a folder is what ``partcraft export`` has made."""
    return (folder / MANIFEST).is_file()


class ExportedParts(Composer):
    """An export in diffusers' format; see ``open_run``. It knows neither images nor the part predictor.

    Args:
        folder: of the export.
        device: as in ``open_run``.
        base: the base model; None for the one that the export names.

    Raises:
        UserError: if the export is damaged, incomplete, or has no files for diffusers.
    """

    def __init__(self, folder: Path, device: str, base: str | Path | None = None) -> None:
        self.folder = folder
        self._manifest = _read_manifest(folder)
        self._device = device
        self._base = base
        known = self._manifest.vocabulary
        super().__init__(
            self._manifest.run,
            PartVocabulary(known.names, known.num_codes),
            self._manifest.sample,
            Drawer(self._load_module),
        )

    # As a source of variants; see ``catalog.KnownParts``.

    @property
    def part_names(self) -> Sequence[str]:
        """M + 1 names, the background first."""
        return self._vocabulary.names

    @property
    def counts(self) -> None:
        """How many images show a code is not known to an export."""
        return

    @property
    def code_names(self) -> None:
        """Nor are the classes that codes may stand for."""
        return

    def images_of(self, part: int, code: int) -> Images:
        raise UserError(_UNKNOWN)

    def code_thumbnail(self, part: int, code: int) -> Image.Image | None:
        """An image that was drawn of the part alone, if the export has one."""
        stem = next((token.file for token in self._manifest.parts if (token.part, token.code) == (part, code)), "")
        try:
            with Image.open(self.folder / "thumbnails" / f"{stem}.png", formats=["PNG"]) as image:
                return image.convert("RGB")
        except (OSError, Image.DecompressionBombError):
            return None

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts, at their numbers, with those variants that were exported."""
        codes: list[dict[int, bool]] = [{} for _ in self._vocabulary.names]
        for token in self._manifest.parts:
            codes[token.part][token.code] = True
        return tuple(Part(self, part, there) for part, there in enumerate(codes))

    # What an export does not know.

    def images(self, *_: Any, **__: Any) -> Images:
        """Not known to an export.

        Raises:
            UserError: always.
        """
        raise UserError(_UNKNOWN)

    image = thumbnail = read = images

    @property
    def has_images(self) -> bool:
        return False

    @property
    def class_names(self) -> tuple[str, ...]:
        return ()

    def _view_of(self, pixels: Tensor, name: str = "") -> ImageView:
        raise UserError(_UNKNOWN)

    def _centroid(self, part: str, code: int) -> Tensor:
        raise UserError(_UNKNOWN)

    def _captions(self, chosen: Sequence[PartChoice]) -> tuple[tuple[str, ...], str]:
        return (), ""

    def _check(self, composition: Composition) -> None:
        super()._check(composition)
        for choice in (*composition.choices, *composition.negative):
            part = self.part(choice.part)
            part[choice.code]  # raises for one that is not exported
            whole = len(part.variants) == self._vocabulary.num_codes[part.index]
            if choice.weight != 1 and not whole:
                raise UserError(
                    f"{choice.token}: a weight is measured from the mean of all variants of {part.name!r}, and this "
                    f"export has {len(part.variants)} of {self._vocabulary.num_codes[part.index]}. Leave it out, or "
                    f"export them all: parts=[{part.name}]."
                )

    @cached_property
    def _exported_words(self) -> ExportedWords:
        stems = {(token.part, token.code): token.file for token in self._manifest.parts}
        adapter = self._manifest.name if (self.folder / "diffusers" / _LORA).is_file() else ""
        model = self._manifest.base.model
        return ExportedWords(self._vocabulary, lambda part, code: stems.get((part, code)), adapter, model)

    # The model.

    def _load_module(self) -> PersonalizationModule:
        from partcraft_lit.methods.part_tokens import PartTokens
        from partcraft_lit.module import PersonalizationModule
        from partcraft_lit.tokens.captions import CaptionBuilder
        from partcraft_lit.tokens.mapper import TokenMapper

        backbone = self._load_backbone()
        folder, tables = self.folder / "diffusers", []
        try:
            for network in encoder_names(len(backbone.text_encoders)):
                tables.append(
                    {
                        (token.part, token.code): _only(load_file(folder / network / f"{token.file}.safetensors"))
                        for token in self._manifest.parts
                    }
                )
            _add_adapters(backbone, folder / _LORA)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f"The export {self.folder} is damaged or of another model: {error}") from error
        mapper = TokenMapper(
            num_parts=self._vocabulary.num_parts,
            num_codes=self._vocabulary.max_codes,
            widths=backbone.token_widths,
            layers=0,
            position=False,
            norm_match=None,
        )
        with torch.no_grad():
            for token in tables[0]:
                mapper.codes[token] = torch.cat([table[token].flatten() for table in tables])
        method = PartTokens(self._vocabulary, mapper, CaptionBuilder(self._vocabulary), backbone.tokenizers)
        nothing_trains = cast(Any, None)
        module = PersonalizationModule(backbone, method, nothing_trains, None, self.sample)
        return module.to(next(backbone.denoiser.parameters()).device).eval()

    def _load_backbone(self) -> Backbone:
        from partcraft_lit.backbones.stable_diffusion import load_sd15
        from partcraft_lit.backbones.stable_diffusion_xl import load_sdxl

        base = self._manifest.base
        source = self._base or base.model or packaged_weights("mini")
        if isinstance(source, str) and source == base.model and source.count("/") != 1:
            raise UserError(
                f"This export is for {source!r}, a model that is on the machine of whoever made it: name your copy, "
                "open_run(..., base=FOLDER)."
            )
        accelerator = {"cuda": "gpu"}.get(self._device, self._device)
        device = factories.device({"trainer": {"accelerator": accelerator}})
        load = load_sdxl if (self.folder / "diffusers" / "text_encoder_2").is_dir() else load_sd15
        backbone = cast(Backbone, load(source, resolution=base.resolution, device=device))
        if backbone.hash != base.hash:
            _log.warning("The weights of %s are not those that the export was made for; images differ.", source)
        return backbone


_UNKNOWN = (
    "An export holds tokens and adapter alone: it knows no images, and has no part predictor that could read one. Open "
    "the run itself for that."
)


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        manifest: _Manifest = TypeAdapter(_Manifest).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} cannot be opened ({where}: {first['msg']}); export the run again.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); export the run again.") from error
    names, num_codes = manifest.vocabulary.names, manifest.vocabulary.num_codes
    if len(names) != len(num_codes) or not 0 < len(names) * max(num_codes, default=0) <= _MOST_ROWS:
        raise UserError(f"{path}: {len(names)} parts with {max(num_codes, default=0)} codes cannot be.")
    for token in manifest.parts:
        if not re.fullmatch(r"[\w -]+", token.file) or not (
            0 <= token.part < len(names) and 0 <= token.code < num_codes[token.part]
        ):
            raise UserError(f"{path}: {token} is none of its parts; export the run again.")
    if not manifest.parts or not (folder / "diffusers").is_dir():
        raise UserError(f"{folder} has no files for diffusers: export the run with to=[diffusers].")
    return manifest


def _only(tensors: dict[str, Tensor]) -> Tensor:
    (tensor,) = tensors.values()
    return tensor.float()


def _add_adapters(backbone: Backbone, path: Path) -> None:
    """Adds what the adapter changes to the weights themselves: nothing here trains."""
    if not path.is_file():
        return
    networks = {
        UNET: backbone.denoiser,
        **dict(zip(encoder_names(len(backbone.text_encoders)), backbone.text_encoders)),
    }
    with torch.no_grad():
        for name, layer in from_diffusers(load_file(path)).items():
            network, _, place = name.partition(".")
            weight = networks[network].get_submodule(place).weight
            weight += layer.delta().to(weight)  # type: ignore[operator, arg-type]
