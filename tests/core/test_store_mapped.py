"""Weights that rest in a file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from partcraft_lit.core.allocation import keep_freed_memory
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store.mapped import MappedWeights


def test_a_network_computes_the_same_and_keeps_its_parameters(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 1)).eval()
    network[3].weight.data = network[3].weight.data.bfloat16().float()
    parameters, picture = list(network.parameters()), torch.randn(2, 3, 4, 4)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(picture)
    resting = MappedWeights(network, tmp_path)
    for _ in range(2):
        assert torch.equal(network(picture), expected)
        resting.release()
    assert all(a is b for a, b in zip(parameters, network.parameters()))
    assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == [], "the file has no name that could be left behind"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is a file, and the folder .* is wanted"):
        MappedWeights(nn.Linear(2, 2), tmp_path / "file")


@pytest.mark.skipif(sys.platform != "linux", reason="the count of a process's memory is Linux's")
@pytest.mark.parametrize("keep", (False, True))
def test_memory_is_free_while_it_rests(tmp_path, keep):
    if keep:  # as every command does
        keep_freed_memory()
        blocks = [torch.ones(5 << 20) for _ in range(8)]  # 20 MB each, and then room for the network
        del blocks
    network = nn.Linear(4000, 4000, bias=False)  # 64 MB
    full = _resident()
    resting = MappedWeights(network, tmp_path)
    assert full - _resident() > 50
    network(torch.zeros(1, 4000))
    resting.release()
    assert full - _resident() > 50


def _resident() -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1000
