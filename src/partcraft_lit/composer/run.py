"""A trained run as an object: its parts and images, and drawing with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from partcraft_lit.composer.base import Composer
from partcraft_lit.composer.catalog import Part
from partcraft_lit.composer.composition import PartChoice
from partcraft_lit.composer.drawer import Drawer
from partcraft_lit.composer.exported import ExportedParts, is_export
from partcraft_lit.composer.exported_words import ExportedWords
from partcraft_lit.composer.reader import PartReader, decoding
from partcraft_lit.composer.stored_parts import Images, StoredParts, select_images
from partcraft_lit.composer.views import ImageView
from partcraft_lit.config import factories
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.images import pixels_of, read_image
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import BACKGROUND, ImageSource
from partcraft_lit.methods.method import EACH
from partcraft_lit.parts.correcting import Effect
from partcraft_lit.parts.corrections import Corrections
from partcraft_lit.parts.corrections_file import FILE_NAME, CorrectionsFile
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.runs.settings import DiscoverSettings, TrainSettings
from partcraft_lit.runs.stored import base_model, values_of_run
from partcraft_lit.runs.vocabulary import vocabulary_of
from partcraft_lit.tokens.embedding_files import part_stem, usual_name
from partcraft_lit.tokens.settings import CaptionSettings

if TYPE_CHECKING:  # Lightning takes seconds, and is needed to draw alone
    from partcraft_lit.module import PersonalizationModule
    from partcraft_lit.runs.correcting import RunCorrector

Device = Literal["auto", "cpu", "cuda", "mps"]
#: An image that is not of the run: in memory, or a file.
AnyImage = Image.Image | NDArray[Any] | Tensor | str | Path


def open_run(
    run: str | Path = "latest",
    *,
    device: Device = "auto",
    logs: str | Path = "logs",
    dataset_dir: str | Path | None = None,
    store: str | Path | None = None,
    base: str | Path | None = None,
    trust: bool = False,
) -> Run | ExportedParts:
    """Opens a trained run, or the folder that ``partcraft export`` has made of one.

    Nothing heavy is loaded: weights come with the first image that is drawn, features with the first that is read.

    Args:
        run: folder of the run, its name, or "latest"; or the folder of an export.
        device: where it works; "auto" takes a GPU if there is one.
        logs: folder with ``train/runs``, where names and "latest" are looked up.
        dataset_dir: where the images are now, if they have moved since the run was trained.
        store: where computed label maps are, if not where the run has put them.
        base: of an export: folder, file or hub id of its base model, where it does not name one that can be had.
        trust: whether classes of somebody else that the run's configuration names may be made; they are code.

    Raises:
        UserError: if there is no such run, or its configuration or its parts cannot be read.
    """
    if device not in get_args(Device):
        raise UserError(f"device={device!r}: {did_you_mean(str(device), get_args(Device))}")
    if is_export(Path(run).expanduser()):
        return ExportedParts(Path(run).expanduser().resolve(), device, base)
    folder = rundir.find_run(str(run), Path(logs).expanduser() / "train" / "runs")
    values = values_of_run(folder, trust=trust)
    if "method" not in values:
        raise UserError(
            f"{folder} is not a training run: its parts were discovered, and nothing was trained. Train first."
        )
    accelerator = {"cuda": "gpu"}.get(device, device)
    values = {**values, "trainer": {**values["trainer"], "accelerator": accelerator}}
    if dataset_dir is not None:
        values["dataset"] = {**values["dataset"], "dir": str(Path(dataset_dir).expanduser())}
    if store is not None:
        values["paths"] = {**values["paths"], "store": str(store)}
        if "store" in values["dataset"]:
            values["dataset"] = {**values["dataset"], "store": str(store)}
    return Run(folder, values)


class Run(Composer):
    """A trained run; see :func:`open_run`. All methods may be called from any thread.

    Args:
        folder: of the run.
        values: its configuration.

    Attributes:
        folder: of the run.
        settings: of its training.
        dictionary: its parts and codes.
    """

    def __init__(self, folder: Path, values: Mapping[str, Any]) -> None:
        self.folder = folder
        self._values = values
        self.settings: TrainSettings = factories.settings_of(TrainSettings, dict(values))
        self.dictionary = PartDictionary.load(folder / "parts")
        self._reader = PartReader(self.dictionary, lambda: factories.features_loader(values)())
        store = Store(self.settings.paths.store)
        self.stored = StoredParts(folder / "parts", self._reader, self._open_source, store, self.settings.parts.source)
        sample = self.settings.hardware.capped(self.settings.sample)
        super().__init__(folder.name, vocabulary_of(self.dictionary), sample, Drawer(self._load_module))

    def _open_source(self) -> ImageSource:
        return factories.make_source(self._values)

    def _load_module(self) -> PersonalizationModule:
        from partcraft_lit.runs.assembly import load_trained

        backbone = factories.backbone_loader(self._values)()
        return load_trained(self.settings, self.folder, backbone, class_noun="")[0]

    @cached_property
    def _exported_words(self) -> ExportedWords | None:
        from partcraft_lit.runs.exportable import has_adapter, is_exportable

        if not self._drawer.ask(is_exportable):
            return None
        name, untrained = usual_name(self.name), self.untrained_codes

        def embedding(part: int, code: int) -> str | None:
            if code in untrained.get(self._vocabulary.names[part], ()):
                return None
            return part_stem(part, code, self._vocabulary, name)

        adapter = name if self._drawer.ask(has_adapter) else ""
        return ExportedWords(self._vocabulary, embedding, adapter, base_model(self._values)[0])

    # Parts and images.

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts, at their numbers; those that corrections took away have no variants."""
        counts = self.stored.counts
        shown = [table.any(dim=1).tolist() for table in self.dictionary.code_centroids]
        trained = shown if counts is None else [[number > 0 for number in column] for column in counts]
        for name, codes in self.untrained_codes.items():
            column = trained[self.dictionary.names.index(name)]
            column[:] = [seen and code not in codes for code, seen in enumerate(column)]
        return tuple(Part(self.stored, index, dict(enumerate(column))) for index, column in enumerate(trained))

    @cached_property
    def untrained_codes(self) -> dict[str, list[int]]:
        """Name -> codes that came with corrections and that no weights of this run were trained for."""
        if "base_codes" not in self.dictionary.metadata:  # nothing was corrected
            return {}
        from partcraft_lit.runs.assembly import untrained_of_run

        missing = untrained_of_run(self.folder, self.dictionary)
        return {self.dictionary.names[part]: codes for part, codes in missing.items()}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the images; empty without any, or without the data set."""
        return self.stored.class_names

    @property
    def class_noun(self) -> str:
        """What the images show, as the data set says it, or ""."""
        node = self._values["dataset"]
        if "class_noun" in node:
            return str(node["class_noun"] or "")
        return self.stored.source.class_noun if self.has_images else ""

    @property
    def has_images(self) -> bool:
        """Whether the run's data set is where it was."""
        return self.stored.has_images

    def images(
        self,
        class_name: str | None = None,
        part: str | int | None = None,
        code: int | Sequence[int] | None = None,
        text: str | None = None,
    ) -> Images:
        """The run's images, or some of them, without reading one.

        Args:
            class_name: those of this class.
            part: those that show this part.
            code: of that part, one or several.
            text: those with this in their name, whatever its case.

        Raises:
            UserError: for an unknown class or part, or if the run says nothing of its images.
        """
        index = None if part is None else self.part(part).index
        codes = [code] if isinstance(code, int) else code
        return select_images(self.stored, class_name, index, codes, text)

    def image(self, index: int) -> ImageView:
        """An image of the run with its parts.

        Raises:
            UserError: if there is no such image, or its file is gone.
        """
        number = len(self.stored.names)
        if not 0 <= index < number:
            raise UserError(f"There is no image {index}; this run has {number}, numbered from 0.")
        return self.stored.view(index)

    def thumbnail(self, index: int, side: int = 192) -> Image.Image:
        """An image of the run, its longer side ``side`` pixels at most; the newest ones are kept in memory.

        Raises:
            UserError: if its file is gone.
        """
        return self.stored.thumbnail(index, side)

    def read(self, image: AnyImage, name: str = "") -> ImageView:
        """Any other image, with the parts that the predictor reads in it.

        Args:
            image: a file, an image of Pillow (turned by its EXIF data, composited on white), an array (height, width,
                3) or a tensor (3, height, width), both uint8.
            name: readable name, for what is picked in it.

        Raises:
            UserError: if it is no image, too small or too large, or the predictor's network is missing.
        """
        with decoding:
            pixels = _pixels(image)
        return self._view_of(pixels, name)

    def _view_of(self, pixels: Tensor, name: str = "") -> ImageView:
        predicted = self._reader.predict([pixels])
        codes, features = predicted.codes[0], predicted.part_features[0]
        cosines = [self._reader.cosine(features[part], part, int(code)) for part, code in enumerate(codes)]
        label_map = predicted.label_maps[0].numpy()
        return ImageView(pixels, label_map, codes, cosines, features, self.dictionary.names, name=name)

    # Corrections.

    @property
    def corrections(self) -> Corrections:
        """What the run's ``parts.yaml`` says; see ``docs/corrections.md``. Change it by ``merged``, ``renamed``...

        Raises:
            UserError: if the file says something wrong.
        """
        return CorrectionsFile(self.folder / FILE_NAME).load()

    @property
    def can_undo(self) -> bool:
        """Whether there are earlier corrections to go back to."""
        return CorrectionsFile(self.folder / FILE_NAME).can_undo

    def preview_corrections(self, corrections: Corrections) -> Effect:
        """What corrections would change, part by part; nothing is written.

        Raises:
            UserError: for a part that does not exist, entries in conflict, or images that are gone.
        """
        return self._corrector().preview(corrections)[1]

    def correct(self, corrections: Corrections) -> Run:
        """Writes ``parts.yaml``, and the run's dictionary, codes and atlas anew; no features are computed again.

        Args:
            corrections: in place of those that hold now.

        Returns:
            The run with its new parts, to be used from now on: this object is of the former ones.

        Raises:
            UserError: as ``preview_corrections``; then nothing is changed. Also while the run is being trained.
        """
        with rundir.held(self.folder):
            self._corrector().apply(corrections)
        return Run(self.folder, self._values)

    def undo(self) -> Run:
        """Goes back to the former corrections, and to the very same parts and codes; returns the run with them.

        Raises:
            UserError: if there is nothing to undo.
        """
        with rundir.held(self.folder):
            self._corrector().undo()
        return Run(self.folder, self._values)

    def _corrector(self) -> RunCorrector:
        from partcraft_lit.runs.correcting import RunCorrector

        settings = DiscoverSettings(self.settings.seed, self.settings.parts, self.settings.paths)
        quiet = Stages(Console(quiet=True))
        return RunCorrector(self.folder, settings, self.stored.source, lambda: self._reader.features, quiet)

    def _captions(self, chosen: Sequence[PartChoice]) -> tuple[tuple[str, ...], str]:
        """Words between the parts and behind them, as the run's captions have them."""
        captions: CaptionSettings | None = getattr(self.settings.method, "captions", None)
        if captions is None:  # a method of somebody's own
            return (), ""
        nouns = captions.class_noun == EACH
        each = [choice.part if nouns else "" for choice in chosen]
        gaps = tuple(f"{noun} {captions.separator.strip()}".strip() for noun in each[:-1])
        noun = self.class_noun if captions.class_noun == "auto" else captions.class_noun
        return gaps, (each[-1] if each else "") if nouns else noun

    def _compare(self, view: ImageView, part: str, asked: tuple[int, ...]) -> tuple[int | None, float | None]:
        """As of any composer, but with the context of the part masked out where the run's images are there."""
        index, in_context = self.part(part).index, super()._compare(view, part, asked)
        if index == BACKGROUND or in_context[0] is None or self.stored.isolated is None:
            return in_context
        labelled = view.tensor, torch.from_numpy(view.label_map)
        cosines = self.stored.isolated.cosines(labelled, view.part_feature(part), index, asked)
        near = [cosines[code] for code in asked if code in cosines]
        return (max(cosines, key=lambda code: cosines[code]), max(near)) if near else in_context

    def _centroid(self, part: str, code: int) -> Tensor:
        return self.dictionary.code_centroids[self.part(part).index][code]


def _pixels(image: AnyImage) -> Tensor:
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser())
    if isinstance(image, torch.Tensor):
        return pixels_of(Image.fromarray(_array(image.detach().cpu().movedim(0, -1).numpy())))
    return pixels_of(image if isinstance(image, Image.Image) else Image.fromarray(_array(image)))


def _array(array: Any) -> NDArray[np.uint8]:
    given = np.asarray(array)
    if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3:
        raise UserError(
            f"An image is (height, width, 3) or, as a tensor, (3, height, width) of uint8, got {given.shape} of "
            f"{given.dtype}."
        )
    return np.ascontiguousarray(given)
