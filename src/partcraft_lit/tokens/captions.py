"""Training captions: part tokens alone, in a neutral template, or in the image's own caption."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT, BACKGROUND, PartToken
from partcraft_lit.tokens.grammar import PartVocabulary, render

#: The short ImageNet templates of Textual Inversion (arXiv 2208.01618, appendix), after CLIP's.
TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)

#: More words than any text encoder here reads.
_MOST_WORDS = 512
#: Parts named in a caption: "all", or a "union" of k random ones, with k drawn first.
Subset = Literal["all", "union"]


@dataclass(frozen=True)
class CaptionBuilder:
    """Builds the caption of an image from its codes; absent parts are omitted.

    Draws do not depend on the settings, so runs that differ in one setting are paired in all other choices.

    Attributes:
        vocabulary: parts and codes.
        template_prob: probability of a template; otherwise the tokens stand alone.
        shuffle: random order of tokens; otherwise by part, background first.
        class_noun: a noun after the tokens ("bird"), or "".
        drop_prob: probability of dropping each token; at least one stays.
        background: whether captions have a background token.
        templates: sentences with one ``{}`` each.
        separator: text between two tokens.
        nouns: whether each token is followed by the name of its part: "<cat:0> cat and <dog:0> dog".
        subset: parts that are named.

    Raises:
        UserError: if a setting is out of range.

    Source: the training script of the PartCraft release. Differs: tokens are dropped one by one, not half of them in
    half of the captions. The union is that of Break-a-Scene (arXiv 2305.16311), section 3.
    """

    vocabulary: PartVocabulary
    template_prob: float = 0.5
    shuffle: bool = True
    class_noun: str = ""
    drop_prob: float = 0.0
    background: bool = True
    templates: Sequence[str] = TEMPLATES
    separator: str = " "
    nouns: bool = False
    subset: Subset = "all"

    def __post_init__(self) -> None:
        for name in ("template_prob", "drop_prob"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"{name} is a probability from 0 to 1, got {value}.")
        if set("<>") & set(self.separator):
            raise UserError(f"separator stands between tokens, without '<' and '>', got {self.separator!r}.")
        if set("<>") & set(self.class_noun):
            raise UserError(
                f"class_noun is an ordinary word such as 'bird', without '<' and '>', got {self.class_noun!r}."
            )
        if self.subset not in get_args(Subset):
            raise ValueError(f"subset must be one of {get_args(Subset)}, got {self.subset!r}.")
        if not self.templates:
            raise UserError("templates must hold at least one sentence, such as 'a photo of a {}'.")
        for template in self.templates:
            check_template(template)

    def __call__(self, codes: Tensor | Sequence[int], generator: torch.Generator, text: str = "") -> str:
        """Draws a training caption.

        Args:
            codes: (M + 1,) code of each part, ``ABSENT`` where the image does not show it.
            generator: on the CPU.
            text: the image's own caption (see `clean_text`), which takes the place of the templates.

        Returns:
            In the prompt grammar; the class noun alone, or ``text``, without a part.

        Raises:
            ValueError: if ``codes`` does not fit the vocabulary.
        """
        with_template = float(torch.rand((), generator=generator)) < self.template_prob
        template = self.templates[int(torch.randint(len(self.templates), (), generator=generator))]
        order = torch.randperm(len(self.vocabulary.names), generator=generator).tolist()
        keep = torch.rand(len(self.vocabulary.names), generator=generator).tolist()
        share = float(torch.rand((), generator=generator, dtype=torch.float64))

        tokens = self._tokens(codes)
        if self.subset == "union":
            tokens = sample_union(tokens, share, keep)
        if self.shuffle:
            tokens.sort(key=lambda token: order[token.part])
        if tokens:
            safe = max(tokens, key=lambda token: keep[token.part])
            tokens = [token for token in tokens if token is safe or keep[token.part] >= self.drop_prob]
        if text:
            template = self._around(text)
        return self._sentence(tokens, template if with_template else "{}") or text

    def plain(self, codes: Tensor | Sequence[int], template: str = "a photo of a {}") -> str:
        """The deterministic caption of all present parts in order, for samples, probes and scores."""
        check_template(template)
        return self._sentence(self._tokens(codes), template)

    def _around(self, text: str) -> str:
        """An image's caption as a template: the tokens stand where the class noun does, else before the text."""
        noun = re.search(rf"\b{re.escape(self.class_noun)}\b", text, re.IGNORECASE) if self.class_noun else None
        return f"{text[: noun.start()]}{{}}{text[noun.end() :]}" if noun else f"{{}}, {text}"

    def _tokens(self, codes: Tensor | Sequence[int]) -> list[PartToken]:
        values = [int(code) for code in (codes.tolist() if isinstance(codes, Tensor) else codes)]
        if len(values) != len(self.vocabulary.names):
            raise ValueError(f"codes must hold one code for each of {list(self.vocabulary.names)}, got {values}.")
        first = BACKGROUND if self.background else BACKGROUND + 1
        tokens = [PartToken(part, values[part]) for part in range(first, len(values)) if values[part] != ABSENT]
        for token in tokens:
            if not 0 <= token.code < self.vocabulary.num_codes[token.part]:
                raise ValueError(
                    f"codes give {self.vocabulary.names[token.part]!r} the code {token.code}, and it has "
                    f"{self.vocabulary.num_codes[token.part]} codes; do the codes belong to this dictionary?"
                )
        return tokens

    def _sentence(self, tokens: list[PartToken], template: str) -> str:
        words = self.separator.join(self._phrase(token) for token in tokens)
        subject = " ".join([words, *self.class_noun.split()]).strip()
        return template.replace("{}", subject) if subject else ""

    def _phrase(self, token: PartToken) -> str:
        word = render([token], self.vocabulary)
        return f"{word} {self.vocabulary.names[token.part]}" if self.nouns else word


def clean_text(text: str, fits: Callable[[str], bool]) -> str:
    """A caption as people write them, for use in prompts: one line, without the grammar's signs, cut to whole words.

    Args:
        text: of any length.
        fits: whether a text is short enough; the longest beginning that fits is taken.
    """
    words = re.sub(r"[<>{}\x00-\x1f\ud800-\udfff]", " ", text).split()[:_MOST_WORDS]
    low, high = 0, len(words)
    if fits(" ".join(words)):
        return " ".join(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(" ".join(words[:middle])) else (low, middle - 1)
    return " ".join(words[:low])


def sample_union(tokens: list[PartToken], share: float, keep: Sequence[float]) -> list[PartToken]:
    """k of N tokens in order, with k uniform in 1...N and uniform subsets of size k.

    Args:
        tokens: one per part.
        share: uniform in [0, 1), which gives k.
        keep: independent uniform values per part; the k largest stay.
    """
    number = 1 + int(share * len(tokens))
    kept = sorted(tokens, key=lambda token: keep[token.part], reverse=True)[:number]
    return [token for token in tokens if token in kept]


def check_template(template: str) -> None:
    if template.count("{}") != 1 or set("<>") & set(template):
        raise UserError(f"A template is a sentence with one '{{}}' and without '<' and '>', got {template!r}.")
