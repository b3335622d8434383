"""The preset is PartCraft but for its two pieces, and the paper's has none of what goes beyond it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from partcraft_lit.config import compose as config


def leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def of(*overrides: str) -> dict[str, Any]:
    return dict(leaves(config.plain(config.compose("train", list(overrides)))))


def test_it_differs_from_partcraft_in_its_pieces_alone():
    plain, remix = of("method=partcraft"), of("method=partcraft_remix")
    assert plain.keys() == remix.keys()
    assert {key: remix[key] for key in plain if plain[key] != remix[key]} == {
        "method.name": "partcraft_remix",
        "data.mix.recompose": 0.5,
        "data.timestep_shift": 4.0,
    }


def test_everything_beyond_the_paper_is_off_in_its_preset():
    for method in ("partcraft", "partcraft_released", "break_a_scene", "dreambooth"):
        values = of(f"method={method}", "backbone=sd15")
        assert [values[f"data.mix.{key}"] for key in ("recompose", "swap", "drop", "degrade")] == [0, 0, 0, 0]
        assert (values["data.empty_captions"], values["data.timestep_shift"]) == (0, 1)
        assert (values["loss.small_parts"], values["loss.outlines"], values["loss.predictor"]) == (0, 1, 0)
        assert (values["loss.balance"], values["loss.lambda_end"]) == ("none", None)
        assert values["loss.attention_timesteps"] == "all"
