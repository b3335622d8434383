"""Union sampling, and nouns behind tokens."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, permutations

import pytest
import torch

from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import ABSENT, PartToken
from partcraft_lit.tokens.captions import CaptionBuilder, sample_union
from partcraft_lit.tokens.grammar import PartVocabulary, parse

VOCABULARY = PartVocabulary(["background", "cat", "dog", "hat"], [1, 2, 1, 3])


def captions(**settings) -> CaptionBuilder:
    plain = {"template_prob": 1.0, "shuffle": False, "background": False, "templates": ("photo of a {}",)}
    return CaptionBuilder(VOCABULARY, **(plain | settings))


def named(caption: str) -> tuple[int, ...]:
    return tuple(piece.part for piece in parse(caption, VOCABULARY) if isinstance(piece, PartToken))


def test_nouns_by_hand():
    codes = torch.tensor([0, 1, ABSENT, 2])
    builder = captions(nouns=True, separator=" and ")
    assert builder(codes, torch_generator(0)) == "photo of a <cat:1> cat and <hat:2> hat"
    assert builder.plain(codes) == "a photo of a <cat:1> cat and <hat:2> hat"
    assert captions(nouns=True, background=True)([0, 0, ABSENT, ABSENT], torch_generator(0)) == (
        "photo of a <background:0> background <cat:0> cat"
    )


def test_exactly_the_sets_that_union_sampling_means():
    """Over all that chance can bring (thirds of the share, orders of the parts): each k, and each set of k, alike."""
    tokens = [PartToken(part, 0) for part in (1, 2, 3)]
    seen: Counter = Counter()
    for share in (0.0, 0.2, 0.34, 0.6, 0.67, 0.99):  # two of each third
        for order in permutations((0.1, 0.2, 0.3, 0.4)):
            seen[tuple(token.part for token in sample_union(tokens, share, order))] += 1
    assert seen.keys() == {subset for k in (1, 2, 3) for subset in combinations((1, 2, 3), k)}
    by_size = {k: {count for subset, count in seen.items() if len(subset) == k} for k in (1, 2, 3)}
    assert by_size == {1: {16}, 2: {16}, 3: {48}}
    assert sample_union([], 0.5, ()) == []


def test_the_number_of_named_parts_is_uniform():
    """4500 captions; each k is a binomial draw with p = 1/3, and five standard deviations never happen by chance."""
    total, builder = 4500, captions(subset="union")
    sets = Counter(named(builder([0, 0, 0, 0], torch_generator(0, "caption", number))) for number in range(total))
    sizes: Counter = Counter()
    for subset, count in sets.items():
        sizes[len(subset)] += count
    bound = 5 * math.sqrt(total * (1 / 3) * (2 / 3))
    assert all(abs(sizes[k] - total / 3) < bound for k in (1, 2, 3)), sizes
    pairs = [count for subset, count in sets.items() if len(subset) == 2]
    assert len(pairs) == 3 and all(abs(count - total / 9) < 5 * math.sqrt(total / 9) for count in pairs)


def test_absent_parts_do_not_bend_the_numbers():
    builder = captions(subset="union")
    sizes = Counter(len(named(builder([0, 0, ABSENT, 1], torch_generator(1, n)))) for n in range(2000))
    assert sizes.keys() == {1, 2} and abs(sizes[1] - 1000) < 5 * math.sqrt(500)


def test_unions_move_no_other_draw():
    codes = [0, 0, 0, 0]
    templates = ("a photo of {}", "a drawing of {}")
    for seed in range(20):
        whole = captions(templates=templates, shuffle=True)(codes, torch_generator(seed))
        union = captions(templates=templates, shuffle=True, subset="union")(codes, torch_generator(seed))
        assert whole.split(" of ")[0] == union.split(" of ")[0]
        assert [part for part in named(whole) if part in named(union)] == list(named(union))


def test_an_unknown_subset():
    with pytest.raises(ValueError, match="subset must be one of"):
        captions(subset="some")
