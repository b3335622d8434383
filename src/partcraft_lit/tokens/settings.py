"""What the configuration says of part tokens and captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from partcraft_lit.core.settings import Positive, Rate, Share


@dataclass(frozen=True)
class MapperSettings:
    """The token mapper.

    Attributes:
        layers: linear layers behind the embedding; 0 is plain textual inversion.
        position: whether each part has a learnt vector added to all of its codes.
        norm_match: whether outputs are rescaled to the mean norm of the text encoder's own embeddings.
        hidden: width between the layers; None for that of the embedding.
        init_std: standard deviation of the embeddings at the start.
    """

    layers: Annotated[int, Field(ge=0, le=3)]
    position: bool
    norm_match: bool
    hidden: Positive | None
    init_std: Rate


@dataclass(frozen=True)
class CaptionSettings:
    """Training captions.

    Attributes:
        template_prob: how often the tokens stand in one of the neutral templates; else they stand alone.
        shuffle: whether their order is drawn anew each time.
        drop_prob: probability of leaving out each part.
        background: whether the background has a token.
        class_noun: a word after the tokens: "auto" for the dataset's own noun, "" for none; "each" for the name of its
            part after each token.
        separator: what stands between two tokens, spaces included, such as " and ".
        templates: sentences with one "{}" each; empty for the 27 of Textual Inversion.
    """

    template_prob: Share
    shuffle: bool
    drop_prob: Share
    background: bool
    class_noun: str
    separator: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class TokenSettings:
    """The vectors of part tokens.

    Attributes:
        init: ordinary words whose vectors they start from: none for random ones, one for all foreground parts, or one
            for each; "auto" is the noun of the dataset. Only without a mapper (``mapper.layers=0``).
        trained: whether they train; else they stay the words they start from.
    """

    init: tuple[str, ...]
    trained: bool
