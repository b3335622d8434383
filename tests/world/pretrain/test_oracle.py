"""Training of the oracle."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.world.oracle import LookNetwork, LookOracle, NetworkOutput
from partcraft_lit.world.pretrain import oracle
from partcraft_lit.world.pretrain.oracle import degrade, oracle_batch, oracle_loss, save_oracle, train_oracle
from partcraft_lit.world.zoo.looks import look_table
from pretraining import loop_settings


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_pictures(count: int = 4) -> torch.Tensor:
    drawn = torch.rand(count, 3, 8, 8, generator=generator(3)) * 1.6 - 0.8
    return F.interpolate(drawn, size=(64, 64), mode="bilinear")


def test_batches_are_a_function_of_the_step():
    (first, looks), (again, looks_again), (other, _) = (oracle_batch(0, step, 4) for step in (5, 5, 6))
    assert torch.equal(first.images, again.images)
    assert torch.equal(looks, looks_again)
    assert not torch.equal(first.images, other.images)


def test_looks_come_from_both_worlds():
    looks = torch.cat([oracle_batch(0, step, 64)[1] for step in range(3)]).flatten(0, 1)
    shown = {tuple(row) for row in looks.tolist()}
    for world in ("pretraining", "held_out"):
        assert {tuple(row) for row in look_table(world).tolist()} <= shown


def test_some_birds_lack_parts_and_the_rest_is_as_it_would_be():
    drawing, looks = oracle_batch(0, 1, 64, missing=0.3)
    whole, same_looks = oracle_batch(0, 1, 64, missing=0.0)
    assert torch.equal(looks, same_looks)
    assert 0.2 < float((~drawing.visible).float().mean()) < 0.5
    assert float((~whole.visible).float().mean()) < 0.01
    no_bird = (drawing.label_maps == 0).flatten(1).all(dim=1)
    assert bool(no_bird.any())
    hidden = (drawing.label_maps == 0) & (whole.label_maps == 0)
    assert float((drawing.images == whole.images).all(dim=1)[hidden].float().mean()) > 0.97  # but for soft edges


def test_training_starts_from_given_weights(tmp_path):
    torch.manual_seed(5)
    network = LookNetwork()
    save_oracle(network, tmp_path / "start.safetensors")
    settings = loop_settings(steps=1, batch_size=2, lr=0.0, warmup=1)
    trained = train_oracle(settings, tmp_path, lambda line: None, start=tmp_path / "start.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value.half().float()), name


def test_degraded_pictures_keep_shape_and_range_and_repeat():
    pictures = smooth_pictures(8)
    first, again = (degrade(pictures, generator()) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == pictures.shape
    assert -1 <= float(first.min()) <= float(first.max()) <= 1


def test_degradation_differs_between_pictures_and_spares_some():
    pictures = smooth_pictures(1).expand(200, -1, -1, -1)
    error = (degrade(pictures, generator()) - pictures).square().flatten(1).mean(dim=1)
    assert 0.08 < float((error == 0).float().mean()) < 0.26  # one in six
    assert float(error.max()) > 4 * float(error[error > 0].median())
    assert 0.02 < float(error[error > 0].median().sqrt()) < 0.2


def test_block_coefficients_give_a_picture_back_when_nothing_is_done(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.zeros(shape))  # no weakening, no noise
    pictures = smooth_pictures()
    assert_close(oracle._through_blocks(pictures, generator()), pictures, atol=1e-5, rtol=0)


def test_loss_of_perfect_and_of_blank_answers():
    drawing, looks = oracle_batch(0, 0, 3)
    parts = F.one_hot(drawing.label_maps.long(), 6).movedim(3, 1).float()
    places = (F.avg_pool2d(parts, 2) == 1).float() * 1e4  # where one part fills the place
    presence = torch.where(drawing.visible, 1e4, -1e4)
    answers = [F.one_hot(looks[:, :, column], size).float() * 1e4 for column, size in ((1, 10), (2, 3), (0, 4))]
    perfect, numbers = oracle_loss(NetworkOutput(presence, *answers, places), drawing, looks)
    assert numbers == {"color": 1.0, "texture": 1.0, "shape": 1.0}
    blank = NetworkOutput(presence * 0, *(answer * 0 for answer in answers), places * 0)
    nats = 2 * math.log(6) + 0.5 * math.log(2) + math.log(10) + math.log(3) + 0.5 * math.log(4)
    assert float(oracle_loss(blank, drawing, looks)[0]) == pytest.approx(nats, rel=1e-5)
    assert float(perfect) < 0.3 * nats  # places on an edge hold several parts


def test_what_cannot_be_seen_is_not_asked():
    drawing, looks = oracle_batch(0, 0, 2)
    label_maps = torch.where(drawing.label_maps == 3, 0, drawing.label_maps)  # no wings
    wingless = type(drawing)(drawing.images, label_maps)
    torch.manual_seed(0)
    output = LookNetwork()(torch.zeros(2, 3, 64, 64))
    other = looks.clone()
    other[:, 2] = (other[:, 2] + 1) % 3
    assert torch.equal(oracle_loss(output, wingless, looks)[0], oracle_loss(output, wingless, other)[0])
    assert not torch.equal(oracle_loss(output, drawing, looks)[0], oracle_loss(output, drawing, other)[0])


def test_saved_weights_are_read_back_in_half_precision(tmp_path):
    torch.manual_seed(0)
    network = LookNetwork().eval()
    save_oracle(network, tmp_path / "oracle.safetensors")
    assert {value.dtype for value in load_file(tmp_path / "oracle.safetensors").values()} == {torch.float16}
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator())
    with torch.no_grad():
        expected = network(images.float() / 127.5 - 1)
    reading = LookOracle(tmp_path / "oracle.safetensors").read(images)
    assert_close(reading.color, expected.color, atol=0.01, rtol=0)
    assert_close(reading.presence, expected.presence.sigmoid(), atol=0.01, rtol=0)


def test_training_resumes(tmp_path):
    logged: list[str] = []
    settings = loop_settings(steps=3, batch_size=4, lr=2.5e-3, warmup=100)
    first = train_oracle(settings, tmp_path, logged.append)
    assert [json.loads(line)["step"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()] == [3]
    second = train_oracle(settings, tmp_path, logged.append)
    assert any("goes on at step 3" in line for line in logged)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
