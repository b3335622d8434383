"""What can be done with trained parts, wherever they are: compose and draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.composer.catalog import Part
from partcraft_lit.composer.composition import Composition, PartChoice
from partcraft_lit.composer.drawer import Drawer, preview_of
from partcraft_lit.composer.exported_words import ExportedWords
from partcraft_lit.composer.results import Result
from partcraft_lit.composer.views import ImageView
from partcraft_lit.config.validation import validate
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import BACKGROUND
from partcraft_lit.tokens.grammar import BACKGROUND_NAME, PartVocabulary, parse

#: One variant: a choice, a code, or a code with its weight.
Chosen = PartChoice | int | tuple[int, float]
#: Parts of a composition: name -> one variant or several, or choices in the order of the prompt.
Parts = (
    Mapping[str, Chosen | Sequence[Chosen]]
    | Sequence[PartChoice | tuple[str | int, int] | tuple[str | int, int, float]]
)


class Composer(ABC):
    """Trained parts that images can be composed of: a run, or an exported bundle.

    All methods may be called from any thread.

    Args:
        name: of the run.
        vocabulary: parts and codes of prompts.
        sample: settings of sampling, with as many images at once as the device has memory for.
        drawer: draws them.
    """

    def __init__(self, name: str, vocabulary: PartVocabulary, sample: SampleSettings, drawer: Drawer) -> None:
        self.name = name
        self.sample = sample
        self._vocabulary = vocabulary
        self._drawer = drawer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}: {', '.join(f'{p.name} {p.num_codes}' for p in self.parts)})"

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """All parts, at their numbers: the background first."""

    def part(self, name: str | int) -> Part:
        """A part by its name or number.

        Raises:
            UserError: if there is none.
        """
        return self.parts[self._vocabulary.index(str(name))]

    @abstractmethod
    def _captions(self, chosen: Sequence[PartChoice]) -> tuple[tuple[str, ...], str]:
        """Words between the parts and behind them, as the captions of the training have them."""

    def _check(self, composition: Composition) -> None:
        """Raises a UserError for parts that cannot be drawn."""
        parse(composition.prompt, self._vocabulary)
        parse(composition.negative_prompt, self._vocabulary, "the negative prompt")

    @abstractmethod
    def _view_of(self, pixels: Tensor, name: str = "") -> ImageView:
        """What the part predictor reads in an image."""

    @abstractmethod
    def _centroid(self, part: str, code: int) -> Tensor:
        """(D,) centroid of a code."""

    def _compare(self, view: ImageView, part: str, asked: tuple[int, ...]) -> tuple[int | None, float | None]:
        """The code nearest to a part of an image, and the cosine to the nearest that was asked for."""
        found = view.codes.get(part)
        if found is None:
            return None, None
        feature = view.part_feature(part)
        return found, max(float(F.cosine_similarity(feature, self._centroid(part, code), dim=0)) for code in asked)

    @property
    @abstractmethod
    def _exported_words(self) -> ExportedWords | None:
        """What A1111 calls the parts; None where there can be no export. The model is loaded for it."""

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
        words = self.sample.negative_prompt if negative_prompt is None else negative_prompt
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
        negative = self.sample.negative_prompt if negative_prompt is None else negative_prompt
        parse(prompt, self._vocabulary, where)
        parse(negative, self._vocabulary, "sample.negative_prompt")
        found = Composition.from_prompt(prompt, negative, self.name)
        names, index = self._vocabulary.names, self._vocabulary.index
        named = [replace(choice, part=names[index(choice.part)]) for choice in found.choices]
        composition = replace(found, choices=tuple(named))
        self._check(composition)
        return composition

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

    # Drawing.

    def load(self) -> None:
        """Loads the model now, so that the first image does not wait for it.

        Raises:
            UserError: if the base model is missing, or the run has no checkpoint that can be read.
        """
        self._drawer.load()

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
            Result(
                image,
                seed,
                composition,
                chosen,
                preview,
                self._infotext(composition, chosen, seed, image),
                self._view_of,
                self._compare,
                self._attention,
            )
            for image, (composition, seed) in zip(images, wanted, strict=True)
        ]

    def _infotext(self, composition: Composition, sample: SampleSettings, seed: int, image: Tensor) -> str | None:
        if self._exported_words is None:
            return None
        _, height, width = image.shape
        return self._exported_words.infotext(
            composition.prompt, composition.negative_prompt, sample, seed, (width, height)
        )

    def _sample(
        self,
        sample: SampleSettings | None,
        preview: bool,
        steps: int | None,
        guidance_scale: float | None,
        scheduler: str | None,
    ) -> SampleSettings:
        own = sample or self.sample
        own = preview_of(own) if preview else own
        given = {"steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler}
        return validate(
            {**vars(own), **{key: value for key, value in given.items() if value is not None}}, SampleSettings, "draw"
        )

    def _checked(self, composition: Composition | str, sample: SampleSettings) -> Composition:
        if isinstance(composition, str):
            return self.composition(composition, sample.negative_prompt)
        self._check(composition)
        if composition.run == self.name:
            return composition
        # Of another run, as from a PNG of it: numbers of images mean others here.
        chosen = [choice if choice.image is None else replace(choice, image=None) for choice in composition.choices]
        return replace(composition, choices=tuple(chosen), run=self.name)

    def _attention(self, image: Tensor, prompt: str, seed: int) -> dict[str, Tensor]:
        maps, tokens = self._drawer.attention(image, prompt, seed)
        found: dict[str, Tensor] = {}
        for heat, part in zip(maps, tokens.part_ids[0].tolist(), strict=True):
            if part >= BACKGROUND:
                name = self._vocabulary.names[part]
                found[name] = found[name] + heat if name in found else heat
        return found


def seeds_of(seeds: Iterable[int]) -> list[int]:
    """The seeds as a list.

    Raises:
        UserError: for one that is not a whole number of at least 0.
    """
    found = list(seeds)
    for seed in found:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"seeds={found}: wanted whole numbers of at least 0.")
    return found


def _several(chosen: Any) -> list[Any]:
    return list(chosen) if isinstance(chosen, list) else [chosen]
