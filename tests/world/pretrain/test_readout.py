"""Heads that read looks from inside the denoiser."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.world.pretrain.denoiser import build_unet
from partcraft_lit.world.pretrain.readout import Features, LookReadout
from partcraft_lit.world.zoo.looks import COLORS, FAMILIES, NUM_PARTS, NUM_SHAPES, TEXTURES
from partcraft_lit.world.zoo.scenes import PretrainingScenes


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label_maps = torch.randint(0, 2 * NUM_PARTS + 1, (3, 4, 4), generator=generator).to(torch.uint8)
    columns = [
        torch.randint(n, (3, 2 * NUM_PARTS), generator=generator) for n in (NUM_SHAPES, len(COLORS), len(TEXTURES))
    ]
    return label_maps, torch.stack(columns, dim=2), torch.tensor([[0, 0], [1, 0], [0, 1]])


def constant(readout: LookReadout) -> LookReadout:
    """The same heads, with nothing to say about any place."""
    for parameter in readout.heads[-1].parameters():
        torch.nn.init.zeros_(parameter)
    return readout


def test_heads_that_know_nothing_are_as_wrong_as_guessing():
    label_maps, looks, families = case()
    values = constant(LookReadout(32))(torch.randn(3, 32, 4, 4), label_maps, looks, families)
    kinds = 1 + len(FAMILIES) * NUM_PARTS * NUM_SHAPES
    for name, classes in (("part", kinds), ("shape", NUM_SHAPES), ("color", len(COLORS)), ("texture", len(TEXTURES))):
        assert float(values[name].detach()) == pytest.approx(math.log(classes), rel=1e-5)


def test_answers_are_those_of_the_place_by_loops():
    label_maps, looks, families = case()
    torch.manual_seed(1)
    readout, features = LookReadout(32), torch.randn(3, 32, 4, 4)
    values = readout(features, label_maps, looks, families)
    scores = readout.heads(features)
    kinds, colors, textures = scores.split(readout.classes, dim=1)
    wrong: dict[str, list[torch.Tensor]] = {"part": [], "shape": [], "color": [], "texture": []}
    for b in range(3):
        for y in range(4):
            for x in range(4):
                part = int(label_maps[b, y, x]) - 1
                kind = 0
                if part >= 0:
                    shape, color, texture = looks[b, part].tolist()
                    family = int(families[b, 0 if part < NUM_PARTS else 1])
                    kind = 1 + (family * NUM_PARTS + part % NUM_PARTS) * NUM_SHAPES + shape
                    wrong["color"].append(-colors[b, :, y, x].log_softmax(0)[color])
                    wrong["texture"].append(-textures[b, :, y, x].log_softmax(0)[texture])
                    mine = kinds[b, kind - shape : kind - shape + NUM_SHAPES, y, x]
                    wrong["shape"].append(-mine.log_softmax(0)[shape])
                wrong["part"].append(-kinds[b, :, y, x].log_softmax(0)[kind])
    for name, rows in wrong.items():
        assert_close(values[name], torch.stack(rows).mean())


def test_features_are_those_of_the_last_pass_and_are_taken_once():
    unet = build_unet(8)
    features = Features(unet)
    with torch.no_grad():
        unet(torch.zeros(2, 8, 16, 16), torch.tensor([1, 2]), encoder_hidden_states=torch.zeros(2, 77, 128))
    assert features.take().shape == (2, features.channels, 16, 16)
    with pytest.raises(RuntimeError, match="has not run"):
        features.take()
    features.remove()


def test_looks_are_those_that_are_drawn():
    scenes = PretrainingScenes(seed=5)
    looks = scenes.looks(range(3, 7))
    assert looks.shape == (4, 2 * NUM_PARTS, 3)
    assert torch.equal(looks[1:2], scenes.looks(range(4, 5)))
