"""Corrections applied to blocks whose parts are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from discovery import parts_settings
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import ABSENT
from partcraft_lit.parts.correcting import apply_corrections, effect_of
from partcraft_lit.parts.corrections import Corrections
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import Discovery, discover, read_parts
from partcraft_lit.parts.predictor import KMeansPartPredictor

SIZES = ((64, 64), (64, 96), (110, 64))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def settings():
    return parts_settings(M=3, K=3, min_component_size=1)


@pytest.fixture(scope="module")
def features(meaningful):
    return meaningful()


@pytest.fixture(scope="module")
def base(creatures, features, settings, store) -> Discovery:
    """Three parts where there are two: one of them is a piece of the other."""
    return discover(creatures(42, sizes=SIZES), features, settings, seed=0, store=store)


@pytest.fixture(scope="module")
def correct(creatures, features, settings, store, base):
    def apply(corrections: Corrections, applied=(), number: int = 42, seed: int = 0) -> Discovery:
        source = creatures(number, sizes=SIZES)
        return apply_corrections(
            corrections, base.dictionary, source, features, settings, seed=seed, applied=applied, store=store
        )

    return apply


def test_names_alone_leave_everything_else(base, correct):
    named = correct(Corrections().renamed(1, "head").renamed("part2", "wing"))
    assert named.dictionary.names == ("background", "head", "wing", "part3")
    assert named.dictionary.hash == base.dictionary.hash
    assert torch.equal(named.codes, base.codes)
    assert named.dictionary.to_bytes()[0] == base.dictionary.to_bytes()[0]


def test_merging_computes_no_features_and_keeps_other_parts(base, correct, features):
    before = features.calls
    merged = correct(Corrections().merged([2, 3]))
    assert features.calls == before
    assert merged.dictionary.retired == (3,)
    assert merged.dictionary.codes_per_part == (*base.dictionary.codes_per_part[:3], 0)
    assert torch.equal(merged.codes[:, :2], base.codes[:, :2])
    assert torch.equal(merged.part_features[:, :2], base.part_features[:, :2])
    assert bool((merged.codes[:, 3] == ABSENT).all())
    for index, (old, new) in enumerate(zip(base.label_maps[:], merged.label_maps[:], strict=True)):
        assert torch.equal(new, torch.where(old == 3, 2, old))
        counts = torch.bincount(old.flatten().long(), minlength=4).float()
        if counts[2:].sum():
            mean = (counts[2] * base.part_features[index, 2] + counts[3] * base.part_features[index, 3]) / counts[
                2:
            ].sum()
            torch.testing.assert_close(merged.part_features[index, 2], mean)


def test_background_and_drop(base, correct):
    ground = correct(Corrections().as_background(3))
    dropped = correct(Corrections().dropped(3))
    for old, new, around in zip(base.label_maps[:], ground.label_maps[:], dropped.label_maps[:], strict=True):
        assert torch.equal(new, old.masked_fill(old == 3, 0))
        assert not bool((around == 3).any())
        assert torch.equal(around[old != 3], old[old != 3])
    assert torch.equal(dropped.codes[:, :3], base.codes[:, :3])  # dropped cells count in no other part
    assert torch.equal(ground.codes[:, 1:3], base.codes[:, 1:3])


def test_split_keeps_the_larger_piece_under_the_old_number(creatures, base, correct, features):
    merged = Corrections().merged([1, 2]).merged([1, 3])
    whole = correct(merged)
    assert whole.dictionary.codes_per_part[1:] == (base.dictionary.num_codes(1), 0, 0)
    first = correct(Corrections().divided(2, 2))
    assert first.dictionary.names == ("background", "part1", "part2", "part3", "part2_2")
    assert torch.equal(first.codes[:, [0, 1, 3]], base.codes[:, [0, 1, 3]])
    sizes = torch.zeros(5)
    for old, new in zip(base.label_maps[:], first.label_maps[:], strict=True):
        assert torch.equal(torch.where(new == 4, 2, new), old)
        sizes += torch.bincount(new.flatten().long(), minlength=5)
    assert sizes[2] >= sizes[4] > 0
    calls = features.calls
    again = correct(Corrections().divided(2, 2))
    assert features.calls == calls  # the cells are in the store
    assert again.dictionary.hash == first.dictionary.hash


def test_the_predictor_reads_the_same(creatures, correct, features):
    corrections = Corrections().divided(2, 2).dropped(3).renamed("part2_2", "tail")
    corrected = correct(corrections)
    predictor = KMeansPartPredictor(corrected.dictionary, features)
    source = creatures(42, sizes=SIZES)
    read = predictor.predict([source.image(index) for index in range(42)])
    assert torch.equal(read.codes, corrected.codes)
    assert all(torch.equal(a, b) for a, b in zip(read.label_maps, corrected.label_maps[:], strict=True))
    assert predictor.retired == (3,)
    new = creatures(50, sizes=SIZES)
    _, codes, _ = read_parts(new, features, corrected.dictionary)
    assert torch.equal(codes[:42], corrected.codes)
    assert torch.equal(codes[42:], predictor.predict([new.image(index) for index in range(42, 50)]).codes)


def test_added_images_change_no_code(base, correct):
    corrections = Corrections().merged([2, 3]).renamed(1, "head")
    before = correct(corrections)
    after = correct(corrections, applied=[before.dictionary], number=60)
    assert after.dictionary.hash == before.dictionary.hash
    assert torch.equal(after.codes[:42], before.codes)


def test_numbers_are_never_given_twice(correct):
    first = correct(Corrections().divided(1, 2))
    second = correct(Corrections().divided(2, 2), applied=[first.dictionary])
    assert second.dictionary.names[5] == "part2_2"
    assert second.dictionary.retired == (4,)
    third = correct(Corrections().divided(2, 2).divided(1, 2), applied=[second.dictionary, first.dictionary])
    assert third.dictionary.names[4:] == ("part1_2", "part2_2")
    assert torch.equal(third.codes[:, 4], first.codes[:, 4])
    assert torch.equal(third.codes[:, 5], second.codes[:, 5])
    undone = correct(Corrections().divided(1, 2), applied=[third.dictionary, second.dictionary, first.dictionary])
    assert torch.equal(undone.codes[:, :5], first.codes)


def test_another_split_keeps_the_numbers_of_similar_pieces(correct):
    two = correct(Corrections().divided(2, 2))
    three = correct(Corrections().divided(2, 3), applied=[two.dictionary])
    assert three.dictionary.num_parts in (5, 6)
    numbers = {piece: number for label, piece, number in three.dictionary.metadata["pieces"] if label == 2}
    assert len(set(numbers.values())) == 2


def test_a_move_changes_one_image(creatures, base, correct):
    source = creatures(42, sizes=SIZES)
    name = source.name(0)
    moved = correct(Corrections().moved(name, 2, 1))
    assert torch.equal(moved.codes[1:], base.codes[1:])
    old, new = base.label_maps[0], moved.label_maps[0]
    assert torch.equal(new, torch.where(old == 2, 1, old))
    assert moved.codes[0, 2] == ABSENT
    assert moved.dictionary.hash != base.dictionary.hash  # so that nothing that is cached for the other is taken


def test_a_move_at_a_point_takes_the_region_around_it(creatures, base, correct):
    source = creatures(42, sizes=SIZES)
    rows, columns = (base.label_maps[0] == 2).nonzero().unbind(dim=1)
    height, width = source.image(0).shape[1:]
    scale = height / base.label_maps[0].shape[0]
    point = (float(columns[0]) * scale + 1, float(rows[0]) * scale + 1)
    moved = correct(Corrections().moved(source.name(0), 2, 0, point))
    assert moved.label_maps[0][rows[0], columns[0]] == 0
    with pytest.raises(UserError, match="outside of the image"):
        correct(Corrections().moved(source.name(0), 2, 0, (3 * width, 0)))
    with pytest.raises(UserError, match=r"Did you mean 'folder/creature_000.png'"):
        correct(Corrections().moved("folder/creature000.png", 2, 0))


def test_a_corrected_dictionary_is_read_as_it_was_written(tmp_path: Path, creatures, correct, features):
    source = creatures(42, sizes=SIZES)
    corrections = Corrections().divided(2, 2).as_background(3).moved(source.name(1), 2, "part2_2", (20.0, 30.0))
    corrected = correct(corrections).dictionary
    again = PartDictionary.load(corrected.save(tmp_path))
    assert again.hash == corrected.hash
    assert again.to_bytes() == corrected.to_bytes()
    assert again.segmenter.moves == corrected.segmenter.moves
    assert json.loads((tmp_path / "dictionary.json").read_text(encoding="utf-8"))["format"] == 2
    _, codes, _ = read_parts(source, features, again)
    assert torch.equal(codes, correct(corrections).codes)


def test_the_effect_names_untrained_codes(base, correct):
    corrected = correct(Corrections().divided(2, 2).dropped(3))
    effect = effect_of(base, corrected)
    assert list(effect.untrained) == ["part2_2"]
    rows = {row["part"]: row for row in effect.parts}
    assert rows[1]["same_code"] == rows[1]["images_before"] == rows[1]["images_after"]
    assert (rows[3]["after"], rows[3]["retired"]) == (None, "it was dropped")
    assert rows[4]["before"] is None


def test_what_does_not_fit_is_rejected(creatures, features, settings, base, correct):
    def apply(**changes):
        other = parts_settings(**({"M": 3, "K": 3} | changes))
        apply_corrections(Corrections(), base.dictionary, creatures(42), features, other, seed=0)

    with pytest.raises(UserError, match=r"parts\.K=3, and now it is 4"):
        apply(K=4)
