"""Scores of whole images against what is known of them."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.commands.train.report import image_rows
from partcraft_lit.core.visualization import save_png
from partcraft_lit.evaluation.truth import true_hybrids, truth_of
from partcraft_lit.evaluation.whole_images import ImageScorer
from partcraft_lit.metrics.clip import ClipEncoder
from partcraft_lit.metrics.composition import composition_targets, reconstruction_targets
from partcraft_lit.metrics.features import PixelFeatures
from partcraft_lit.world.creatures import Creatures
from partcraft_lit.world.embedded_features import embedded_features

PROMPTS = ["a photo of a <head:0> <wing:1>"] * 6


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
    found = ImageScorer(birds, networks, neighbours=12, metadata={}).score(
        targets, saved(tmp_path, copies), PROMPTS[:5]
    )
    assert [row["likeness@pixels-8"] for row in found.rows] == pytest.approx([1.0] * 5)
    found = found.metrics
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
    scorer = ImageScorer(birds, [embedded_features()], neighbours=0, metadata=facts)
    found = scorer.score(targets, saved(tmp_path, true), PROMPTS[:6]).metrics
    assert found["fid@mini-features"] == pytest.approx(0, abs=1e-6)
    assert {key.partition("@")[0] for key in found} == {"fid", "kid", "kid_error"}  # no one image to be like
    noise = torch.randint(0, 256, true.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert scorer.score(targets, saved(tmp_path, noise), PROMPTS[:6]).metrics["fid@mini-features"] > 0.1


def test_a_perfect_composer_is_read_by_the_oracle(birds, facts):
    targets = composition_targets(codes_of(birds), 2, 24)
    perfect = truth_of(birds, facts).perfect(targets)
    found = perfect.means
    assert 0.85 < found["part_accuracy"] <= found["visible"] <= 1


def test_few_pictures_give_few_numbers(birds, tmp_path):
    targets = reconstruction_targets(codes_of(birds), 2)
    found = ImageScorer(birds, [embedded_features()], neighbours=1, metadata={}).score(
        targets, saved(tmp_path, [birds.image(0)] * 2), PROMPTS[:2]
    )
    assert set(found.metrics) == {"fid@mini-features", "likeness@mini-features"}


def test_a_network_that_reads_texts_hears_the_noun_in_the_place_of_tokens(birds, tmp_path):
    class Reader(ClipEncoder):
        """Red images and the right text have one direction, others have another."""

        id, dim = "reader", 2

        def __init__(self):
            self.read = []

        def __call__(self, images):
            red = images[:, 0].float().mean(dim=(1, 2)) > 128
            return torch.stack([red.float(), (~red).float()], dim=1)

        def texts(self, texts):
            self.read.append(list(texts))
            return torch.tensor([[0.6, 0.8]] * len(texts))

    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[0, 0] = 255
    targets = composition_targets(codes_of(birds), 2, 2)
    reader = Reader()
    found = ImageScorer(birds, [reader], neighbours=0, metadata={}).score(targets, saved(tmp_path, images), PROMPTS[:2])
    assert [row["clip-t@reader"] for row in found.rows] == pytest.approx([0.6, 0.8])
    assert found.metrics["clip-t@reader"] == pytest.approx(0.7)
    assert found.metrics["clip-score@reader"] == pytest.approx(2.5 * 0.7)
    assert reader.read == [["a photo of a bird"] * 2, ["A photo depicts a photo of a bird"] * 2]


def test_the_ceiling_is_what_a_perfect_picture_loses(birds, facts, tmp_path):
    targets = reconstruction_targets(codes_of(birds), 6)
    scorer = ImageScorer(birds, [embedded_features()], neighbours=0, metadata=facts)
    same = scorer.ceiling(targets, lambda image: image)
    assert same["fid@mini-features"] == pytest.approx(0, abs=1e-6)
    assert same["likeness@mini-features"] == pytest.approx(1)
    darker = scorer.ceiling(targets, lambda image: image // 2)
    assert darker["fid@mini-features"] > 0.01 and darker["likeness@mini-features"] < 1


def test_the_report_has_a_row_per_protocol_and_network():
    rows = image_rows(
        {
            "reconstruction": {"fid@a": 3.0, "kid@a": 2.0, "likeness@b": 0.5},
            "ceiling reconstruction": {"fid@a": 1.0},
            "combined": {"image@a": 0.7, "truth_image@a": 0.9, "color_accuracy": 1.0},
        }
    )
    assert [(row.protocol, row.network) for row in rows] == [
        ("Reconstruction", "a"),
        ("Reconstruction", "b"),
        ("Combined", "a"),
    ]
    assert rows[0].metrics == {"fid": 3.0, "kid": 2.0} and rows[0].ceiling == {"fid": 1.0}
    assert rows[2].metrics == {"image": 0.7} and rows[2].ceiling == {"image": 0.9}


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a photo of a <part1:3> sports car", "a photo of a sports car"),
        ("a <part1:3> Sports Car, in snow", "a Sports Car, in snow"),
        ("a photo of a <part1:3>", "a photo of a sports car"),
        ("<part1:3> on a sports carpet", "on a sports carpet sports car"),
    ],
)
def test_a_noun_of_two_words_is_read_once(birds, monkeypatch, prompt, text):
    monkeypatch.setattr(birds, "class_noun", "sports car")
    assert ImageScorer(birds, [], neighbours=0, metadata={})._text(prompt) == text
