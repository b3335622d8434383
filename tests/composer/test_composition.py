"""Compositions as values: prompts, recipes, commands."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import partcraft_lit as pc
from partcraft_lit.composer.composition import Composition, PartChoice
from partcraft_lit.core.errors import UserError


def png_with(**texts):
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    file.seek(0)
    return file


HEAD, WING = PartChoice("head", 3, image=12, image_name="a/b.jpg", cosine=0.93), PartChoice("wing", 7, weight=1.3)


@pytest.mark.parametrize(
    "composition, prompt",
    [
        (Composition((HEAD, WING), after="bird"), "a photo of a <head:3> <wing:7>*1.3 bird"),
        (Composition((HEAD, WING), "", "", ("and",)), "<head:3> and <wing:7>*1.3"),
        (Composition((HEAD, HEAD), "a", ", on grass", (",",)), "a <head:3>, <head:3>, on grass"),
        (Composition((), "a bird"), "a bird"),
    ],
)
def test_prompts_and_back(composition, prompt):
    assert composition.prompt == prompt
    again = Composition.from_prompt(prompt)
    assert again.prompt == prompt
    assert [(c.part, c.code, c.weight) for c in again.choices] == [
        (c.part, c.code, c.weight) for c in composition.choices
    ]
    assert Composition.from_dict(json.loads(json.dumps(composition.to_dict()))) == composition


def test_several_variants_of_a_part_and_negative_ones():
    composition = Composition((HEAD, WING, PartChoice("head", 4)), negative_prompt="blurry <tail:2>*0.5")
    assert composition.codes == {"head": (3, 4), "wing": (7,)}
    assert composition.negative == (PartChoice("tail", 2, 0.5),)
    assert "[('head', 3, 1.0), ('wing', 7, 1.3), ('head', 4, 1.0)]" in composition.python()


def test_gaps_have_to_fit():
    with pytest.raises(UserError, match="between holds 1 texts, and 3 parts have 2 gaps"):
        Composition((HEAD, WING, HEAD), between=("and",))


def test_commands_quote_what_a_shell_would_read():
    composition = Composition((HEAD,), "it's", negative_prompt="blurry, dark", run="birds run")
    lines = composition.command([4, 5, 9], steps=20, guidance_scale=None).splitlines()
    assert lines[0] == (
        "partcraft generate 'run=birds run' 'prompt=it'\"'\"'s <head:3>' sample.steps=20 "
        "'sample.negative_prompt=blurry, dark' seed=4 num_images=2"
    )
    assert lines[1].endswith("seed=9 num_images=1") and len(lines) == 2


def test_a_png_without_a_composition():
    with pytest.raises(UserError, match="holds no composition"):
        Composition.from_png(png_with(title="x"))
    with pytest.raises(UserError, match="not a PNG"):
        Composition.from_png(io.BytesIO(b"GIF89a"))
    with pytest.raises(UserError, match="not a PNG"):
        Composition.from_png("nowhere.png")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "choices"),
        (json.dumps({"choices": [{"part": "head", "code": "x"}]}), r"choices\.0\.code"),
        (json.dumps({"choices": [], "before": 3}), "before"),
        (json.dumps({"choices": []}) + " " * 200_000, "characters"),
        ("[" * 90_000, "damaged"),
    ],
)
def test_a_composition_of_a_stranger_is_checked(text, message):
    with pytest.raises(UserError, match=message):
        Composition.from_png(png_with(composition=text))


def test_a_png_of_an_earlier_version_has_its_prompt():
    found = Composition.from_png(png_with(prompt="a <head:3>  bird", run="r", negative_prompt="dark"))
    assert found == Composition((PartChoice("head", 3),), "a", "bird", negative_prompt="dark", run="r")
    with pytest.raises(UserError, match="not a part token"):
        Composition.from_png(png_with(prompt="a <head> bird"))


def test_the_package_names_them():
    assert pc.Composition is Composition and "open_run" in dir(pc)
    with pytest.raises(AttributeError, match="no attribute 'open_runs'"):
        pc.open_runs  # noqa: B018
