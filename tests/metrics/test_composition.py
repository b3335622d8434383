"""The two protocols: Algorithm 1 and 2 as laws, and the ceiling with an autoencoder whose loss is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT, PartPrediction
from partcraft_lit.metrics.composition import (
    PartScores,
    ceiling,
    composition_targets,
    most_species,
    reconstruction_targets,
    recrop,
    vae_round_trip,
)

#: Code = 10 x image + part, so that every entry tells where it comes from.
CODES = torch.arange(12)[:, None] * 10 + torch.arange(6)


@pytest.mark.parametrize("species", [1, 2, 3, 4, 7])
def test_every_further_species_replaces_one_new_entry(species: int) -> None:
    targets = composition_targets(CODES, species, iterations=40, seed=3)
    assert targets.codes.shape == (40, 6)
    assert torch.equal(targets.codes // 10, targets.sources)
    assert torch.equal(targets.codes % 10, torch.arange(6).expand(40, 6))  # every code stays with its part
    for row in targets.sources:
        counts = Counter(row.tolist())
        if species < 7:
            assert len(counts) == species
            assert sorted(counts.values())[:-1] == [1] * (species - 1)
        else:  # six donors for six entries: the first image is gone
            assert len(counts) == 6


def test_composition_is_stateless_and_paired() -> None:
    long = composition_targets(CODES, 3, iterations=30, seed=1)
    short = composition_targets(CODES, 3, iterations=10, seed=1)
    assert torch.equal(long.codes[:10], short.codes)
    assert long.seeds[:10] == short.seeds
    fewer = composition_targets(CODES, 2, iterations=10, seed=1)
    # One species more changes exactly one entry of each hybrid, and no seed.
    assert ((fewer.codes != short.codes).sum(dim=1) == 1).all()
    assert fewer.seeds == short.seeds
    assert not torch.equal(composition_targets(CODES, 3, iterations=30, seed=2).codes, long.codes)


def test_replaced_entries_are_uniform_and_include_the_background() -> None:
    targets = composition_targets(CODES, 2, iterations=1200, seed=0)
    base = targets.sources.mode(dim=1, keepdim=True).values
    counts = (targets.sources != base).sum(dim=0)
    assert counts.sum() == 1200
    assert ((counts - 200).abs() < 4 * (1200 * 1 / 6 * 5 / 6) ** 0.5).all()  # four standard deviations


def test_with_labels_all_images_of_a_hybrid_are_of_different_classes() -> None:
    labels = torch.arange(12) // 3
    targets = composition_targets(CODES, 4, iterations=50, seed=0, labels=labels)
    for row in targets.sources:
        assert len(set(labels[row.unique()].tolist())) == len(row.unique()) == 4


def test_absent_entries_are_copied_as_published_or_passed_over() -> None:
    codes = CODES.clone()
    codes[6:, 1:] = ABSENT  # half of the images show only the background
    published = composition_targets(codes, 4, iterations=100, seed=0)
    torch.testing.assert_close(published.codes, codes.gather(0, published.sources))
    shown = composition_targets(codes, 4, iterations=100, seed=0, present_only=True)
    first = shown.sources.mode(dim=1, keepdim=True).values
    replaced = shown.sources != first
    assert (shown.codes[replaced & (first < 6)] != ABSENT).all()
    assert (published.codes[published.sources != first] == ABSENT).any()


def test_too_many_species_are_refused() -> None:
    with pytest.raises(UserError, match=r"eval\.species=8: with 6 parts .* 1\.\.\.7 species"):
        composition_targets(CODES, 8)
    with pytest.raises(UserError, match=r"eval\.species=0"):
        composition_targets(CODES, 0)
    with pytest.raises(UserError, match="needs as many images, and there are 3"):
        composition_targets(CODES[:3], 4)
    with pytest.raises(UserError, match="only 2 classes"):
        composition_targets(CODES, 3, labels=torch.arange(12) % 2)


@pytest.mark.parametrize("images, classes, most", [(12, None, 7), (3, None, 3), (12, 2, 2), (12, 12, 7)])
def test_as_many_species_as_there_can_be(images: int, classes: int | None, most: int) -> None:
    labels = None if classes is None else torch.arange(images) % classes
    assert most_species(CODES[:images], labels) == most
    composition_targets(CODES[:images], most, iterations=1, seed=0, labels=labels)
    with pytest.raises(UserError):
        composition_targets(CODES[:images], most + 1, labels=labels)


def test_reconstruction_asks_for_every_image_once() -> None:
    targets = reconstruction_targets(CODES)
    assert torch.equal(targets.codes, CODES)
    assert torch.equal(targets.sources, torch.arange(12)[:, None].expand(12, 6))
    assert len(set(targets.seeds)) == 12


def test_limited_reconstruction_is_a_nested_subset_with_the_same_seeds() -> None:
    whole, some, few = (reconstruction_targets(CODES, limit, seed=5) for limit in (None, 7, 3))
    seeds = dict(zip(whole.sources[:, 0].tolist(), whole.seeds, strict=True))
    assert len(some) == 7
    assert set(few.sources[:, 0].tolist()) < set(some.sources[:, 0].tolist())
    assert all(seeds[image] == seed for image, seed in zip(few.sources[:, 0].tolist(), few.seeds, strict=True))


class BrightPredictor:
    """One foreground part whose code is the mean brightness in steps of 32; the background is always code 0."""

    num_parts = 1

    def predict(self, images: Sequence[Tensor]) -> PartPrediction:
        bright = torch.tensor([int(image.float().mean()) // 32 for image in images])
        return PartPrediction(torch.stack([torch.zeros_like(bright), bright], dim=1), [], torch.zeros(0))

    def centroids(self, codes: Tensor) -> Tensor:
        return nn.functional.one_hot(codes.clamp_min(0), 9).double()


def test_scores_are_flattened_for_logs() -> None:
    scores = PartScores(emr={"all": 0.75, "without_background": 0.5}, cosim={"all": 0.8}, num_images=2)
    assert scores.flat("composition_2") == {
        "eval/emr@composition_2": 0.75,
        "eval/emr_without_background@composition_2": 0.5,
        "eval/cosim@composition_2": 0.8,
    }


class Brights:
    """Real images of any sizes: image i is of brightness 32 i + 20."""

    def __len__(self) -> int:
        return 7

    def image(self, index: int) -> Tensor:
        return torch.full((3, 20 + index, 33), 32 * index + 20, dtype=torch.uint8)


class DarkeningVae:
    """Latents are pixels on half the grid; decoding loses 16 grey values."""

    resolution, vae_scale_factor = 16, 2

    def __init__(self) -> None:
        self.vae = nn.Linear(1, 1)
        self.shapes: list[tuple[int, ...]] = []

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        self.shapes.append(tuple(pixel_values.shape))
        mean = pixel_values[:, :, ::2, ::2]
        return mean, torch.zeros_like(mean)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate(latents, scale_factor=2) - 16 / 127.5


def test_ceiling_finds_what_the_autoencoder_loses_and_nothing_else() -> None:
    vae = DarkeningVae()
    scores = ceiling(Brights(), BrightPredictor(), vae, indices=[1, 3, 6], batch_size=2)  # type: ignore[arg-type]
    assert list(scores) == ["vae_round_trip", "mirrored", "recropped"]
    assert scores["mirrored"].emr["all"] == scores["recropped"].emr["all"] == 1
    # 20 - 16 grey values above a step of 32 stay inside it: nothing is lost; two times would be.
    assert scores["vae_round_trip"].emr["all"] == 1
    assert vae.shapes == [(1, 3, 16, 26), (1, 3, 16, 22), (1, 3, 16, 20)]  # aspects kept, sides even


def test_ceiling_is_below_one_when_codes_change() -> None:
    vae = DarkeningVae()
    vae.decode_latents = lambda latents: nn.functional.interpolate(latents, scale_factor=2) - 40 / 127.5  # type: ignore
    scores = ceiling(Brights(), BrightPredictor(), vae, indices=[1, 3], part_names=["bg", "it"])  # type: ignore[arg-type]
    assert scores["vae_round_trip"].emr == {"all": 0.5, "without_background": 0, "part/bg": 1, "part/it": 0}


def test_nothing_to_score_is_an_error_and_not_a_number() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        ceiling(Brights(), BrightPredictor(), DarkeningVae(), indices=[])  # type: ignore[arg-type]


def test_round_trip_of_a_lossless_autoencoder_is_the_picture() -> None:
    image = torch.randint(0, 256, (3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    lossless = SimpleNamespace(
        vae=nn.Linear(1, 1),
        resolution=6,
        vae_scale_factor=1,
        encode_images=lambda pixels: (pixels, pixels * 0),
        decode_latents=lambda latents: latents,
    )
    assert torch.equal(vae_round_trip(image, lossless), image)  # type: ignore[arg-type]


def test_recrop_enlarges_the_middle() -> None:
    image = torch.zeros(3, 40, 20, dtype=torch.uint8)
    image[:, 2:38, 1:19] = 200
    assert (recrop(image, 0.9) == 200).all()
    assert recrop(torch.zeros(3, 1, 1, dtype=torch.uint8)).shape == (3, 1, 1)
