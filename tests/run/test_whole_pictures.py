"""Scores of whole pictures against what is known of them."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.metrics.composition import composition_targets, reconstruction_targets
from partcraft_lit.metrics.features import PixelFeatures
from partcraft_lit.metrics.networks.embedded import embedded_features
from partcraft_lit.pictures import save_png
from partcraft_lit.run.truth import TruthScorer, true_hybrids
from partcraft_lit.run.whole_pictures import PictureScorer
from partcraft_lit.zoo.source import Creatures


@pytest.fixture(scope="module")
def birds() -> Creatures:
    return Creatures(species=4, images_per_species=3, image_size=64)


@pytest.fixture(scope="module")
def facts(birds):
    return {"quality": {"match": {name: 1 + index for index, name in enumerate(birds.part_names)}}}


def saved(folder, images):
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        save_png(path, image)
    return paths


def codes_of(birds):
    return torch.tensor([birds.label(index) for index in range(len(birds))])[:, None].expand(-1, 6).clone()


def test_copies_of_the_training_pictures_are_found_out(birds, tmp_path):
    targets = reconstruction_targets(codes_of(birds), 5)
    copies = [birds.image(index) for index in targets.sources[:, 0].tolist()]
    networks = [embedded_features(), PixelFeatures(8)]
    found = PictureScorer(birds, networks, neighbours=12, facts={}).score(targets, saved(tmp_path, copies))
    for name in ("mini-features", "pixels-8"):
        assert found[f"copied@{name}"] == 1
        assert found[f"nearest@{name}"] == pytest.approx(0, abs=1e-4)
        assert found[f"likeness@{name}"] == pytest.approx(1)
    assert found["fid@mini-features"] == pytest.approx(0, abs=1e-6)
    assert found["kid_error@mini-features"] >= 0
    assert "fid@pixels-8" not in found


def test_hybrids_are_compared_with_the_true_ones(birds, facts, tmp_path):
    targets = composition_targets(codes_of(birds), 3, 6)
    true = true_hybrids(birds, targets, facts)
    scorer = PictureScorer(birds, [embedded_features()], neighbours=0, facts=facts)
    found = scorer.score(targets, saved(tmp_path, true))
    assert found["fid@mini-features"] == pytest.approx(0, abs=1e-6)
    assert {key.partition("@")[0] for key in found} == {"fid", "kid", "kid_error"}  # no one image to be like
    noise = torch.randint(0, 256, true.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert scorer.score(targets, saved(tmp_path, noise))["fid@mini-features"] > 0.1


def test_a_perfect_composer_is_read_by_the_oracle(birds, facts):
    targets = composition_targets(codes_of(birds), 2, 24)
    found = TruthScorer.of(birds, facts).perfect(targets)
    assert 0.85 < found["part_accuracy"] <= found["visible"] <= 1


def test_few_pictures_give_few_numbers(birds, tmp_path):
    targets = reconstruction_targets(codes_of(birds), 2)
    found = PictureScorer(birds, [embedded_features()], neighbours=1, facts={}).score(
        targets, saved(tmp_path, [birds.image(0)] * 2)
    )
    assert set(found) == {"fid@mini-features", "likeness@mini-features"}
