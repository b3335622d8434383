from __future__ import annotations

import pickle
from collections import Counter

import pytest
import torch

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import ABSENT, PartToken
from partcraft_lit.tokens.captions import TEMPLATES, CaptionBuilder, clean_text
from partcraft_lit.tokens.grammar import PartVocabulary, parse

VOCABULARY = PartVocabulary(["background", "head", "wing", "tail"], [4, 20, 20, 10])
CODES = torch.tensor([2, 17, ABSENT, 5])


def captions(count=400, codes=CODES, **settings):
    builder = CaptionBuilder(VOCABULARY, **settings)
    return [builder(codes, torch_generator(0, "caption", index)) for index in range(count)]


def tokens_of(caption):
    return [piece for piece in parse(caption, VOCABULARY) if isinstance(piece, PartToken)]


def test_there_are_27_different_templates():
    assert len(set(TEMPLATES)) == 27
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_captions_hold_the_present_parts_and_nothing_else():
    for caption in captions():
        assert sorted(tokens_of(caption), key=lambda token: token.part) == [
            PartToken(0, 2),
            PartToken(1, 17),
            PartToken(3, 5),
        ]


def test_half_are_templates_and_all_templates_occur():
    made = captions(1000, shuffle=False)
    tokens = "<background:2> <head:17> <tail:5>"
    counts = Counter(made)
    assert set(counts) == {tokens, *(template.replace("{}", tokens) for template in TEMPLATES)}
    assert abs(counts[tokens] / 1000 - 0.5) < 0.05  # three standard deviations


def test_orders_are_uniform_and_ordered_without_shuffle():
    orders = Counter(tuple(token.part for token in tokens_of(caption)) for caption in captions(1200))
    assert len(orders) == 6
    assert all(abs(count - 200) < 45 for count in orders.values())
    assert {tuple(token.part for token in tokens_of(c)) for c in captions(50, shuffle=False)} == {(0, 1, 3)}


def test_an_images_own_caption_takes_the_place_of_the_templates():
    builder = CaptionBuilder(VOCABULARY, shuffle=False, class_noun="bird", background=False)
    bare, tokens = "<head:17> <tail:5> bird", "<head:17> <tail:5>"
    for text, expected in (
        ("a red Bird on a birdhouse", f"a red {tokens} bird on a birdhouse"),
        ("sunset over the sea", f"{bare}, sunset over the sea"),
    ):
        made = [builder(CODES, torch_generator(0, "caption", index), text) for index in range(100)]
        without = [builder(CODES, torch_generator(0, "caption", index)) for index in range(100)]
        assert set(made) == {bare, expected}
        assert [one == bare for one in made] == [one == bare for one in without]  # equal draws
    nothing = torch.full((4,), ABSENT)
    plain = CaptionBuilder(VOCABULARY, background=False)
    assert plain(nothing, torch_generator(0), "a red bird") == "a red bird"
    assert plain(nothing, torch_generator(0)) == ""


def test_captions_of_people_become_prompts():
    assert clean_text(" I <3\n\tbirds {} \ud800<head:3> ", lambda text: True) == "I 3 birds head:3"
    words = " ".join(f"w{number}" for number in range(1000))
    for most in (0, 1, 7, 60):
        assert len(clean_text(words, lambda text, most=most: len(text.split()) <= most).split()) == most


def test_noun_follows_the_tokens_and_background_can_be_left_out():
    made = captions(50, template_prob=0.0, shuffle=False, class_noun="blue bird", background=False)
    assert set(made) == {"<head:17> <tail:5> blue bird"}


def test_dropping_leaves_at_least_one_token():
    assert {len(tokens_of(caption)) for caption in captions(drop_prob=1.0)} == {1}
    sizes = Counter(len(tokens_of(caption)) for caption in captions(1000, drop_prob=0.5))
    assert abs(sizes[3] / 1000 - 1 / 8) < 0.04
    assert abs(sizes[1] / 1000 - 4 / 8) < 0.05  # one kept by chance, or the last one kept
    assert sizes[0] == 0


def test_one_setting_changes_one_thing():
    def parts(caption):
        return [token.part for token in tokens_of(caption)]

    def around(caption):
        return caption.split("<")[0]

    plain, all_templates = captions(), captions(template_prob=1.0)
    assert [parts(caption) for caption in plain] == [parts(caption) for caption in all_templates]
    assert [around(caption) for caption in plain] == [around(caption) for caption in captions(shuffle=False)]
    for whole, dropped in zip(plain, captions(drop_prob=0.5), strict=True):
        assert around(whole) == around(dropped)
        assert [part for part in parts(whole) if part in parts(dropped)] == parts(dropped)


def test_an_image_without_parts():
    nothing = torch.full((4,), ABSENT)
    assert set(captions(20, codes=nothing)) == {""}
    assert "a photo of a bird" in set(captions(400, codes=nothing, class_noun="bird"))
    assert set(captions(20, codes=nothing, class_noun="bird", template_prob=0.0)) == {"bird"}


def test_plain_captions_have_no_chance_in_them():
    builder = CaptionBuilder(VOCABULARY, class_noun="bird")
    assert builder.plain(CODES) == "a photo of a <background:2> <head:17> <tail:5> bird"
    assert builder.plain([ABSENT, 1, 2, 3], "{} in snow") == "<head:1> <wing:2> <tail:3> bird in snow"
    with pytest.raises(UserError, match=r"one '\{\}'"):
        builder.plain(CODES, "a photo")


def test_same_generator_same_caption_also_after_pickling():
    builder = CaptionBuilder(VOCABULARY)
    again = pickle.loads(pickle.dumps(builder))
    assert builder(CODES, torch_generator(3)) == again(CODES, torch_generator(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template_prob": 1.5}, "template_prob is a probability from 0 to 1, got 1.5"),
        ({"drop_prob": -0.1}, "drop_prob is a probability"),
        ({"drop_prob": float("nan")}, "drop_prob is a probability"),
        ({"class_noun": "<bird>"}, "class_noun is an ordinary word"),
        ({"templates": ()}, "at least one sentence"),
        ({"templates": ("a photo",)}, "A template is a sentence with one '{}'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        CaptionBuilder(VOCABULARY, **settings)


@pytest.mark.parametrize(
    ("codes", "message"), [([0, 0], "one code for each of"), ([0, 20, 0, 0], "'head' the code 20, and it has 20")]
)
def test_codes_of_another_dictionary_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        CaptionBuilder(VOCABULARY)(torch.tensor(codes), torch_generator(0))
