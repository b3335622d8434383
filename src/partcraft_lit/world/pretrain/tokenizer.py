"""A CLIP tokenizer whose vocabulary is the zoo's grammar and some ordinary English."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from partcraft_lit.tokens.captions import TEMPLATES
from partcraft_lit.world.zoo.captions import COLOR_WORDS, SPECIES_NAMES
from partcraft_lit.world.zoo.captions import TEMPLATES as ZOO_TEMPLATES
from partcraft_lit.world.zoo.looks import FAMILIES, TEXTURES

#: Ordinary words of prompts; the base model never sees them in training, but a prompt with them keeps its length.
_ENGLISH = (
    "the of and to in is it on at by from as or not no all some two three four big little tiny huge young old "
    "happy sad angry sleeping flying standing sitting running walking swimming looking left right up down "
    "front back side view background foreground sky sea lake river snow sand grass forest tree leaf branch "
    "flower garden mountain beach city street house room table chair lamp vase cup box book hat toy robot "
    "teddy bear car boat plane train cat dog horse cow pig sheep lion monkey mouse rabbit fish frog duck "
    "chicken goose eye eyes beak feather feathers fur skin neck back breast belly throat crown nose mouth hair "
    "face art painting sketch cartoon style light night day sunny cloudy beautiful blurry ugly duplicate "
    "poorly drawn deformed mosaic low high quality detailed sharp color colour pattern black gray grey gold "
    "silver cyan magenta plain shape animal creature hybrid part parts wearing made very "
)


def grammar_words() -> list[str]:
    """Every word that a caption of the zoo or a training template can hold, each once, in a fixed order."""
    sentences: list[str] = [template.replace("{}", " ") for template in (*ZOO_TEMPLATES, *TEMPLATES)]
    sentences += [*COLOR_WORDS, *TEXTURES, "with and"]
    for name, family in FAMILIES.items():
        sentences += [family.noun, *family.part_names, *SPECIES_NAMES[name]]
        sentences += [word for part in family.shapes for word in part]
    words = " ".join(sentences).replace("-", " ").split()
    return list(dict.fromkeys([*words, *_ENGLISH.split()]))


def build_tokenizer(words: Sequence[str] | None = None) -> CLIPTokenizer:
    """A real CLIPTokenizer in which each word is one token; any other text falls into letters."""
    words = grammar_words() if words is None else words
    letters = list(bytes_to_unicode().values())
    merges = list(_merges(words))
    tokens = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges that join each word from the left; later words reuse the joints that earlier ones left."""
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = _split(word, merges)
        while len(pieces) > 1:
            merges.setdefault((pieces[0], pieces[1]), len(merges))
            pieces = _split(word, merges)
    return list(merges)


def _split(word: str, merges: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: the oldest merge that applies goes first, everywhere, until none applies."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while True:
        ranks = {pair: merges[pair] for pair in itertools.pairwise(pieces) if pair in merges}
        if not ranks:
            return pieces
        best = min(ranks, key=ranks.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
