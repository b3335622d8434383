from __future__ import annotations

import math
import pickle
from collections import Counter
from itertools import combinations, permutations

import pytest
import torch

from partcraft_lit.errors import UserError
from partcraft_lit.randomness import torch_generator
from partcraft_lit.tokens.concept_captions import ConceptCaptions, union_subset
from partcraft_lit.tokens.grammar import PartVocabulary, parse
from partcraft_lit.types import ABSENT, PartToken

VOCABULARY = PartVocabulary(["background", "cat", "dog", "hat"], [1, 2, 1, 3])
NOUNS = ("", "cat", "dog", "hat")


def captions(**settings) -> ConceptCaptions:
    return ConceptCaptions(VOCABULARY, NOUNS, **settings)


def named(caption: str) -> tuple[int, ...]:
    return tuple(piece.part for piece in parse(caption, VOCABULARY) if isinstance(piece, PartToken))


def test_by_hand():
    codes = torch.tensor([0, 1, ABSENT, 2])
    builder = captions(templates=("photo of a {}",))
    assert builder.plain(codes) == "photo of a <cat:1> cat and <hat:2> hat"
    assert builder(codes, torch_generator(0)) == builder.plain(codes)
    assert builder.plain(codes, "{} at the beach") == "<cat:1> cat and <hat:2> hat at the beach"
    bare = ConceptCaptions(VOCABULARY, ("",) * 4, background=True)
    assert bare.plain(codes) == "a photo of <background:0> and <cat:1> and <hat:2>"
    assert builder.plain([0, ABSENT, ABSENT, ABSENT]) == ""
    assert "<cat:1>" in builder(codes, torch_generator(1)) and pickle.loads(pickle.dumps(builder)) == builder


def test_exactly_the_sets_that_union_sampling_means():
    """Over all that chance can bring (k by the share, the permutation), each k and each set of k alike: no sampling."""
    tokens = [PartToken(part, 0) for part in (1, 2, 3)]
    seen: Counter = Counter()
    for share in (0.0, 0.2, 0.34, 0.6, 0.67, 0.99):  # two of each third
        for order in permutations(range(4)):
            seen[tuple(token.part for token in union_subset(tokens, share, order))] += 1
    assert seen.keys() == {subset for k in (1, 2, 3) for subset in combinations((1, 2, 3), k)}
    by_size = {k: {count for subset, count in seen.items() if len(subset) == k} for k in (1, 2, 3)}
    assert by_size == {1: {16}, 2: {16}, 3: {48}}


def test_the_number_of_named_parts_is_uniform():
    """6000 captions; each k is a binomial draw with p = 1/3, and five standard deviations never happen by chance."""
    total, builder = 6000, captions(subset="union")
    sets = Counter(named(builder([0, 0, 0, 0], torch_generator(0, "caption", number))) for number in range(total))
    sizes = Counter()
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


def test_settings_do_not_move_the_other_draws():
    codes, seeds = [0, 0, 0, 0], range(40)
    templates = ("a photo of {}", "a drawing of {}")
    plain = [captions(templates=templates)(codes, torch_generator(seed)) for seed in seeds]
    union = [
        captions(templates=templates, subset="union", shuffle=True)(codes, torch_generator(seed)) for seed in seeds
    ]
    assert [text.split(" of ")[0] for text in plain] == [text.split(" of ")[0] for text in union]
    orders = {named(captions(shuffle=True)(codes, torch_generator(seed))) for seed in seeds}
    assert len(orders) == 6


def test_messages():
    with pytest.raises(ValueError, match="One noun per part"):
        ConceptCaptions(VOCABULARY, ("cat",))
    with pytest.raises(ValueError, match="subset must be one of"):
        captions(subset="some")
    with pytest.raises(UserError, match=r"one '\{\}'"):
        captions(templates=("a photo",))
    with pytest.raises(UserError, match="at least one sentence"):
        captions(templates=())
    with pytest.raises(UserError, match="without brackets, got '<cat>'"):
        ConceptCaptions(VOCABULARY, ("", "<cat>", "", ""))
    with pytest.raises(ValueError, match="one code for each of"):
        captions().plain([0, 1])
    with pytest.raises(UserError, match="has no code 7"):
        captions().plain([0, 7, 0, 0])
