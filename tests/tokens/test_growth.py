"""Checkpoints of fewer parts or codes in a mapper of more."""

from __future__ import annotations

import torch
from torch import nn

from partcraft_lit.tokens.growth import grow
from partcraft_lit.tokens.mapper import TokenMapper


def test_rows_that_are_there_stay_and_new_ones_start_untrained():
    small, large = TokenMapper(2, 3, [4], seed=1), TokenMapper(3, 5, [4], seed=2)
    names = {f"method.mapper.{name}": parameter for name, parameter in large.named_parameters()}
    order = list(names.values())
    before = {name: parameter.detach().clone() for name, parameter in names.items()}
    weights = {f"method.mapper.{name}": parameter.detach().clone() for name, parameter in small.named_parameters()}
    state = {
        number: {"exp_avg": torch.ones_like(weights[name]), "step": torch.tensor(7.0)}
        for number, name in enumerate(names)
    }
    checkpoint = {"state_dict": dict(weights), "optimizer_states": [{"state": state, "param_groups": []}]}
    grow(checkpoint, names, order)

    codes, position = (checkpoint["state_dict"][f"method.mapper.{name}"] for name in ("codes", "position"))
    assert torch.equal(codes[:3, :3], weights["method.mapper.codes"])
    assert torch.equal(codes[3], before["method.mapper.codes"][3])
    assert torch.equal(codes[:3, 3:], before["method.mapper.codes"][:3, 3:])
    assert torch.equal(position[:3], weights["method.mapper.position"])
    average = state[list(names).index("method.mapper.codes")]["exp_avg"]
    assert average.shape == codes.shape
    assert float(average.sum()) == 3 * 3 * 4  # nothing is known of the new ones
    assert float(state[0]["step"]) == 7
    for name in names.keys() - {"method.mapper.codes", "method.mapper.position"}:
        assert torch.equal(checkpoint["state_dict"][name], weights[name])


def test_a_table_that_would_lose_rows_is_left_for_the_check_of_shapes():
    weights = {"mapper.codes": torch.zeros(4, 5, 2)}
    parameter = nn.Parameter(torch.zeros(3, 5, 2))
    grow({"state_dict": weights}, {"mapper.codes": parameter}, [parameter])
    assert weights["mapper.codes"].shape == (4, 5, 2)
