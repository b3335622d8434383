"""The presets beyond the paper are PartCraft but for their pieces, and the paper's has none of these."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch.testing import assert_close

from partcraft_lit.config import compose as config
from partcraft_lit.tokens.feature_codes import CodeFeatures, starting_codes


def leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def of(*overrides: str) -> dict[str, Any]:
    return dict(leaves(config.plain(config.compose("train", list(overrides)))))


def changes(method: str, other: str) -> dict[str, Any]:
    """What the other preset sets otherwise."""
    before, after = of(f"method={method}"), of(f"method={other}")
    assert before.keys() == after.keys()
    return {key: after[key] for key in before if before[key] != after[key]}


def test_it_differs_from_partcraft_in_its_pieces_alone():
    assert changes("partcraft", "partcraft_features") == {
        "method.name": "partcraft_features",
        "mapper.init": "features",
        "loss.small_parts": 0.5,
    }


def test_the_balanced_one_differs_from_it_in_the_balance_alone():
    assert changes("partcraft_features", "partcraft_balanced") == {
        "method.name": "partcraft_balanced",
        "loss.balance": "area",
        "attention.entropy.balance": "area",
    }


def test_everything_beyond_the_paper_is_off_in_its_preset():
    for method in ("partcraft", "partcraft_released", "break_a_scene", "dreambooth"):
        values = of(f"method={method}", "backbone=sd15")
        assert [values[f"data.mix.{key}"] for key in ("recompose", "swap", "drop", "degrade")] == [0, 0, 0, 0]
        assert values["mapper.init"] == "random"
        assert (values["data.empty_captions"], values["data.timestep_shift"]) == (0, 1)
        assert (values["loss.small_parts"], values["loss.outlines"], values["loss.predictor"]) == (0, 1, 0)
        assert (values["loss.balance"], values["loss.lambda_end"]) == ("none", None)
        assert values["loss.attention_timesteps"] == "all"


def test_its_codes_start_from_the_centroids_of_the_dictionary(tools, fresh_backbone):
    module = tools.build(fresh_backbone, "method=partcraft_features", "seed=4")
    codes = module.method.mapper.codes
    expected = starting_codes(CodeFeatures(tools.centroids, (3, 3, 3)), codes.shape[2], 1.0, 4)
    for part, table in enumerate(expected):
        assert_close(codes[part], table, rtol=0, atol=0)


def test_paper_and_preset_begin_with_the_same_other_weights(tools, fresh_backbone):
    plain, beyond = (
        tools.build(copy.deepcopy(fresh_backbone), f"method={name}") for name in ("partcraft", "partcraft_features")
    )
    different = {
        name
        for (name, one), (_, other) in zip(plain.state_dict().items(), beyond.state_dict().items(), strict=True)
        if not one.equal(other)
    }
    assert different == {"method.mapper.codes"}
