"""The prompt grammar: ordinary text with part tokens ``<name:code>`` or ``<index:code>`` anywhere in it.

``a photo of a <head:17> <2:5> bird`` has code 17 of the part "head" and code 5 of part 2; ``<head:17>*1.3`` weighs it
(see ``tokens.weights``). Spaces inside brackets and the case of names are ignored; a part may occur twice. Text in a
pair of brackets is always a part token, so a mistake there is an error.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from partcraft_lit.core.errors import UserError, nearest_names
from partcraft_lit.core.part_names import check_part_names
from partcraft_lit.core.types import BACKGROUND, PartToken

BACKGROUND_NAME = "background"
#: Characters of a prompt that a message quotes.
_SHOWN = 60
#: Largest weight of a part.
MAX_WEIGHT = 4.0

_BRACKETS = re.compile(r"<([^<>]*)>(?:\*([-+]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)))?")
#: The lookbehind admits starts of words alone, which keeps the search linear in the length of the prompt.
_UNOPENED = re.compile(r"(?<![^\s<>:])[^\s<>:]+\s*:\s*[0-9]+\s*>")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_INDEX = re.compile(r"[0-9]{1,9}")  # int() of more digits is slow


@dataclass(frozen=True)
class PartVocabulary:
    """Parts and codes of prompts.

    Attributes:
        names: M + 1 names, the background first; see :func:`~partcraft_lit.core.part_names.check_part_names`.
        num_codes: M + 1 counts; codes of part m are 0...num_codes[m] - 1.
        retired: part -> what became of it, of parts that corrections took away.
        table_codes: columns that a table of codes has at least, also where no part has so many any more.

    Raises:
        UserError: for a name that prompts cannot contain.
        ValueError: if counts and names differ in number.
    """

    names: Sequence[str]
    num_codes: Sequence[int]
    retired: Mapping[int, str] = field(default_factory=dict, hash=False)
    table_codes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "num_codes", tuple(int(count) for count in self.num_codes))
        if len(self.names) != len(self.num_codes) or any(count < 0 for count in self.num_codes):
            raise ValueError(
                f"num_codes must hold one count of codes, 0 or more, for each of the {len(self.names)} parts, "
                f"got {list(self.num_codes)}."
            )
        if not self.names or self.names[BACKGROUND] != BACKGROUND_NAME:
            raise UserError(
                f"Part {BACKGROUND} must be called {BACKGROUND_NAME!r}, got the names {list(self.names)}; "
                f"put {BACKGROUND_NAME!r} first."
            )
        check_part_names(self.names[1:])

    @property
    def num_parts(self) -> int:
        """Foreground parts (M)."""
        return len(self.names) - 1

    @property
    def max_codes(self) -> int:
        """Largest number of codes of a part (K)."""
        return max(*self.num_codes, self.table_codes)

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {_folded(name): index for index, name in enumerate(self.names)}

    @cached_property
    def _unclosed(self) -> re.Pattern[str]:
        """An unclosed bracket that starts like a token, unlike "I <3 birds" or "a < b"."""
        names = "|".join(re.escape(name) for name in self.names)
        return re.compile(rf"<\s*(?:(?:{names})\b|[^\s<>:]+\s*:)", re.IGNORECASE)

    def index(self, name: str) -> int:
        """Index of a part from its name or its digits.

        Raises:
            UserError: if there is no such part.
        """
        if _INDEX.fullmatch(name):
            return self._checked_index(int(name))
        found = self._index_of.get(_folded(name))
        if found is None:
            raise UserError(
                f"There is no part called {_excerpt(name)}. {nearest_names(name.casefold()[:_SHOWN], self.names)}"
                f"Parts are {self._listing()}."
            )
        return found

    def check(self, token: PartToken) -> None:
        """Raises ``UserError`` if the token's part or code does not exist."""
        part = self._checked_index(token.part)
        name, count = self.names[part], self.num_codes[part]
        if part in self.retired:
            raise UserError(f"Part {name!r} is gone: {self.retired[part]}. Leave it out of the prompt.")
        if count == 0:
            raise UserError(f"Part {name!r} has no codes, because no image shows it; leave it out of the prompt.")
        if not 0 <= token.code < count:
            nearest = min(max(token.code, 0), count - 1)
            raise UserError(
                f"Part {name!r} has no code {token.code}; its codes are 0 to {count - 1}. "
                f"Did you mean '<{name}:{nearest}>'?"
            )

    def _checked_index(self, index: int) -> int:
        if not 0 <= index < len(self.names):
            raise UserError(f"There is no part {index}; parts are {self._listing()}.")
        return index

    def _listing(self) -> str:
        return ", ".join(f"{index} {name}" for index, name in enumerate(self.names) if index not in self.retired)


def _folded(name: str) -> str:
    """A name without its case and the Unicode spelling of its accents."""
    return unicodedata.normalize("NFC", name).casefold()


def parse(prompt: str, vocabulary: PartVocabulary, where: str = "the prompt") -> list[str | PartToken]:
    """Splits a prompt into non-empty texts and part tokens, in order.

    Args:
        prompt: any text.
        vocabulary: parts and codes.
        where: name of the prompt in messages.

    Raises:
        UserError: for an unknown part or code (with the nearest valid ones), a malformed token, an unpaired bracket of
            a token, or text that is not Unicode.
    """
    if lone := _LONE_SURROGATE.search(prompt):
        raise UserError(
            f"Character {lone.start() + 1} of {where} is {lone.group(0)!r}, half of a surrogate pair: the text was not "
            "UTF-8. Save or type it as UTF-8."
        )
    pieces: list[str | PartToken] = []
    end = 0
    for match in _BRACKETS.finditer(prompt):
        pieces += _text(prompt[end : match.start()], vocabulary)
        pieces.append(_token(match, vocabulary, where))
        end = match.end()
        if prompt[end : end + 1] == "*":
            raise UserError(
                f"{_excerpt(prompt[match.start() : end + 8])} in {where}: '*' is followed by the part's weight, from "
                f"0 to {MAX_WEIGHT:g}, as in {match.group(0) + '*1.3'!r}."
            )
    return pieces + _text(prompt[end:], vocabulary)


def render(pieces: Iterable[str | PartToken], vocabulary: PartVocabulary | None = None) -> str:
    """Inverse of ``parse``; with part names if the vocabulary is given, else with indices."""

    def written(piece: str | PartToken) -> str:
        if isinstance(piece, str):
            return piece
        return write_token(piece.part if vocabulary is None else vocabulary.names[piece.part], piece.code, piece.weight)

    return "".join(written(piece) for piece in pieces)


def write_token(part: int | str, code: int, weight: float = 1.0) -> str:
    """``<head:17>``, with ``*1.3`` behind it for a weight that is not 1."""
    return f"<{part}:{code}>" + ("" if weight == 1.0 else f"*{np.format_float_positional(weight, trim='-')}")


def split_tokens(prompt: str) -> list[str | tuple[str, int, float]]:
    """Texts, and name, code and weight of each part token, where no vocabulary says which parts there are.

    Raises:
        UserError: for brackets that hold no part token, or a weight out of range.
    """
    pieces: list[str | tuple[str, int, float]] = []
    end = 0
    for match in _BRACKETS.finditer(prompt):
        name, _, code = (part.strip() for part in match.group(1).partition(":"))
        if not name or not _INDEX.fullmatch(code):
            raise UserError(f"{_excerpt(match.group(0))} is not a part token; one is written '<head:3>'.")
        pieces += [prompt[end : match.start()]] if match.start() > end else []
        pieces.append((name, int(code), _weight(match.group(2))))
        end = match.end()
    return pieces + ([prompt[end:]] if end < len(prompt) else [])


def _excerpt(text: str) -> str:
    """The text in quotes, cut where it is longer than a message should be."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _text(text: str, vocabulary: PartVocabulary) -> list[str | PartToken]:
    """Text between two tokens, zero or one piece; raises for half a token."""
    for pattern, missing in ((vocabulary._unclosed, ">"), (_UNOPENED, "<")):
        if broken := pattern.search(text):
            raise UserError(
                f"The part token near {text[broken.start() :].strip()[:30]!r} lacks its {missing!r}; "
                f"a part token is written {_example(vocabulary)}."
            )
    return [text] if text else []


def _token(match: re.Match[str], vocabulary: PartVocabulary, where: str) -> PartToken:
    written = _excerpt(match.group(0))
    name, colon, code = (part.strip() for part in match.group(1).partition(":"))
    if not name:
        raise UserError(f"{written} names no part; a part token is written {_example(vocabulary)}.")
    try:
        part = vocabulary.index(name)
        if not _INDEX.fullmatch(code):
            raise UserError(_wrong_code(vocabulary, part, code if colon else None))
        token = PartToken(part, int(code), _weight(match.group(2)))
        vocabulary.check(token)
    except UserError as error:
        raise UserError(f"{written} in {where}: {error}") from None
    return token


def _weight(written: str | None) -> float:
    weight = 1.0 if written is None else float(written)
    if not 0 <= weight <= MAX_WEIGHT:
        raise UserError(f"the weight {weight:g} is out of range; it is from 0 to {MAX_WEIGHT:g}, and 1 is as trained.")
    return weight


def _wrong_code(vocabulary: PartVocabulary, part: int, code: str | None) -> str:
    name, last = vocabulary.names[part], vocabulary.num_codes[part] - 1
    came = "the code is missing" if not code else f"the code must be a whole number, got {_excerpt(code)}"
    return f"{came}; codes of {name!r} are 0 to {last}, as in '<{name}:{last}>'."


def _example(vocabulary: PartVocabulary) -> str:
    part = min(1, vocabulary.num_parts)
    return f"'<{vocabulary.names[part]}:{max(vocabulary.num_codes[part] - 1, 0)}>' or '<{part}:0>'"
