"""Captioned scenes of the pretraining world: stateless, disjoint from the held-out one, and truthful."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from partcraft_lit.world.zoo.captions import (
    AND_A,
    COLOR_WORDS,
    SPECIES_NAMES,
    TEMPLATES,
    PartWords,
    caption,
    describe_look,
    join,
)
from partcraft_lit.world.zoo.looks import BIRD, FAMILIES, NUM_PARTS, TEXTURES, Family, look_table
from partcraft_lit.world.zoo.pairs import creature_masks
from partcraft_lit.world.zoo.scenes import PretrainingScenes, named_looks, pose_of


def test_a_batch_is_a_function_of_seed_and_indices():
    scenes = PretrainingScenes(seed=3, beast_share=0.4)
    drawing, captions = scenes.batch(range(5, 17))
    again, captions_again = PretrainingScenes(seed=3, beast_share=0.4).batch(range(5, 17))
    assert captions == captions_again
    assert torch.equal(drawing.images, again.images)
    for place, index in enumerate(range(5, 17)):
        alone, words = scenes.batch(range(index, index + 1))
        assert words == [captions[place]]
        assert torch.equal(alone.images[0], drawing.images[place])
        assert torch.equal(alone.label_maps[0], drawing.label_maps[place])


def test_seeds_give_other_scenes():
    first, second = (PretrainingScenes(seed=seed).batch(range(4))[0].images for seed in (0, 1))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_size_is_free():
    drawing, _ = PretrainingScenes(size=40).batch(range(2))
    assert drawing.images.shape == (2, 3, 40, 40)
    assert drawing.label_maps.shape == (2, 40, 40)


@pytest.mark.parametrize("share, noun", [(0.0, "bird"), (1.0, "beast")])
def test_share_of_beasts(share, noun):
    scenes = PretrainingScenes(beast_share=share)
    assert {scenes._one(index).family for index in range(50)} == {noun}


def test_no_scene_shows_a_held_out_look():
    held_out = {tuple(row) for row in look_table("held_out").tolist()}
    scenes = PretrainingScenes(seed=7, beast_share=0.5)
    shown = {tuple(row) for index in range(400) for row in scenes._one(index).looks.tolist()}
    assert not shown & held_out
    assert len(shown) == 80  # all of the pretraining world


def test_pairs_show_both_families_and_say_so():
    scenes = PretrainingScenes(seed=2, pair_share=1.0)
    drawing, captions = scenes.batch(range(24))
    for index, text in enumerate(captions):
        left, right = scenes.families(index)
        assert {left.noun, right.noun} == set(FAMILIES)
        first, second = text.split(AND_A)
        looks = scenes.looks(range(index, index + 1))[0].numpy()
        check_caption(first, left, looks[:NUM_PARTS], named_looks(left.noun))
        check_caption("a photo of a " + second, right, looks[NUM_PARTS:], named_looks(right.noun))
        assert {1, 2} <= set(creature_masks(drawing.label_maps[index : index + 1]).unique().tolist())


def test_a_second_creature_changes_nothing_of_the_first():
    alone, paired = (PretrainingScenes(seed=4, pair_share=share) for share in (0.0, 1.0))
    for index in range(8):
        assert paired._one(index).caption == alone._one(index).caption
        assert torch.equal(
            paired.looks(range(index, index + 1))[0, :NUM_PARTS], alone.looks(range(index, index + 1))[0, :NUM_PARTS]
        )
    shares = [len(PretrainingScenes(seed=4).families(index)) - 1 for index in range(2000)]
    assert 0.05 < sum(shares) / len(shares) < 0.11


@pytest.mark.parametrize("family", FAMILIES)
def test_named_species_have_looks_of_their_own(family):
    table = named_looks(family)
    assert table.shape == (len(SPECIES_NAMES[family]), NUM_PARTS, 3)
    pretraining = {tuple(row) for row in look_table("pretraining").tolist()}
    for part in range(NUM_PARTS):
        rows = {tuple(row) for row in table[:, part].tolist()}
        assert len(rows) == len(table)
        assert rows <= pretraining


def test_no_name_is_used_twice():
    names = [name for family in SPECIES_NAMES.values() for name in family]
    assert len(set(names)) == len(names)
    assert not set(names) & {*COLOR_WORDS, *TEXTURES, *FAMILIES}


def test_poses_differ_and_repeat():
    assert torch.equal(pose_of(0, 1, 2), pose_of(0, 1, 2))
    poses = torch.stack([pose_of(seed, species, number) for seed in (0, 1) for species in (0, 1) for number in (0, 1)])
    assert len(poses.unique(dim=0)) == 8
    assert 0 <= float(poses.min()) <= float(poses.max()) < 1


@pytest.mark.parametrize("beast_share", [0.0, 1.0])
def test_captions_say_true_things_only(beast_share):
    scenes = PretrainingScenes(seed=11, beast_share=beast_share)
    described = {check_caption(*facts(scenes, index)) for index in range(600)}
    assert described == set(range(NUM_PARTS + 1)) | {"whole"}


def facts(scenes: PretrainingScenes, index: int) -> tuple[str, Family, np.ndarray, np.ndarray]:
    scene = scenes._one(index)
    return scene.caption, FAMILIES[scene.family], scene.looks, named_looks(scene.family)


def check_caption(text: str, family: Family, looks: np.ndarray, named: np.ndarray) -> int | str:
    """Reads a caption independently of what wrote it; returns how many parts it describes, or "whole"."""
    prefix = next((template[:-2] for template in TEMPLATES if text.startswith(template[:-2])), None)
    names = SPECIES_NAMES[family.noun]
    words = text.removeprefix(prefix or "").replace(",", "").replace(" and ", " ").replace(" with ", " ").split()
    if prefix is not None:
        noun = words.pop(0)
        if noun != family.noun:
            assert not words
            assert (looks == named[names.index(noun)]).all(), text
            return "whole"
    seen: list[int] = []
    phrase: list[str] = []
    for word in words:
        phrase.append(word)
        if word in family.part_names and (len(phrase) > 1):
            seen.append(family.part_names.index(word))
            check_phrase(phrase[:-1], seen[-1], family, looks, named)
            phrase = []
    assert not phrase, text
    assert len(set(seen)) == len(seen), text
    return len(seen)


def check_phrase(words: list[str], part: int, family: Family, looks: np.ndarray, named: np.ndarray) -> None:
    shape, color, texture = looks[part]
    names = SPECIES_NAMES[family.noun]
    if words[0] in names:
        assert len(words) == 1
        np.testing.assert_array_equal(named[names.index(words[0]), part], looks[part])
        return
    assert words.pop(0) == COLOR_WORDS[color]
    said = words.pop(0) if words and words[0] in TEXTURES else "plain"
    assert said == TEXTURES[texture]
    assert words in ([], [family.shapes[part][shape]])


def test_looks_in_words_by_hand():
    assert describe_look(BIRD, 0, (1, 0, 1), with_shape=True) == "red striped crested head"
    assert describe_look(BIRD, 0, (1, 0, 1), with_shape=False) == "red striped head"
    assert describe_look(BIRD, 4, (2, 9, 0), with_shape=True) == "white webbed legs"


def test_nouns_with_parts_by_hand():
    assert join("bird", []) == "bird"
    assert join("bird", ["red head"]) == "bird with red head"
    assert join("bird", ["red head", "owl wing", "blue tail"]) == "bird with red head, owl wing and blue tail"


def test_half_of_the_captions_describe_every_part():
    rng = np.random.default_rng(0)
    parts = [PartWords((0, 0, 0), -1)] * NUM_PARTS
    texts = [caption(BIRD, parts, rng).replace(",", "").split() for _ in range(600)]
    counts = np.array([sum(words.count(name) for name in BIRD.part_names) for words in texts])
    assert 0.5 < (counts == NUM_PARTS).mean() < 0.67  # a half, and one sixth of the other half
    assert set(counts.tolist()) == set(range(NUM_PARTS + 1))
