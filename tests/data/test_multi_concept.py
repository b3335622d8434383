"""Photographs of two concepts, in DisenDiff's layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from partcraft_lit.config import compose as config
from partcraft_lit.core.errors import UserError
from partcraft_lit.data.multi_concept import MultiConcept


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for name in ("cat_dog", "chair_lamp"):
        folder = tmp_path / "multi_concept" / name
        folder.mkdir(parents=True)
        sizes = {"image": (24, 20), "eval_global": (16, 14), "eval_subject1": (9, 16), "eval_subject2": (16, 9)}
        for picture, size in sizes.items():
            Image.new("RGB", size, "blue").save(folder / f"{picture}.jpg")
        first, second = name.split("_")
        (folder / "prompts_global.txt").write_text(f"Photo of a <new1> {first} and <new2> {second}\na <{first}>")
        (folder / "prompts_subject1.txt").write_text(f"a <new1> {first} in snow\n\n")
        (folder / "prompts_subject2.txt").write_text(f"a <new2> {second}")
    return tmp_path / "multi_concept"


def test_a_training_image_per_pair_with_nouns_and_prompts(pairs: Path) -> None:
    source = MultiConcept(pairs)
    assert [source.name(index) for index in range(len(source))] == ["cat_dog/image.jpg", "chair_lamp/image.jpg"]
    assert source.class_names == ["cat_dog", "chair_lamp"] and source.class_noun == ""
    assert source.nouns(1) == ("chair", "lamp") and source.image(0).shape == (3, 20, 24)
    subsets = source.concepts(0).subsets
    assert subsets["concept1"].prompts == ("a <new1> cat in snow",)
    assert subsets["combined"].texts == ("Photo of a cat and dog", "a cat")
    assert subsets["concept2"].reference.shape == (3, 9, 16)


@pytest.mark.parametrize("chosen", [(".", ("cat_dog",)), ("cat_dog", ())])
def test_one_pair(pairs: Path, chosen: tuple[str, tuple[str, ...]]) -> None:
    source = MultiConcept(pairs / chosen[0], chosen[1])
    assert len(source) == 1 and source.class_noun == "cat and dog" and source.nouns(0) == ("cat", "dog")


def test_what_is_missing_is_named(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no class 'cat_dig'\. Did you mean 'cat dog'"):
        MultiConcept(pairs, ("cat_dig",))
    (pairs / "cat_dog" / "prompts_subject2.txt").unlink()
    with pytest.raises(UserError, match=r"cat_dog is not a complete set of 2 concepts .*prompts_subject2\.txt"):
        MultiConcept(pairs)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no folder of a pair, such as cat_dog/ with image\.jpg"):
        MultiConcept(tmp_path / "empty")


def test_the_preset_has_a_part_per_concept() -> None:
    values = config.plain(
        config.compose("train", ["dataset=multi_concept", "dataset.dir=/x", "dataset.pairs=[cat_dog]"])
    )
    assert (values["parts"]["M"], values["parts"]["K"]) == (2, 1) and values["dataset"]["pairs"] == ["cat_dog"]
