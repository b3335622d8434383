from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.tokenize import tokenize
from partcraft_lit.tokens.weights import apply_part_weights

#: Two parts beside the background; "wing" has one code less than the table has rows.
WORLD = PartVocabulary(["background", "head", "wing"], [1, 3, 2])


@pytest.fixture
def baked():
    return torch.arange(18.0).reshape(3, 3, 2) ** 1.5


def weighed(prompts, tiny_tokenizer, baked):
    tokens = tokenize(prompts, WORLD, [tiny_tokenizer])
    used = tokens.part_ids >= 0
    vectors = baked[tokens.part_ids.clamp_min(0), tokens.code_ids.clamp_min(0)] * used[..., None]
    return apply_part_weights(vectors, tokens, baked, WORLD.num_codes)


def test_by_hand(tiny_tokenizer):
    baked = torch.tensor([[[9.0], [9.0]], [[2.0], [6.0]]])  # the mean of part 1 is 4
    world = PartVocabulary(["background", "head"], [2, 2])
    tokens = tokenize(["<head:1>*1.5 <head:0>*0.5", "<head:1>*0"], world, [tiny_tokenizer])
    vectors = torch.tensor([[[6.0], [2.0]], [[6.0], [0.0]]])
    assert_close(
        apply_part_weights(vectors, tokens, baked, world.num_codes), torch.tensor([[[7.0], [3.0]], [[4.0], [0.0]]])
    )


def test_a_weight_of_one_is_as_trained_to_the_bit(tiny_tokenizer, baked):
    assert tokenize(["<head:1>*1.0"], WORLD, [tiny_tokenizer]).part_weights is None
    both = weighed(["<head:1>*1 <wing:0>*0.3"], tiny_tokenizer, baked)
    assert torch.equal(both[0, 0], baked[1, 1])


def test_weights_lie_on_a_line_through_the_mean_of_the_codes_that_exist(tiny_tokenizer, baked):
    none, half, more = (weighed([f"<wing:1>*{w}"], tiny_tokenizer, baked)[0, 0] for w in (0, 0.5, 1.5))
    assert_close(none, baked[2, :2].mean(dim=0))
    assert_close(half, (none + baked[2, 1]) / 2)
    assert_close(more - baked[2, 1], baked[2, 1] - half)


def test_a_part_with_one_code_stays_what_it_is(tiny_tokenizer, baked):
    assert_close(weighed(["<background:0>*3"], tiny_tokenizer, baked)[0, 0], baked[0, 0])
