"""Convolutions over few places equal torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from partcraft_lit.backbones import im2col
from partcraft_lit.backbones.im2col import Im2colConv2d, use_im2col_convolutions


@pytest.mark.parametrize("settings", [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": (0, 2), "dilation": 2}])
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_and_gradients_are_those_of_torch(monkeypatch, settings, batch):
    monkeypatch.setattr(im2col, "MIN_WEIGHTS", 1)
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, 3, **settings).double()
    short = nn.Conv2d(5, 7, 3, **settings).double()
    short.load_state_dict(plain.state_dict())
    use_im2col_convolutions(nn.Sequential(short))
    pictures = [torch.randn(batch, 5, 5, 4, dtype=torch.double).requires_grad_()]
    pictures.append(pictures[0].detach().clone().requires_grad_())
    outputs = [layer(picture) for layer, picture in zip((plain, short), pictures)]
    assert outputs[1].grad_fn.name() != outputs[0].grad_fn.name()  # another way
    assert outputs[1].is_contiguous()
    for output in outputs:
        output.square().sum().backward()
    assert_close(outputs[1], outputs[0])
    assert_close(pictures[1].grad, pictures[0].grad)
    assert_close(short.weight.grad, plain.weight.grad)
    assert_close(short.bias.grad, plain.bias.grad)


def test_many_places_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(im2col, "MIN_WEIGHTS", 1)
    network = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
    use_im2col_convolutions(network)
    assert "Convolution" in network(torch.ones(1, 2, 9, 9)).grad_fn.name()
    assert "Convolution" not in network(torch.ones(1, 2, 8, 8)).grad_fn.name()
    assert "Convolution" in network(torch.ones(2, 2, 8, 8)).grad_fn.name()


@pytest.mark.parametrize(
    "wrong", [{"kernel_size": 1}, {"groups": 2}, {"padding_mode": "circular"}, {"padding": "same"}]
)
def test_other_kinds_stay(monkeypatch, wrong):
    monkeypatch.setattr(im2col, "MIN_WEIGHTS", 1)
    network = nn.Sequential(nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1} | wrong))
    use_im2col_convolutions(network)
    assert type(network[0]) is nn.Conv2d


def test_few_weights_stay():
    network = nn.Sequential(nn.Conv2d(256, 256, 3), nn.Conv2d(512, 256, 3))
    use_im2col_convolutions(network)
    assert [type(layer) for layer in network] == [nn.Conv2d, Im2colConv2d]
