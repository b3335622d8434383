"""Compositions: which part variants an image is asked for, with the words around them; plain values, no model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from PIL import Image
from pydantic import TypeAdapter, ValidationError

from partcraft_lit.core.errors import UserError
from partcraft_lit.tokens.grammar import split_tokens, write_token

#: Text chunk of a PNG that holds the composition as JSON.
PNG_KEY = "composition"
#: Characters of a stored composition that are read at most: a PNG may come from anyone.
_LONGEST = 100_000
#: What is written without a space before it.
_CLOSING = (",", ".", ";", ":", "!", "?", ")")


@dataclass(frozen=True)
class PartChoice:
    """One variant of one part, where it was seen, and how strongly it is asked for.

    Attributes:
        part: name of the part.
        code: its variant.
        weight: 1 is as trained, 0 the part's average, more than 1 exaggerates; see ``tokens.weights``.
        image: index of the image that it was picked in; None if it was not picked in an image of the run.
        image_name: readable name of that image, or "".
        cosine: of the part in that image to the centroid of its code, -1...1; None where that is unknown.
    """

    part: str
    code: int
    weight: float = 1.0
    image: int | None = None
    image_name: str = ""
    cosine: float | None = None

    @property
    def token(self) -> str:
        """As it stands in a prompt: ``<head:17>*1.3``."""
        return write_token(self.part, self.code, self.weight)

    def weighted(self, weight: float) -> PartChoice:
        """The same variant with another weight."""
        return replace(self, weight=weight)


@dataclass(frozen=True)
class Composition:
    """What to draw. Immutable; make one with ``Run.compose``, change it with ``dataclasses.replace``.

    Attributes:
        choices: in the order of the prompt; a part may occur several times.
        before: words before the first part.
        after: words behind the last.
        between: words between two neighbours, one entry less than choices; empty for none anywhere.
        negative_prompt: what to keep away from, in the prompt grammar; it may hold part tokens.
        run: name of the run whose parts these are, or "".
    """

    choices: tuple[PartChoice, ...]
    before: str = "a photo of a"
    after: str = ""
    between: tuple[str, ...] = ()
    negative_prompt: str = ""
    run: str = ""

    def __post_init__(self) -> None:
        if self.between and len(self.between) != len(self.choices) - 1:
            raise UserError(
                f"between holds {len(self.between)} texts, and {len(self.choices)} parts have "
                f"{max(len(self.choices) - 1, 0)} gaps: give one for each, or none."
            )

    @property
    def prompt(self) -> str:
        """In the grammar of ``partcraft generate``."""
        words = [self.before]
        for place, choice in enumerate(self.choices):
            if place and self.between:
                words.append(self.between[place - 1])
            words.append(choice.token)
        return "".join(_spaced(text) for text in [*words, self.after]).strip()

    @property
    def codes(self) -> dict[str, tuple[int, ...]]:
        """Part -> the codes that are asked for, in the order of the prompt."""
        found: dict[str, tuple[int, ...]] = {}
        for choice in self.choices:
            found[choice.part] = (*found.get(choice.part, ()), choice.code)
        return found

    @property
    def negative(self) -> tuple[PartChoice, ...]:
        """Part variants in the negative prompt."""
        return tuple(PartChoice(*piece) for piece in split_tokens(self.negative_prompt) if not isinstance(piece, str))

    @classmethod
    def from_prompt(cls, prompt: str, negative_prompt: str = "", run: str = "") -> Self:
        """The composition whose prompt this is, but for superfluous spaces.

        Raises:
            UserError: for a malformed part token; whether a part exists is known to a run alone.
        """
        texts, choices = [""], []
        for piece in split_tokens(prompt):
            if isinstance(piece, str):
                texts[-1] = " ".join(piece.split())
            else:
                choices.append(PartChoice(*piece))
                texts.append("")
        before, *between = texts[: len(choices)] if choices else texts
        after = texts[-1] if choices else ""
        return cls(tuple(choices), before, after, tuple(between) if any(between) else (), negative_prompt, run)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of ``to_dict``; keys that are not known are ignored.

        Raises:
            UserError: if a value is missing or of another type.
        """
        try:
            return _adapter(cls).validate_python(dict(values))
        except (ValidationError, TypeError, ValueError) as error:
            raise UserError(f"This is not a composition: {_first_problem(error)}.") from error

    @classmethod
    def from_png(cls, file: Any) -> Self:
        """The composition of an image that was drawn here, by ``Result.save`` or ``partcraft generate``.

        Args:
            file: path, or an open binary file.

        Raises:
            UserError: if the file is not a PNG or says nothing of a composition.
        """
        texts = _texts_of(file)
        if PNG_KEY in texts:
            return cls.from_dict(_json_of(texts[PNG_KEY]))
        if "prompt" in texts:
            return cls.from_prompt(texts["prompt"], texts.get("negative_prompt", ""), texts.get("run", ""))
        raise UserError(
            "This PNG holds no composition. Images of partcraft do, unless a program in between has removed their "
            "metadata, as messengers and image hosts often do."
        )

    def command(self, seeds: Sequence[int] = (0,), *, run: str | Path | None = None, **sample: Any) -> str:
        """The lines for a terminal that draw the same images.

        Args:
            seeds: a line for each sequence of neighbours.
            run: name or folder; None for the composition's own.
            sample: further settings of ``partcraft generate sample.NAME=VALUE``, such as ``steps=20``.
        """
        fixed = [f"run={run or self.run or 'latest'}", f"prompt={self.prompt}"]
        chosen = {**sample, **({"negative_prompt": self.negative_prompt} if self.negative_prompt else {})}
        settings = [f"sample.{name}={value}" for name, value in chosen.items() if value is not None]
        return "\n".join(
            shlex.join(["partcraft", "generate", *fixed, *settings, f"seed={first}", f"num_images={number}"])
            for first, number in _neighbours(seeds)
        )

    def python(self, seeds: Sequence[int] = (0,), *, run: str | Path | None = None, **sample: Any) -> str:
        """The lines of Python that draw the same images; arguments as in ``command``."""
        given = {"before": self.before, "after": self.after, "between": self.between}
        words = [f"{name}={value!r}" for name, value in given.items() if name != "between" or value]
        negative = [f"negative_prompt={self.negative_prompt!r}"]
        settings = "".join(f", {name}={value!r}" for name, value in sample.items() if value is not None)
        return "\n".join(
            [
                "import partcraft_lit as pc",
                "",
                f"run = pc.open_run({str(run or self.run or 'latest')!r})",
                f"composition = run.compose({', '.join([self._parts_in_python(), *words, *negative])})",
                f"for result in run.draw(composition, seeds={list(seeds)}{settings}):",
                '    result.save(f"{result.seed:06d}.png")',
            ]
        )

    def _parts_in_python(self) -> str:
        groups = [(part, list(choices)) for part, choices in groupby(self.choices, key=lambda choice: choice.part)]
        if len({part for part, _ in groups}) < len(groups):  # a part that comes again later has no place in a dict
            return repr([(choice.part, choice.code, choice.weight) for choice in self.choices])
        each = {part: [_code_in_python(choice) for choice in choices] for part, choices in groups}
        return repr({part: codes[0] if len(codes) == 1 else codes for part, codes in each.items()})


def _spaced(text: str) -> str:
    return text if text.startswith(_CLOSING) else f" {text}" if text else ""


def _code_in_python(choice: PartChoice) -> int | tuple[int, float]:
    return choice.code if choice.weight == 1 else (choice.code, choice.weight)


def _neighbours(seeds: Iterable[int]) -> list[tuple[int, int]]:
    """First and length of each run of seeds that count up by one."""
    found: list[tuple[int, int]] = []
    for seed in seeds:
        if found and seed == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((seed, 1))
    return found


def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'its values'}: {first['msg']}"


def _texts_of(file: Any) -> dict[str, str]:
    """Text chunks of a PNG, without decoding its pixels."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            # Those before the pixels, where ours are: the others would mean to decode a stranger's image.
            return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except Exception as error:  # broken files make the reader raise nearly anything
        raise UserError(f"This is not a PNG that can be read ({type(error).__name__}).") from error


def _json_of(text: str) -> Mapping[str, Any]:
    if len(text) > _LONGEST:
        raise UserError(f"The composition in this PNG has {len(text)} characters; that is none.")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError("The composition in this PNG is damaged.") from error
    if not isinstance(values, dict):
        raise UserError("The composition in this PNG is damaged.")
    return values
