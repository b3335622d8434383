"""Prompts and reference images on a miniature copy of DisenDiff's data."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.visualization import save_png
from partcraft_lit.data.concept_prompts import plain_text, read_concepts

PROMPTS = {
    "global": "photo of <new1> cat and <mew2> dog\n\n<cat> beside <dog>",
    "subject1": "a blue <new1> cat\n",
    "subject2": "<new2> dog \nclean <new2> dog",
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "cat_dog"
    for index, (suffix, prompts) in enumerate(PROMPTS.items()):
        path.mkdir(exist_ok=True)
        (path / f"prompts_{suffix}.txt").write_text(prompts)
        save_png(path / f"eval_{suffix}.png", torch.full((3, 12, 20), 60 * index, dtype=torch.uint8))
    return path


def test_placeholders_go_and_nouns_stay():
    assert plain_text("Photo of a <new1> cat, <mew2> dog ", ["cat", "dog"]) == "Photo of a cat, dog"
    assert plain_text("<chair> and <lamp> in snow", ["chair", "lamp"]) == "chair and lamp in snow"
    assert plain_text("<new1>") == ""


def test_a_folder_is_read(folder):
    found = read_concepts(folder)
    assert (found.name, found.nouns, list(found.subsets)) == (
        "cat_dog",
        ("cat", "dog"),
        ["combined", "concept1", "concept2"],
    )
    assert found.subsets["combined"].prompts == ("photo of <new1> cat and <mew2> dog", "<cat> beside <dog>")
    assert found.subsets["combined"].texts == ("photo of cat and dog", "cat beside dog")
    assert found.subsets["concept2"].texts == ("dog", "clean dog")
    assert found.subsets["concept2"].reference.shape == (3, 12, 20)


def test_mistakes_are_named(folder):
    with pytest.raises(UserError, match=r"no folder .*dog_cat\. Known: cat_dog"):
        read_concepts(folder.parent / "dog_cat")
    (folder / "prompts_subject2.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"prompts_subject2\.txt holds no prompts"):
        read_concepts(folder)
    (folder / "eval_subject1.png").unlink()
    with pytest.raises(UserError, match=r"set of 2 concepts \(cat, dog\): it lacks one image eval_subject1\.\*"):
        read_concepts(folder)
