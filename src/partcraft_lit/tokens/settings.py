"""Settings of part tokens and captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from partcraft_lit.core.settings import Inject, Positive, Rate, Share


@dataclass(frozen=True)
class MapperSettings:
    """The token mapper.

    Attributes:
        layers: linear layers after the embedding; 0 is textual inversion.
        position: whether each part has an embedding that is added to those of its codes.
        norm_match: whether outputs are rescaled to the mean norm of the text encoder's embeddings.
        hidden: hidden width; None for that of the embedding.
        init_std: initial standard deviation of the embeddings.
        init: initialisation of the embeddings: random, or from the features (cluster centroids) of discovery.
    """

    layers: Annotated[int, Field(ge=0, le=3)]
    position: bool
    norm_match: bool
    hidden: Positive | None
    init_std: Rate
    init: Literal["random", "features"] = "random"


@dataclass(frozen=True)
class CaptionSettings:
    """Training captions.

    Attributes:
        template_prob: probability of a neutral template; otherwise the tokens stand alone.
        shuffle: random order of tokens.
        drop_prob: probability of dropping each token.
        background: whether captions have a background token.
        class_noun: noun after the tokens: "auto" for the dataset's, "" for none; "each" for the part's name after each
            token.
        separator: text between two tokens, spaces included, such as " and ".
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
    """Embeddings of part tokens.

    Attributes:
        init: words that they are initialised from: none for random ones, one for all foreground parts, or one each;
            "auto" is the dataset's noun. Only with ``mapper.layers=0``.
        trained: whether they train; otherwise they stay at ``init``.
        inject: "before" the text encoder, in place of token embeddings; or "after" it, in place of its hidden states,
            so that no gradient passes through it and each prompt is encoded once.
        fill: the word that the text encoder reads at part tokens, for "after"; a single token.
    """

    init: tuple[str, ...]
    trained: bool
    inject: Inject = "before"
    fill: str = "one"
