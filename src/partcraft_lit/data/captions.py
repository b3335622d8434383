"""Captions that come with the images, prepared for training prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import CaptionedSource, ImageSource, TokenizedPrompts
from partcraft_lit.tokens.captions import clean_text

logger = logging.getLogger(__name__)


def caption_texts(
    source: ImageSource,
    part_captions: Sequence[str],
    tokenize: Callable[[Sequence[str]], TokenizedPrompts],
) -> list[str] | None:
    """One caption per image, "" without one; None if no image has one.

    Args:
        source: the images.
        part_captions: a caption with the part tokens of each image, which has to fit beside the text.
        tokenize: captions -> ids; refuses what is too long. Texts are cut to whole words until they fit.
    """
    if not isinstance(source, CaptionedSource):
        return None
    written = [source.text_of(index) or "" for index in range(len(source))]
    if not any(text.strip() for text in written):
        return None

    def fits(part_caption: str, text: str) -> bool:
        try:
            tokenize([f"{part_caption}, {text}"])
        except UserError:
            return False
        return True

    texts = [
        clean_text(text, lambda beginning, parts=parts: fits(parts, beginning))  # type: ignore[misc]
        for text, parts in zip(written, part_captions, strict=True)
    ]
    count = sum(bool(text) for text in texts)
    cut = sum(len(text.split()) < len(clean_text(long, lambda _: True).split()) for text, long in zip(texts, written))
    logger.info("%d of %d images have captions, which take the place of the templates", count, len(texts))
    if cut:
        logger.warning("%d captions are longer than the text encoder reads beside the part tokens, and are cut", cut)
    return texts
