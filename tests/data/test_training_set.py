"""A sample is a function of (seed, number), and its parts agree with one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import epoch_index
from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.core.types import ABSENT
from partcraft_lit.data.latents import KIND, LatentTable
from partcraft_lit.data.part_mixing import PartMixing
from partcraft_lit.data.settings import MixSettings
from partcraft_lit.data.training_set import TrainingExample, TrainingSet, crop_label_map

#: Sides of the latents of the five images; the crop is 4 x 4.
SIZES = [(4, 4), (4, 12), (9, 4), (4, 6), (4, 4)]


def caption(codes: Tensor, generator: torch.Generator) -> str:
    order = torch.randperm(len(codes), generator=generator).tolist()
    return " ".join(f"<{part}:{int(codes[part])}>" for part in order if codes[part] != ABSENT)


def coordinates(height: int, width: int) -> Tensor:
    """Latents that say where they come from: row, column, and the mirror image's column."""
    rows = torch.arange(height).float()[:, None].expand(height, width)
    columns = torch.arange(width).float()[None, :].expand(height, width)
    return torch.stack([rows, columns, torch.zeros(height, width)])


def table(store: Store, std: float = 0.0) -> LatentTable:
    keys = [stable_hash(number, std) for number in range(len(SIZES))]
    latents = LatentTable(store, keys)
    for number, (key, size) in enumerate(zip(keys, SIZES)):
        mean = coordinates(*size)
        flipped = mean.flip(-1) + torch.tensor([0.0, 0.0, 1.0])[:, None, None]  # channel 2 says: the mirror image
        deviation = torch.full_like(mean, std)
        original = torch.tensor(size) * 10 + number  # not the latents' own size: images are resized
        store.put(
            KIND,
            key,
            {
                "mean": mean,
                "std": deviation,
                "mean_flipped": flipped,
                "std_flipped": deviation,
                "original_size": original,
            },
        )
        entry = store.get(KIND, key)
        assert entry is not None
        if number % 2:
            latents.hold(number, entry)
    return latents


Make = Callable[..., TrainingSet]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a training set whose label maps have one cell per latent: part = column // 4 (0, 1 or 2)."""

    def build(std: float = 0.0, **changes: Any) -> TrainingSet:
        maps = [(coordinates(*size)[1] // 4).to(torch.uint8) for size in SIZES]
        settings: dict[str, Any] = {
            "seed": 7,
            "source_len": len(SIZES),
            "latents": table(Store(tmp_path), std),
            "label_maps": maps,
            "codes": torch.arange(len(SIZES))[:, None] * 10 + torch.arange(3)[None, :],
            "make_caption": caption,
            "resolution": 32,
            "vae_scale_factor": 8,
            "attention_size": 4,
            "num_train_timesteps": 1000,
            "flip": True,
            "crop": "random",
        }
        return TrainingSet(**(settings | changes))

    return build


def same(first: TrainingExample, second: TrainingExample, but: tuple[str, ...] = ()) -> bool:
    pairs = ((name, value, getattr(second, name)) for name, value in vars(first).items() if name not in but)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for _, a, b in pairs)


def test_a_sample_depends_on_seed_and_number_only(make: Make) -> None:
    first, second = make(std=1.0), make(std=1.0)
    wanted = [first[number] for number in range(12)]
    for number in (11, 3, 3, 7, 0):  # any order, with repetitions, and whatever else was drawn
        torch.manual_seed(number)
        assert same(second[number], wanted[number])
    assert not same(make(std=1.0, seed=8)[0], wanted[0])


def test_every_image_comes_once_per_epoch_in_a_new_order(make: Make) -> None:
    examples = make()
    epochs = [[examples[5 * epoch + place].image_id for place in range(5)] for epoch in range(6)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epochs[1][2] == epoch_index(7, 7, 5)


def test_shapes_types_and_ranges(make: Make) -> None:
    examples = make()
    for number in range(10):
        example = examples[number]
        assert example.latents.shape == example.noise.shape == (3, 4, 4)
        assert example.latents.dtype == example.noise.dtype == torch.float32
        assert example.label_map.shape == (4, 4)
        assert example.label_map.dtype == torch.uint8
        assert 0 <= example.timestep < 1000
        assert example.sample_id == number


def test_settings_change_only_what_they_are_about(make: Make) -> None:
    base = make(std=1.0)
    captioned = make(std=1.0, make_caption=lambda codes, generator: "a bird")
    shorter = make(std=1.0, num_train_timesteps=10)
    unflipped = make(std=1.0, flip=False)
    for number in range(20):
        example = base[number]
        assert same(example, captioned[number], but=("prompt",))
        assert same(example, shorter[number], but=("timestep",))
        assert same(example, unflipped[number], but=("latents", "label_map", "codes", "prompt"))


def test_mask_and_latents_are_cropped_and_flipped_by_the_same_box(make: Make) -> None:
    # Latents carry their column and the map is column // 4, so one can be worked out from the other.
    examples = make()
    flips, corners = set(), set()
    for number in range(60):
        example = examples[number]
        assert_close(example.label_map, (example.latents[1] // 4).to(torch.uint8))
        flips.add(bool(example.latents[2, 0, 0]))
        corners.add((example.image_id, *example.latents[:, 0, 0].tolist()))
        step = -1.0 if example.latents[2, 0, 0] else 1.0
        assert_close(example.latents[1].diff(dim=1), torch.full((4, 3), step))  # a window without gaps
        assert_close(example.latents[0].diff(dim=0), torch.ones(3, 4))
    assert flips == {False, True}
    assert len(corners) > 15  # crops vary


def test_crops_reach_both_ends_and_nothing_else(make: Make) -> None:
    examples = make(flip=False)
    lefts = {int(e.latents[1, 0, 0]) for e in (examples[number] for number in range(400)) if e.image_id == 1}
    assert lefts == set(range(9))  # 12 wide, 4 taken


def test_center_crops(make: Make) -> None:
    examples = make(flip=False, crop="center")
    corners = {e.image_id: e.latents[:2, 0, 0].tolist() for e in (examples[number] for number in range(5))}
    assert corners == {0: [0, 0], 1: [0, 4], 2: [2, 0], 3: [0, 1], 4: [0, 0]}


def test_half_of_the_samples_are_flipped_unless_switched_off(make: Make) -> None:
    examples, unflipped = make(), make(flip=False)
    flips = [bool(examples[number].latents[2, 0, 0]) for number in range(200)]
    assert 70 < sum(flips) < 130  # four standard deviations
    assert not any(unflipped[number].latents[2, 0, 0] for number in range(50))


def test_noise_and_posterior_are_standard_normal_and_independent(make: Make) -> None:
    samples = make(std=2.0, flip=False, crop="center")
    exact = make(flip=False, crop="center")
    examples = [samples[number] for number in range(300)]
    means = {e.image_id: e.latents for e in (exact[number] for number in range(5))}
    noise = torch.stack([e.noise for e in examples])
    posterior = torch.stack([(e.latents - means[e.image_id]) / 2 for e in examples])
    for values in (noise, posterior):
        assert abs(values.mean()) < 0.04
        assert abs(values.std() - 1) < 0.03
    assert abs((noise * posterior).mean()) < 0.04
    assert len({float(e.noise[0, 0, 0]) for e in examples}) == 300
    timesteps = torch.tensor([e.timestep for e in examples]).float()
    assert abs(timesteps.mean() - 499.5) < 70


def test_parts_that_the_crop_cut_away_are_not_in_the_caption(make: Make) -> None:
    seen, examples = set(), make()
    for number in range(80):
        example = examples[number]
        shown = set(example.label_map.unique().tolist())
        prompted = {int(token[1]) for token in example.prompt.split()}
        assert prompted == shown
        assert {part for part in range(3) if example.codes[part] != ABSENT} == shown
        assert all(f"<{part}:{example.image_id * 10 + part}>" in example.prompt for part in shown)
        seen.add(tuple(sorted(shown)))
    assert {(0,), (0, 1), (1, 2), (1,)} <= seen


def test_the_whole_images_parts_can_be_kept(make: Make) -> None:
    examples = make(present_only=False)
    assert all(len(examples[number].prompt.split()) == 3 for number in range(10))


def test_a_part_without_a_code_stays_absent_and_codes_are_not_changed(make: Make) -> None:
    codes = torch.full((5, 3), ABSENT)
    assert make(codes=codes)[0].prompt == ""
    kept = torch.arange(15).reshape(5, 3)
    examples = make(codes=kept)
    for number in range(20):
        examples[number].codes.fill_(99)
    assert_close(kept, torch.arange(15).reshape(5, 3))
    assert max(int(examples[number].codes.max()) for number in range(20)) < 15


def test_crop_label_map_by_hand() -> None:
    grid = torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.uint8)
    whole = crop_label_map(grid, (0, 0), 6, (6, 6), 6)
    assert_close(whole, grid.repeat_interleave(3, 0).repeat_interleave(2, 1))
    # The lower right quarter of a square image: columns 1.5 to 3 of the grid. The first of two cells shows half a cell
    # of column 1 and a quarter of column 2.
    assert crop_label_map(grid, (2, 2), 2, (4, 4), 2).tolist() == [[4, 5], [4, 5]]


def test_crop_label_map_commutes_with_mirroring() -> None:
    grid = torch.randint(0, 6, (16, 21), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for whole in ((64, 84), (16, 21), (9, 12)):
        side = whole[0]
        for left in range(whole[1] - side + 1):
            for size in (16, 8, 5):
                cropped = crop_label_map(grid, (0, left), side, whole, size)
                mirrored = crop_label_map(grid.flip(-1), (0, whole[1] - side - left), side, whole, size)
                assert torch.equal(mirrored, cropped.flip(-1))


def test_masks_at_full_resolution_are_kept_coarser(make: Make) -> None:
    """A mask of 600 x 900 pixels: what a sample shows is the same, and memory is that of 128 x 192."""
    fine = torch.zeros(600, 900, dtype=torch.uint8)
    fine[:, 450:] = 1
    examples = make(label_maps=[fine] * len(SIZES))
    assert tuple(examples._maps[0].shape) == (128, 192)
    assert torch.equal(examples._maps[0].flip(-1), 1 - examples._maps[0])


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"crop": "centre"}, UserError, r"crop is 'centre'\. Did you mean 'center'"),
        ({"resolution": 30}, UserError, "multiple of 8 pixels, got 30"),
        ({"source_len": 4}, ValueError, "one of each per image"),
        ({"codes": torch.zeros(4, 3)}, ValueError, "one of each per image"),
    ],
)
def test_settings_that_do_not_fit(make: Make, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**changes)


def test_latents_of_another_resolution(make: Make) -> None:
    with pytest.raises(ValueError, match=r"Latents of size \(4, 4\) are smaller than the crop of 8"):
        make(resolution=64)[epoch_like(0)]


def epoch_like(image: int) -> int:
    """Number of a sample that shows an image."""
    return next(number for number in range(5) if epoch_index(7, number, 5) == image)


def test_the_crop_says_the_picture_s_own_size_and_where_it_was_cut(make: Make) -> None:
    """The latents tell by themselves which row and column they begin with; in a mirrored image, from its left."""
    examples = [make()[number] for number in range(40)]
    for example in examples:
        height, width = SIZES[example.image_id]
        first_row, first_column, mirrored = (int(value) for value in example.latents[:, 0, 0])
        left = width - 1 - first_column if mirrored else first_column
        original = (height * 10 + example.image_id, width * 10 + example.image_id)
        assert example.crop == (*original, first_row * 8, left * 8)
    assert any(example.crop[2] for example in examples) and any(example.crop[3] for example in examples)


MIX = {"recompose": 0.0, "most_parts": 2, "candidates": 3, "seam": 1, "swap": 0.0, "drop": 0.0, "degrade": 0.0}


def mixing(**on: float) -> PartMixing:
    return PartMixing(MixSettings(**(MIX | on)), total_samples=1000)


def test_mixed_samples_are_functions_of_seed_and_number_too(make: Make) -> None:
    on = {"recompose": 0.5, "swap": 0.5, "drop": 0.5, "degrade": 0.5}
    first, second = (make(std=1.0, mixing=mixing(**on), empty_captions=0.3) for _ in range(2))
    wanted = [first[number] for number in range(12)]
    for number in (11, 3, 3, 0):
        torch.manual_seed(number)
        assert same(second[number], wanted[number])


def test_mixing_changes_only_what_it_is_about(make: Make) -> None:
    base, on = make(std=1.0), make(std=1.0, mixing=mixing(swap=1.0), empty_captions=0.0)
    for number in range(20):
        example, swapped = base[number], on[number]
        assert same(example, swapped, but=("codes", "prompt", "loss_region"))
        changed = example.codes != swapped.codes
        assert_close(swapped.loss_region, (~changed[example.label_map.long()]).float())
        assert {f"<{p}:{int(c)}>" for p, c in enumerate(swapped.codes) if c != ABSENT} == set(swapped.prompt.split())


def test_pasted_parts_bring_their_own_latents_and_codes(make: Make) -> None:
    """Latents say their column and whether they are mirrored, and a part is column // 4, wherever it lies now."""
    base, on = make(flip=False), make(flip=False, mixing=mixing(recompose=1.0, seam=0))
    pasted = 0
    for number in range(60):
        example, made = base[number], on[number]
        changed = (example.codes != made.codes) & (made.codes != ABSENT)
        counting = made.loss_region.bool()
        for part in changed.nonzero().flatten().tolist():
            here = (made.label_map == part) & counting
            assert here.any() and bool((made.latents[1][here] // 4 == part).all())
            pasted += 1
    assert pasted > 2


def test_some_captions_are_empty(make: Make) -> None:
    base, on = make(), make(empty_captions=0.25)
    empty = [on[number].prompt == "" for number in range(200)]
    assert 25 < sum(empty) < 75  # four standard deviations
    assert all(same(base[n], on[n]) for n in range(200) if not empty[n])
