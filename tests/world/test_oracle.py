"""The oracle: what it reads on true images, and its metrics by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT
from partcraft_lit.world.creatures import Creatures
from partcraft_lit.world.oracle import (
    LookAccuracy,
    LookOracle,
    LookReading,
    OracleReading,
    PartAccuracy,
    SpeciesOracle,
    packaged_oracle,
)
from partcraft_lit.world.pretrain.oracle import oracle_batch
from partcraft_lit.world.zoo.looks import NUM_PARTS, species_table

LOOKS = torch.from_numpy(species_table(20, seed=3))


@pytest.fixture(scope="module")
def creatures() -> Creatures:
    return Creatures(species=20, images_per_species=30, seed=3)


@pytest.fixture(scope="module")
def oracle() -> SpeciesOracle:
    return SpeciesOracle(looks=LOOKS)


def reading_of(looks: Tensor, presence: Tensor | None = None) -> LookReading:
    """A reading that is sure of the given looks (B, parts, 3)."""
    presence = torch.ones(looks.shape[:2]) if presence is None else presence
    color, texture, shape = (F.one_hot(looks[:, :, c], n).float() * 50 for c, n in ((1, 10), (2, 3), (0, 4)))
    return LookReading(presence, color, texture, shape)


def test_parts_of_true_hybrids_are_read(oracle, creatures):
    species = torch.randint(20, (160, NUM_PARTS), generator=torch.Generator().manual_seed(0))
    drawing = creatures.render(species, range(160))
    asked = torch.where(drawing.visible, species, ABSENT)
    metric = PartAccuracy(oracle)
    metric.update(drawing.images, asked)
    scores = {key: float(value) for key, value in metric.compute().items()}
    assert scores["all"] >= 0.95, scores
    assert min(scores[f"part/{name}"] for name in creatures.part_names) >= 0.9, scores
    assert scores["color"] >= 0.95, scores


def test_what_is_not_there_is_not_seen(oracle):
    flat = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    reading = oracle.read(flat)
    assert bool((reading.presence < 0.5).all())
    assert bool((reading.species == ABSENT).all())


def test_a_part_that_is_left_out_is_not_seen(oracle):
    drawing, _ = oracle_batch(10**6, 0, 96, missing=0.15)
    seen = oracle.read(drawing.images).presence >= 0.5
    assert int((~drawing.visible).sum()) > 50
    assert float((~seen)[~drawing.visible].float().mean()) >= 0.85
    assert float(seen[drawing.visible].float().mean()) >= 0.97


def test_a_reading_does_not_depend_on_the_batch(oracle, creatures):
    images = torch.stack([creatures.image(index) for index in range(6)])
    whole = oracle.read(images)
    parts = SpeciesOracle(looks=LOOKS, batch_size=2).read(images)
    assert torch.equal(whole.species, parts.species)
    assert_close(whole.color, parts.color, atol=1e-3, rtol=1e-3)


def test_larger_pictures_are_resized(oracle):
    large = Creatures(species=20, images_per_species=30, seed=3, image_size=128)
    small = Creatures(species=20, images_per_species=30, seed=3)
    indices = range(0, 600, 50)
    readings = [oracle.read(torch.stack([source.image(i) for i in indices])) for source in (large, small)]
    assert float((readings[0].species == readings[1].species).float().mean()) > 0.95


def test_no_pictures(oracle):
    reading = oracle.read(torch.zeros(0, 3, 64, 64, dtype=torch.uint8))
    assert reading.species.shape == (0, NUM_PARTS)
    assert reading.color.shape == (0, NUM_PARTS, 10)


def test_joint_log_probability_by_hand():
    reading = LookReading(
        presence=torch.ones(1, NUM_PARTS),
        color=torch.zeros(1, NUM_PARTS, 10),
        texture=torch.tensor([2.0, 1.0, 0.0]).expand(1, NUM_PARTS, 3),
        shape=torch.tensor([0.0, 0.0, 0.0, 3.0]).expand(1, NUM_PARTS, 4),
    )
    looks = torch.tensor([[[3, 7, 0]] * NUM_PARTS, [[0, 7, 1]] * NUM_PARTS])
    found = reading.log_probability(looks)
    texture = torch.tensor([2.0, 1.0, 0.0]).log_softmax(0)
    shape = torch.tensor([0.0, 0.0, 0.0, 3.0]).log_softmax(0)
    color = -torch.tensor(10.0).log()
    expected = torch.stack([color + texture[0] + shape[3], color + texture[1] + shape[0]])
    assert_close(found, expected.expand(1, NUM_PARTS, 2))


def test_the_nearest_species_wins_although_none_fits(oracle, monkeypatch):
    looks = LOOKS[4:5].clone()
    looks[:, :, 0] = (looks[:, :, 0] + 1) % 4  # another shape: no species has it with this colour and texture
    sure = reading_of(looks, torch.tensor([[0.9, 0.5, 0.49, 0.0, 1.0]]))
    reading = replace(sure, shape=sure.shape / 10)  # less sure of the shape than of the rest
    monkeypatch.setattr(LookOracle, "read", lambda self, images: reading)
    assert oracle.read(torch.zeros(1)).species.tolist() == [[4, 4, ABSENT, ABSENT, 4]]


def test_part_accuracy_by_hand(oracle):
    shown = torch.tensor([[0, 1, 2, 3, 4], [5, 5, 5, 5, 5]])
    reading = reading_of(LOOKS[shown, torch.arange(NUM_PARTS)])
    found = torch.tensor([[0, 1, 2, ABSENT, 4], [5, 5, 5, 5, 5]])
    reading = OracleReading(reading.presence, reading.color, reading.texture, reading.shape, found)
    # right, wrong, not asked for, asked for but not seen, right; all of the second right but the head
    asked = torch.tensor([[0, 9, ABSENT, 3, 4], [6, 5, 5, 5, 5]])
    metric = PartAccuracy(oracle)
    metric.update(reading, asked)
    scores = {key: float(value) for key, value in metric.compute().items()}
    assert scores["all"] == pytest.approx(6 / 9)
    assert scores["seen"] == pytest.approx(8 / 9)
    assert [scores[f"part/{name}"] for name in ("head", "body", "wing", "tail", "legs")] == [0.5, 0.5, 1.0, 0.5, 1.0]
    same = (LOOKS[1, 1, 1] == LOOKS[9, 1, 1]).int() + (LOOKS[5, 0, 1] == LOOKS[6, 0, 1]).int()
    assert scores["color"] == pytest.approx((6 + int(same)) / 9)


def test_two_updates_are_one(oracle, creatures):
    images = torch.stack([creatures.image(index) for index in range(8)])
    species = torch.tensor([creatures.label(index) for index in range(8)])[:, None].expand(-1, NUM_PARTS)
    once, twice = PartAccuracy(oracle), PartAccuracy(oracle)
    once.update(images, species)
    twice.update(images[:3], species[:3])
    twice.update(images[3:], species[3:])
    assert once.compute() == twice.compute()
    twice.reset()
    assert float(twice.requested.sum()) == float(twice.right.sum()) == 0


def test_copies_of_a_metric_share_the_oracle(oracle):
    for metric in (PartAccuracy(oracle), LookAccuracy(oracle)):
        assert metric.clone().oracle is oracle
        assert copy.deepcopy(metric).oracle is oracle
        assert list(metric.parameters()) == []


def test_look_accuracy_by_hand(oracle):
    looks = LOOKS[:2]
    presence = torch.ones(2, NUM_PARTS)
    presence[1, 0] = 0.1
    asked = torch.full_like(looks, ABSENT)
    asked[0, 0] = looks[0, 0]
    asked[0, 1, 1] = (looks[0, 1, 1] + 1) % 10
    asked[1, 0, 1] = looks[1, 0, 1]  # of the right colour, but not seen
    asked[1, 2, 1:] = looks[1, 2, 1:]
    metric = LookAccuracy(oracle)
    metric.update(reading_of(looks, presence), asked)
    scores = {key: float(value) for key, value in metric.compute().items()}
    assert scores["color"] == pytest.approx(2 / 4)
    assert scores["texture"] == scores["shape"] == 1.0
    assert [scores["color/head"], scores["color/body"], scores["color/wing"]] == [0.5, 0.0, 1.0]
    assert scores["color/tail"] != scores["color/tail"]  # nothing was asked


def test_the_packaged_weights_are_small():
    assert packaged_oracle().stat().st_size < 4e6


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match=r"weights are missing: .*nowhere.*partcraft pretrain stage=oracle"):
        LookOracle(tmp_path / "nowhere.safetensors")


def test_damaged_and_foreign_weights_are_refused(tmp_path):
    path = tmp_path / "oracle.safetensors"
    path.write_bytes(packaged_oracle().read_bytes()[:1000])
    with pytest.raises(UserError, match=r"does not hold the weights of this version's oracle"):
        LookOracle(path)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"does not hold the weights of this version's oracle"):
        LookOracle(path)


@pytest.mark.parametrize(
    "looks, message",
    [
        (LOOKS[0], r"looks must be integers of shape \(species, 5, 3\)"),
        (LOOKS.float(), r"torch\.float32"),
        (LOOKS[:0], r"\(0, 5, 3\)"),
        (LOOKS + 9, r"looks name a shape outside 0\.\.\.3"),
    ],
)
def test_looks_are_checked(looks, message):
    with pytest.raises(ValueError, match=message):
        SpeciesOracle(looks=looks)


@pytest.mark.parametrize("images", [torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(1, 3, 64, 64)])
def test_pictures_are_checked(oracle, images):
    with pytest.raises(ValueError, match="images must be uint8"):
        oracle.read(images)


def test_what_was_asked_for_is_checked(oracle):
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"species must be integers of shape \(2, 5\)"):
        PartAccuracy(oracle).update(images, torch.zeros(2, 6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"species must be -1\.\.\.19, got 0\.\.\.20"):
        PartAccuracy(oracle).update(images, torch.tensor([[0, 0, 0, 0, 20]] * 2))
    with pytest.raises(ValueError, match=r"looks must be integers of shape \(2, 5, 3\)"):
        LookAccuracy(oracle).update(images, torch.zeros(2, 5, 3))


def test_two_processes_agree_with_one(oracle, creatures, two_processes):
    images = torch.stack([creatures.image(index) for index in range(0, 600, 60)])
    reading = oracle.read(images)
    species = torch.randint(-1, 20, (10, NUM_PARTS), generator=torch.Generator().manual_seed(1))
    looks = torch.randint(-1, 3, (10, NUM_PARTS, 3), generator=torch.Generator().manual_seed(2))

    def rows(start, step):
        fields = (getattr(reading, name)[start::step] for name in ("presence", "color", "texture", "shape", "species"))
        return OracleReading(*fields)

    def work(rank, step=2):
        parts, aspects = PartAccuracy(oracle), LookAccuracy(oracle)
        parts.update(rows(rank, step), species[rank::step])
        aspects.update(rows(rank, step), looks[rank::step])
        return parts.compute() | aspects.compute()

    expected = work(0, 1)
    for found in two_processes(work):
        assert_close(found, expected, equal_nan=True)
