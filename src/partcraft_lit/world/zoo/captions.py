"""The small grammar of captions: "a photo of a bird with red striped crested head and toucan wing"."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from partcraft_lit.world.zoo.looks import COLORS, TEXTURES, Family

#: Words for the named species of the pretraining world, one token each. Only the words come from nature.
SPECIES_NAMES: dict[str, tuple[str, ...]] = {
    "bird": (
        *("robin", "cardinal", "toucan", "parrot", "heron", "stork", "crane", "falcon", "eagle", "hawk", "owl"),
        *("raven", "crow", "magpie", "jay", "finch", "sparrow", "wren", "swallow", "swift", "lark", "thrush"),
        *("starling", "oriole", "tanager", "bunting", "warbler", "kinglet", "nuthatch", "creeper", "woodpecker"),
        *("kingfisher", "hoopoe", "roller", "quetzal", "hornbill", "pelican", "gannet", "puffin", "penguin"),
        *("gull", "tern", "plover", "snipe"),
    ),
    "beast": ("fox", "wolf", "tiger", "zebra", "otter", "lynx", "badger", "panda"),
}
TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an image of one {}",
    "a close-up photo of the {}",
    "a good photo of the {}",
)
#: Between the captions of two creatures in one image; it stands in no caption of one.
AND_A = " and a "
COLOR_WORDS: tuple[str, ...] = tuple(COLORS)


@dataclass(frozen=True)
class PartWords:
    """Look of a part, and its species (-1 if it has no name)."""

    look: tuple[int, ...]
    species: int


def describe_look(family: Family, part: int, look: tuple[int, ...], with_shape: bool) -> str:
    """For example "red striped crested head"; "plain" is left out."""
    shape, color, texture = look
    words = [COLOR_WORDS[color]]
    if texture:
        words.append(TEXTURES[texture])
    if with_shape:
        words.append(family.shapes[part][shape])
    return " ".join([*words, family.part_names[part]])


def join(noun: str, described: list[str]) -> str:
    """A noun with its parts."""
    if not described:
        return noun
    *first, last = described
    return f"{noun} with {', '.join(first)} and {last}" if first else f"{noun} with {last}"


def caption(family: Family, parts: list[PartWords], rng: np.random.Generator, in_a_sentence: bool = True) -> str:
    """A random true caption: in half of them every part is described, in the rest any number from none to all.

    Parts come in any order. A named part is described by its species two times in three, else by its look. One caption
    in seven is a bare list of parts without template and noun, as prompts of bare part tokens are. With
    ``in_a_sentence`` off there is neither template nor bare list: what follows "and a".
    """
    names = SPECIES_NAMES[family.noun]
    whole = {part.species for part in parts}
    noun = family.noun
    count = len(parts) if rng.random() < 0.5 else int(rng.integers(len(parts) + 1))
    if len(whole) == 1 and -1 not in whole and rng.random() < 0.4:
        noun, count = names[whole.pop()], 0
    described = []
    for index in rng.permutation(len(parts))[:count]:
        part = parts[index]
        if part.species >= 0 and rng.random() < 2 / 3:
            described.append(f"{names[part.species]} {family.part_names[index]}")
        else:
            described.append(describe_look(family, int(index), part.look, with_shape=bool(rng.random() < 0.8)))
    if not in_a_sentence:
        return join(noun, described)
    if described and rng.random() < 1 / 7:
        return " ".join(described)
    return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(join(noun, described))


def parts_of_words(family: Family, text: str) -> list[int | None]:
    """The part that each word of a caption describes, None for the others; words as CLIP's tokenizer splits them.

    For "a bird with red striped head" the last three words describe the head.
    """
    words = re.findall(r"[a-z]+|[^\sa-z]+", text)
    describing = {*COLOR_WORDS, *TEXTURES, *SPECIES_NAMES[family.noun], *(w for part in family.shapes for w in part)}
    spoken: list[int | None] = [None] * len(words)
    start = 0  # of the run of describing words
    for place, word in enumerate(words):
        if word in family.part_names:
            spoken[start : place + 1] = [family.part_names.index(word)] * (place + 1 - start)
            start = place + 1
        elif word not in describing:
            start = place + 1
    return spoken


def tells_shapes(family: Family, text: str) -> list[bool]:
    """Whether a caption says which shape each part has: by a word for it, or by the name of a species."""
    words = re.findall(r"[a-z]+|[^\sa-z]+", text)
    names = SPECIES_NAMES[family.noun]
    spoken = parts_of_words(family, text)
    told = [any(word in names and part is None for word, part in zip(words, spoken, strict=True))] * len(family.shapes)
    for word, part in zip(words, spoken, strict=True):
        if part is not None and (word in family.shapes[part] or word in names):
            told[part] = True
    return told
