"""Heads that read looks from inside the denoiser."""

from __future__ import annotations

import itertools
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


def told() -> torch.Tensor:
    """Which shapes the captions of the case say: of the last image none."""
    generator = torch.Generator().manual_seed(3)
    said = torch.rand(3, 2 * NUM_PARTS, generator=generator) < 0.5
    said[2] = False
    return said


def constant(readout: LookReadout) -> LookReadout:
    """The same heads, with nothing to say about any place."""
    for parameter in readout.heads[-1].parameters():
        torch.nn.init.zeros_(parameter)
    return readout


def test_heads_that_know_nothing_are_as_wrong_as_guessing():
    label_maps, looks, families = case()
    everything = torch.ones(3, 2 * NUM_PARTS, dtype=torch.bool)
    values = constant(LookReadout(32))(torch.randn(3, 32, 4, 4), label_maps, looks, families, everything)
    kinds = 1 + len(FAMILIES) * NUM_PARTS * NUM_SHAPES
    for name, classes in (("part", kinds), ("shape", NUM_SHAPES), ("color", len(COLORS)), ("texture", len(TEXTURES))):
        assert values[name].tolist() == pytest.approx([math.log(classes)] * 3, rel=1e-5)


def test_answers_are_those_of_the_place_by_loops():
    label_maps, looks, families = case()
    said = told()
    torch.manual_seed(1)
    readout, features = LookReadout(32), torch.randn(3, 32, 4, 4)
    values = readout(features, label_maps, looks, families, said)
    kinds, colors, textures = readout.heads(features).split(readout.classes, dim=1)
    for b in range(3):
        kind_wrong: list[torch.Tensor] = []
        wrong: dict[str, dict[int, list[torch.Tensor]]] = {"shape": {}, "color": {}, "texture": {}}
        for y, x in itertools.product(range(4), range(4)):
            part = int(label_maps[b, y, x]) - 1
            kind = 0
            if part >= 0:
                shape, color, texture = looks[b, part].tolist()
                family = int(families[b, 0 if part < NUM_PARTS else 1])
                kind = 1 + (family * NUM_PARTS + part % NUM_PARTS) * NUM_SHAPES + shape
                wrong["color"].setdefault(part, []).append(-colors[b, :, y, x].log_softmax(0)[color])
                wrong["texture"].setdefault(part, []).append(-textures[b, :, y, x].log_softmax(0)[texture])
                if said[b, part]:
                    mine = kinds[b, kind - shape : kind - shape + NUM_SHAPES, y, x]
                    wrong["shape"].setdefault(part, []).append(-mine.log_softmax(0)[shape])
            kind_wrong.append(-kinds[b, :, y, x].log_softmax(0)[kind])
        assert_close(values["part"][b], torch.stack(kind_wrong).mean())
        for name, parts in wrong.items():
            means = [torch.stack(places).mean() for places in parts.values()]
            assert_close(values[name][b], torch.stack(means).mean() if means else torch.zeros(()))


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
