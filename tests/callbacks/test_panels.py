"""Sample grids and attention maps: when, where, and without an effect on training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from stand_in import StandIn, bound, fit

from partcraft_lit.callbacks.attention_maps import AttentionMaps, attention_panel
from partcraft_lit.callbacks.binding import ProbePrompts, check_folders
from partcraft_lit.callbacks.hooks import EveryNSteps, evaluating
from partcraft_lit.callbacks.samples import Samples
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import read_image

NAMES = ["background", "head", "wing"]


class PictureLogger(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[str, int, str]] = []
        self.numbers: list[dict[str, float]] = []

    def log_image(self, key: str, images: list[Any], caption: list[str], step: int) -> None:
        assert isinstance(images[0], Image.Image)
        self.pictures.append((key, step, caption[0]))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.numbers.append(metrics)


def samples(folder: Path, every: int = 2, **more: Any) -> Samples:
    return bound(Samples(every, min_side=32), folder, **more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_grids_come_at_the_start_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    module, logger = StandIn(), PictureLogger()
    fit(module, samples(tmp_path), folder=tmp_path, steps=5, logger=logger)
    expected = [0, 2, 4, 5]
    assert names(tmp_path / "samples") == [f"step_{step:06d}.png" for step in expected]
    assert module.generated == [(["a <head:1>", "a <head:2> <wing:2>"], [11, 12])] * 4
    assert logger.pictures == [("samples/grid", max(step - 1, 0), f"step {step}") for step in expected]


def test_a_step_of_several_batches_gives_one_grid(tmp_path: Path) -> None:
    module = StandIn()
    fit(module, samples(tmp_path), folder=tmp_path, steps=4, accumulate=3)
    assert names(tmp_path / "samples") == ["step_000000.png", "step_000002.png", "step_000004.png"]
    assert len(module.generated) == 3


def test_the_file_says_how_to_make_it_again(tmp_path: Path) -> None:
    fit(StandIn(), samples(tmp_path), folder=tmp_path, steps=2)
    with Image.open(tmp_path / "samples" / "step_000002.png") as picture:
        assert json.loads(picture.info["prompts"]) == ["a <head:1>", "a <head:2> <wing:2>"]
        assert json.loads(picture.info["seeds"]) == [11, 12]
        assert picture.info["step"] == "2"
        assert picture.size[0] == 2 * 32 + 6 + 12  # enlarged, side by side, padded


def test_training_is_the_same_with_and_without_pictures(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [samples(tmp_path), bound(AttentionMaps(1, side=16), tmp_path)]):
        torch.manual_seed(3)
        module = StandIn()
        fit(module, *callbacks, folder=tmp_path, steps=5)
        weights.append(module.weight.detach())
        assert module.training
        assert not module.frozen.training
    assert torch.equal(*weights)


def test_a_failing_sampler_warns_and_does_not_end_the_run(tmp_path: Path) -> None:
    module = StandIn()
    module.fail_to_generate = True
    with pytest.warns(
        UserWarning, match="The sample grid at step 2 failed, training goes on: RuntimeError: out of paint"
    ):
        trainer = fit(module, samples(tmp_path), folder=tmp_path, steps=4)
    assert trainer.global_step == 4
    assert module.training


def test_attention_maps_are_drawn_and_measured(tmp_path: Path) -> None:
    logger = PictureLogger()
    callback = bound(AttentionMaps(every_n_steps=2, side=32), tmp_path)
    fit(StandIn(), callback, folder=tmp_path, steps=2, logger=logger)
    assert names(tmp_path / "attention") == ["step_000000.png", "step_000002.png"]
    assert names(tmp_path / "attention_leakage") == ["step_000000.png", "step_000002.png"]
    with Image.open(tmp_path / "attention" / "step_000000.png") as picture:
        assert picture.size[0] == 3 * 32 + 2 * 6 + 12  # the image, head, wing; no column for the background
        assert "<head:1> <wing:1>" in picture.info["prompts"]
    inside = logger.numbers[0]
    # Before training attention is flat, and each part covers a quarter of the image.
    assert inside == pytest.approx(
        {"parts/attention_inside": 0.25, "parts/attention_inside_head": 0.25, "parts/attention_inside_wing": 0.25}
    )


def test_panel_sums_tokens_of_one_part_and_survives_missing_ones() -> None:
    images = torch.zeros(2, 3, 8, 12, dtype=torch.uint8)
    maps = torch.rand(2, 3, 4, 4)
    part_ids = torch.tensor([[1, 1, 2], [1, -1, -1]])
    panel = attention_panel(images, torch.zeros(2, 4, 4, dtype=torch.uint8), maps, part_ids, NAMES, side=40)
    assert panel.shape == (3, 2 * (40 + 18) + 6 + 12, 3 * 40 + 2 * 6 + 12)


def test_only_the_grid_before_training_is_remembered(tmp_path: Path) -> None:
    asked = []

    def remember(about: list, draw) -> torch.Tensor:
        asked.append(about)
        return draw() if len(asked) == 1 else first

    first = torch.full((3, 8, 8), 7, dtype=torch.uint8)
    for name, drawn in (("first", 3), ("again", 2)):
        module = StandIn()
        fit(module, samples(tmp_path / name, remember=remember), folder=tmp_path / name, steps=4)
        assert len(module.generated) == drawn
    assert asked[0] == asked[1]
    assert read_image(tmp_path / "again" / "samples" / "step_000000.png").shape == (3, 8, 8)


def test_prompts_and_seeds_must_match() -> None:
    with pytest.raises(ValueError, match="got 2 prompts and 1 seeds"):
        ProbePrompts(["a", "b"], [1], torch.zeros(2, 3))
    with pytest.raises(ValueError, match="got 0 prompts"):
        ProbePrompts([], [], torch.zeros(0, 3))


def test_two_grids_in_one_folder_are_refused() -> None:
    check_folders([Samples(1), Samples(1, subfolder="more"), AttentionMaps(1)])
    with pytest.raises(UserError, match=r"Two callbacks write into samples/ .* callbacks.NAME.subfolder=FOLDER"):
        check_folders([Samples(1), Samples(2)])


def test_every_n_steps_fires_once_and_not_where_training_resumes() -> None:
    trigger = EveryNSteps(3)
    trigger.start(3)
    assert [step for step in [3, 3, 4, 4, 5, 6, 6, 6, 7, 9, 9] if trigger.fires(step)] == [6, 9]


def test_evaluating_restores_every_mode_also_after_an_error() -> None:
    module = StandIn().train()
    module.frozen.eval()

    def fail_inside() -> None:
        with evaluating(module):
            assert not module.training
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert module.training
    assert not module.frozen.training
    assert torch.is_grad_enabled()
