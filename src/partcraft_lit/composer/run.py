"""A trained run as an object: its parts and images, and drawing with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.composer.catalog import Images, Part, select_images
from partcraft_lit.composer.composition import Composition, PartChoice
from partcraft_lit.composer.drawer import Drawer, preview_of
from partcraft_lit.composer.reader import PartReader
from partcraft_lit.composer.results import Result
from partcraft_lit.composer.stored_parts import StoredParts
from partcraft_lit.composer.views import ImageView
from partcraft_lit.config import factories
from partcraft_lit.config.validation import validate
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.images import pixels_of, read_image
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import BACKGROUND, ImageSource
from partcraft_lit.methods.method import EACH
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.runs.assembly import load_trained, vocabulary_of
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.runs.stored import values_of_run
from partcraft_lit.tokens.grammar import BACKGROUND_NAME, parse
from partcraft_lit.tokens.settings import CaptionSettings

Device = Literal["auto", "cpu", "cuda", "mps"]
#: One variant: a choice, a code, or a code with its weight.
Chosen = PartChoice | int | tuple[int, float]
#: Parts of a composition: name -> one variant or several, or choices in the order of the prompt.
Parts = (
    Mapping[str, Chosen | Sequence[Chosen]]
    | Sequence[PartChoice | tuple[str | int, int] | tuple[str | int, int, float]]
)
#: An image that is not of the run: in memory, or a file.
AnyImage = Image.Image | NDArray[Any] | Tensor | str | Path


def open_run(
    run: str | Path = "latest",
    *,
    device: Device = "auto",
    logs: str | Path = "logs",
    dataset_dir: str | Path | None = None,
    store: str | Path | None = None,
    trust: bool = False,
) -> Run:
    """Opens a trained run. Nothing heavy is loaded: weights with the first image, features with the first reading.

    Args:
        run: folder of the run, its name, or "latest".
        device: where it works; "auto" takes a GPU if there is one.
        logs: folder with ``train/runs``, where names and "latest" are looked up.
        dataset_dir: where the images are now, if they have moved since the run was trained.
        store: where computed label maps are, if not where the run has put them.
        trust: whether classes of somebody else that the run's configuration names may be made; they are code.

    Raises:
        UserError: if there is no such run, or its configuration or its parts cannot be read.
    """
    if device not in get_args(Device):
        raise UserError(f"device={device!r}: {did_you_mean(str(device), get_args(Device))}")
    folder = rundir.find_run(str(run), Path(logs).expanduser() / "train" / "runs")
    values = values_of_run(folder, trust=trust)
    accelerator = {"cuda": "gpu"}.get(device, device)
    values = {**values, "trainer": {**values["trainer"], "accelerator": accelerator}}
    if dataset_dir is not None:
        values["dataset"] = {**values["dataset"], "dir": str(Path(dataset_dir).expanduser())}
    if store is not None:
        values["paths"] = {**values["paths"], "store": str(store)}
        if "store" in values["dataset"]:
            values["dataset"] = {**values["dataset"], "store": str(store)}
    return Run(folder, values)


class Run:
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
        self._drawer = Drawer(self._load_module)

    def __repr__(self) -> str:
        return f"Run({self.name}: {', '.join(f'{part.name} {part.num_codes}' for part in self.parts)})"

    def _open_source(self) -> ImageSource:
        return factories.make_source(self._values)

    def _load_module(self) -> PersonalizationModule:
        backbone = factories.backbone_loader(self._values)()
        return load_trained(self.settings, self.folder, backbone, class_noun="")[0]

    @property
    def name(self) -> str:
        return self.folder.name

    # Parts and images.

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts, the background first."""
        counts = self.stored.counts
        shown = [table.any(dim=1).tolist() for table in self.dictionary.code_centroids]
        trained = shown if counts is None else [[number > 0 for number in column] for column in counts]
        return tuple(Part(self.stored, index, trained[index]) for index in range(len(self.dictionary.names)))

    def part(self, name: str | int) -> Part:
        """A part by its name or number.

        Raises:
            UserError: if there is none.
        """
        return self.parts[vocabulary_of(self.dictionary).index(str(name))]

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
        return self._view_of(_pixels(image), name)

    def _view_of(self, pixels: Tensor, name: str = "") -> ImageView:
        predicted = self._reader.predict([pixels])
        codes, features = predicted.codes[0], predicted.part_features[0]
        cosines = [self._reader.cosine(features[part], part, int(code)) for part, code in enumerate(codes)]
        label_map = predicted.label_maps[0].numpy()
        return ImageView(pixels, label_map, codes, cosines, features, self.dictionary.names, name=name)

    # Compositions.

    def compose(
        self,
        parts: Parts,
        *,
        before: str = "a photo of a",
        after: str | None = None,
        between: str | Sequence[str] | None = None,
        background: Chosen | None = None,
        negative: Parts = (),
        negative_prompt: str | None = None,
    ) -> Composition:
        """Puts parts together.

        Args:
            parts: name -> a choice, a code, a code with its weight, or a list of these; or a sequence of choices and of
                (part, code) or (part, code, weight), in the order of the prompt.
            before: words before the parts.
            after: words behind them; None for the noun that the run's captions end in, if they do.
            between: words between two neighbours, the same everywhere or one for each gap; None as in the run's
                captions.
            background: variant of the background, named first.
            negative: parts to keep away from, in the same forms.
            negative_prompt: words to keep away from; None for those of the run's settings.

        Raises:
            UserError: for a part, code or weight that does not exist, with the nearest ones that do.
        """
        chosen = self._choices(parts)
        if background is not None:
            chosen = [self._choice(BACKGROUND_NAME, background), *chosen]
        words = self.settings.sample.negative_prompt if negative_prompt is None else negative_prompt
        avoided = " ".join([words, *(choice.token for choice in self._choices(negative))]).strip()
        gaps, ending = self._captions(chosen)
        if between is not None:
            gaps = (between,) * max(len(chosen) - 1, 0) if isinstance(between, str) else tuple(between)
        behind = ending if after is None else after.strip()
        composition = Composition(
            tuple(chosen), before.strip(), behind, gaps if any(gaps) else (), avoided, run=self.name
        )
        self._check(composition)
        return composition

    def composition(self, prompt: str, negative_prompt: str | None = None, where: str = "the prompt") -> Composition:
        """The composition of a prompt with part tokens, checked against the run's parts.

        Args:
            prompt: as for ``partcraft generate``.
            negative_prompt: None for that of the run's settings.
            where: name of the prompt in messages.

        Raises:
            UserError: for a mistake in a part token.
        """
        negative = self.settings.sample.negative_prompt if negative_prompt is None else negative_prompt
        vocabulary = vocabulary_of(self.dictionary)
        parse(prompt, vocabulary, where)
        parse(negative, vocabulary, "sample.negative_prompt")
        found = Composition.from_prompt(prompt, negative, self.name)
        names = self.dictionary.names
        named = [replace(choice, part=names[vocabulary.index(choice.part)]) for choice in found.choices]
        return replace(found, choices=tuple(named))

    def _check(self, composition: Composition) -> None:
        vocabulary = vocabulary_of(self.dictionary)
        parse(composition.prompt, vocabulary)
        parse(composition.negative_prompt, vocabulary, "the negative prompt")

    def _choices(self, parts: Parts) -> list[PartChoice]:
        if isinstance(parts, Mapping):
            return [self._choice(part, one) for part, chosen in parts.items() for one in _several(chosen)]
        return [self._choice_of(entry) for entry in parts]

    def _choice_of(self, entry: Any) -> PartChoice:
        if isinstance(entry, PartChoice):
            return self._choice(entry.part, entry)
        if isinstance(entry, tuple) and len(entry) in (2, 3):
            return self._choice(entry[0], entry[1] if len(entry) == 2 else (entry[1], entry[2]))
        raise UserError(f"{entry!r}: wanted a choice, (part, code) or (part, code, weight).")

    def _choice(self, part: str | int, chosen: Any) -> PartChoice:
        name = self.part(part).name
        if isinstance(chosen, PartChoice):
            if self.part(chosen.part).name != name:
                raise UserError(f"The choice {chosen.token} is of another part than {name!r}.")
            return replace(chosen, part=name)
        code, weight = chosen if isinstance(chosen, tuple) and len(chosen) == 2 else (chosen, 1.0)
        return PartChoice(name, validate(code, int, f"code of {name}"), validate(weight, float, f"weight of {name}"))

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

    # Drawing.

    def load(self) -> None:
        """Loads the model now, so that the first image does not wait for it.

        Raises:
            UserError: if the base model is missing, or the run has no checkpoint that can be read.
        """
        self._drawer.load()

    @property
    def sample(self) -> SampleSettings:
        """The run's own settings of sampling, with as many images at once as its hardware settings allow."""
        return self.settings.hardware.capped(self.settings.sample)

    def draw(
        self,
        compositions: Composition | str | Sequence[Composition | str],
        seeds: Iterable[int] = (0,),
        *,
        preview: bool = False,
        steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        sample: SampleSettings | None = None,
    ) -> list[Result]:
        """Draws every composition with every seed.

        An image depends on its composition, seed and settings alone, up to rounding: it is the same whatever else is
        drawn with it.

        Args:
            compositions: one or several; a text is a prompt with part tokens.
            seeds: noise of the images; the same seed gives alike images of different compositions.
            preview: draws with few steps, for looking while one changes things.
            steps, guidance_scale, scheduler: in place of the run's own settings.
            sample: all settings at once; its negative prompt is that of compositions that are texts.

        Returns:
            All seeds of the first composition, then those of the next.

        Raises:
            UserError: for a mistake in a composition, a setting out of range, missing weights, or too little memory.
        """
        chosen = self._sample(sample, preview, steps, guidance_scale, scheduler)
        some = [compositions] if isinstance(compositions, Composition | str) else list(compositions)
        checked = [self._checked(one, chosen) for one in some]
        wanted = [(composition, int(seed)) for composition in checked for seed in seeds_of(seeds)]
        images = self._drawer.draw(
            [composition.prompt for composition, _ in wanted],
            [composition.negative_prompt for composition, _ in wanted],
            [seed for _, seed in wanted],
            chosen,
        )
        return [
            Result(image, seed, composition, chosen, preview, self._view_of, self._centroid, self._attention)
            for image, (composition, seed) in zip(images, wanted, strict=True)
        ]

    def _sample(
        self,
        sample: SampleSettings | None,
        preview: bool,
        steps: int | None,
        guidance_scale: float | None,
        scheduler: str | None,
    ) -> SampleSettings:
        own = self.sample if sample is None else self.settings.hardware.capped(sample)
        own = preview_of(own) if preview else own
        given = {"steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler}
        return validate(
            {**vars(own), **{key: value for key, value in given.items() if value is not None}}, SampleSettings, "draw"
        )

    def _checked(self, composition: Composition | str, sample: SampleSettings) -> Composition:
        if isinstance(composition, str):
            return self.composition(composition, sample.negative_prompt)
        self._check(composition)
        return composition

    def _centroid(self, part: str, code: int) -> Tensor:
        return self.dictionary.code_centroids[self.part(part).index][code]

    def _attention(self, image: Tensor, prompt: str, seed: int) -> dict[str, Tensor]:
        maps, tokens = self._drawer.attention(image, prompt, seed)
        found: dict[str, Tensor] = {}
        for heat, part in zip(maps, tokens.part_ids[0].tolist(), strict=True):
            if part >= BACKGROUND:
                name = self.dictionary.names[part]
                found[name] = found[name] + heat if name in found else heat
        return found


def seeds_of(seeds: Iterable[int]) -> list[int]:
    """The seeds as a list.

    Raises:
        UserError: for one that is no whole number of at least 0.
    """
    found = list(seeds)
    for seed in found:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"seeds={found}: wanted whole numbers of at least 0.")
    return found


def _several(chosen: Any) -> list[Any]:
    return list(chosen) if isinstance(chosen, list) else [chosen]


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
