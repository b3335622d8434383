from __future__ import annotations

import pytest
import torch

import tiny_klein
from partcraft_lit.core.errors import UserError
from partcraft_lit.methods.edit_references import Wording
from partcraft_lit.tokens.grammar import PartVocabulary

VOCABULARY = PartVocabulary(("background", "head", "wing"), (3, 3, 3))
WORDING = Wording("a photo of one {noun} with {parts}", "the {part} of image {number}", "bird")
SMALL = (
    "method=edit_references",
    "backbone=flux2_klein",
    "method.reference_size=32",
    "sample.steps=1",
    "sample.guidance_scale=1",
)


def crop_of(part: int, code: int) -> torch.Tensor | None:
    return None if code == 2 else torch.full((3, 20, 30), 40 * (part + 2 * code), dtype=torch.uint8)


@pytest.fixture
def module(tools):
    made = tools.build(tiny_klein.backbone(), *SMALL)
    made.method.bind_images(crop_of, "images")
    return made


def test_words_by_hand():
    words, tokens = WORDING.of("a photo of a <background:1> <head:2> <wing:0>", VOCABULARY)
    assert words == ("a photo of one bird with the head of image 1, the wing of image 2 and the background of image 3")
    assert [(token.part, token.code) for token in tokens] == [(1, 2), (2, 0), (0, 1)]
    assert WORDING.of("<wing:1>", VOCABULARY)[0] == "a photo of one bird with the wing of image 1"
    assert WORDING.of("a red bird", VOCABULARY) == ("a red bird", [])


def test_references_are_the_crops_in_the_order_of_the_words(module):
    seen, backbone = [], module.backbone
    own = backbone.encode_images

    def encode_images(pixels):
        seen.append((tuple(pixels.shape[2:]), round(float((pixels.mean() + 1) * 127.5))))
        return own(pixels)

    backbone.encode_images = encode_images
    image = module.generate(["a photo of a <wing:1> <head:0>"], [3])[0]
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert seen == [((20, 32), 40 * 4), ((20, 32), 40)]
    assert backbone._references == ()
    again = module.generate(["a photo of a <wing:0> <head:0>", "a photo of a <wing:1> <head:0>"], [3, 3])
    assert torch.equal(again[1], image)


def test_nothing_trains_and_the_recipe_names_the_images(module):
    assert module.trainable_groups() == {}
    before = module.method.identity
    module.method.bind_images(crop_of, "other images")
    assert module.method.identity != before


def test_a_code_without_an_image_is_told(module):
    with pytest.raises(UserError, match="<head:2>: no image shows this code"):
        module.generate(["<head:2>"], [0])


def test_other_backbones_are_refused(tools, fresh_backbone):
    with pytest.raises(UserError, match="set backbone=flux2_klein"):
        tools.build(fresh_backbone, "method=edit_references")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.phrase='the part of image {number}'", r"method\.phrase=.*\{number\} and \{part\}"),
        ("method.prompt='a bird with {parts} in {place}'", r"method\.prompt=.*with \{parts\}"),
        ("method.prompt='a bird with {parts'", r"method\.prompt="),
    ],
)
def test_words_without_their_places_are_refused(tools, override, message):
    with pytest.raises(UserError, match=message):
        tools.build(tiny_klein.backbone(), *SMALL, override)
