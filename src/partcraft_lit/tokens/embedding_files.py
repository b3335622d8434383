"""Baked tokens in the words of other tools: what a part is called there, and what a file of one part holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import PartToken
from partcraft_lit.tokens.grammar import PartVocabulary, parse, render

Tool = Literal["diffusers", "a1111", "comfyui"]


@dataclass(frozen=True)
class ExportedPart:
    """One part variant that leaves the project.

    Attributes:
        token: which.
        placeholder: its word in diffusers, the same as in our prompts: ``<head:7>``.
        stem: name of its files, without folder and ending; A1111 and ComfyUI know it by that.
        vectors: one (1, width) float32 tensor per text encoder.
    """

    token: PartToken
    placeholder: str
    stem: str
    vectors: tuple[Tensor, ...]

    @property
    def alone(self) -> str:
        """A prompt for an image of this part by itself."""
        return f"a photo of a {self.placeholder}"

    def word(self, tool: Tool) -> str:
        """The part's word in the prompts of a tool."""
        return {"diffusers": self.placeholder, "a1111": self.stem, "comfyui": f"embedding:{self.stem}"}[tool]


def chosen_tokens(
    wanted: Sequence[str] | None, vocabulary: PartVocabulary, trained: Sequence[Sequence[bool]]
) -> list[PartToken]:
    """The part variants that a user asks for.

    Args:
        wanted: each "head:17", "<head:17>", "2:17", or "head" for all of its variants; None for all of all parts.
        vocabulary: parts and codes.
        trained: per part and code, whether any image showed it; only what was asked for by code may lack that.

    Returns:
        Tokens in the order asked for, each once.

    Raises:
        UserError: for an unknown part or code, with the nearest known ones, or if nothing is left.
    """
    tokens: list[PartToken] = []
    names = vocabulary.names if wanted is None else wanted
    for text in names:
        name = text.strip().removeprefix("<").removesuffix(">")
        if ":" in name:
            tokens.append(_named_variant(text.strip(), vocabulary))
        else:
            part = _named_part(name.strip(), vocabulary)
            tokens += [PartToken(part, code) for code, is_trained in enumerate(trained[part]) if is_trained]
    if not tokens:
        raise UserError("parts=[] chooses nothing to export; write parts=[head:17,wing:42], or parts=null for all.")
    return list(dict.fromkeys(tokens))


def _named_variant(text: str, vocabulary: PartVocabulary) -> PartToken:
    pieces = parse(text if text.startswith("<") else f"<{text}>", vocabulary, "parts")
    if len(pieces) != 1 or not isinstance(pieces[0], PartToken):
        raise UserError(f"{text!r} in parts: wanted one part variant, such as head:17.")
    if pieces[0].weight != 1:
        raise UserError(
            f"{text!r} in parts: a file holds the variant as trained, without a weight. Leave the weight out; A1111 "
            "and ComfyUI have weights of their own, (word:1.3)."
        )
    return pieces[0]


def _named_part(name: str, vocabulary: PartVocabulary) -> int:
    try:
        return vocabulary.index(name)
    except UserError as error:
        raise UserError(f"{name!r} in parts: {error}") from None


def exported_part(
    token: PartToken, vocabulary: PartVocabulary, baked: Tensor, widths: Sequence[int], prefix: str
) -> ExportedPart:
    """A baked token with its names.

    Codes in file names are padded to one length, so that no name begins with another: A1111 would read
    ``head-1`` out of ``head-17`` where only the first is installed.

    Args:
        token: which.
        vocabulary: parts and codes.
        baked: (M + 1, K, sum of widths).
        widths: of the text encoders' embeddings.
        prefix: what file names begin with, since all embeddings lie in one folder there.
    """
    digits = len(str(vocabulary.num_codes[token.part] - 1))
    vectors = baked[token.part, token.code].detach().float().cpu().split(list(widths))
    return ExportedPart(
        token=token,
        placeholder=render([token], vocabulary),
        stem=f"{prefix}-{vocabulary.names[token.part]}-{token.code:0{digits}d}",
        vectors=tuple(vector[None].clone() for vector in vectors),
    )


def renamed_prompt(prompt: str, vocabulary: PartVocabulary, words: dict[PartToken, str]) -> str:
    """A prompt in which every part token is written as the word that another tool knows it by."""
    pieces = parse(prompt, vocabulary)
    return "".join(words[piece] if isinstance(piece, PartToken) else piece for piece in pieces)
