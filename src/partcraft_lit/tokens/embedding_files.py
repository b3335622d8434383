"""Names and vectors of baked tokens for other tools."""

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
    """An exported part variant.

    Attributes:
        token: part and code.
        placeholder: token in diffusers and in prompts here: ``<head:7>``.
        stem: file name without suffix, its name in A1111 and ComfyUI.
        vectors: one (1, width) float32 tensor per text encoder.
    """

    token: PartToken
    placeholder: str
    stem: str
    vectors: tuple[Tensor, ...]

    @property
    def alone(self) -> str:
        """Prompt of this part alone."""
        return f"a photo of a {self.placeholder}"

    def word(self, tool: Tool) -> str:
        """The part's word in the prompts of a tool."""
        return {"diffusers": self.placeholder, "a1111": self.stem, "comfyui": f"embedding:{self.stem}"}[tool]


def chosen_tokens(
    wanted: Sequence[str] | None, vocabulary: PartVocabulary, trained: Sequence[Sequence[bool]]
) -> list[PartToken]:
    """Selects part variants.

    Args:
        wanted: each "head:17", "<head:17>", "2:17", or "head" for all of its variants; None for all parts.
        vocabulary: parts and codes.
        trained: per part and code, whether any image has it; others are selected by code only.

    Returns:
        Distinct tokens in the order of ``wanted``.

    Raises:
        UserError: for an unknown part or code, with the nearest known ones, or for an empty selection.
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

    Args:
        token: part and code.
        vocabulary: parts and codes.
        baked: (M + 1, K, sum of widths).
        widths: of the text encoders' embeddings.
        prefix: of file names, since other tools keep all embeddings in one folder.
    """
    vectors = baked[token.part, token.code].detach().float().cpu().split(list(widths))
    return ExportedPart(
        token=token,
        placeholder=render([token], vocabulary),
        stem=part_stem(token.part, token.code, vocabulary, prefix),
        vectors=tuple(vector[None].clone() for vector in vectors),
    )


def usual_name(run: str) -> str:
    """With which the file names of a run's export begin unless another name is chosen."""
    return f"partcraft-{run.rpartition('-')[2]}"


def part_stem(part: int, code: int, vocabulary: PartVocabulary, prefix: str) -> str:
    """File name of a part variant, without suffix.

    Codes are zero-padded, so that none is a prefix of another: A1111 would read ``head-1`` in ``head-17``.
    """
    digits = len(str(vocabulary.num_codes[part] - 1))
    return f"{prefix}-{vocabulary.names[part]}-{code:0{digits}d}"


def renamed_prompt(prompt: str, vocabulary: PartVocabulary, words: dict[PartToken, str]) -> str:
    """A prompt with part tokens renamed for another tool."""
    pieces = parse(prompt, vocabulary)
    return "".join(words[piece] if isinstance(piece, PartToken) else piece for piece in pieces)
