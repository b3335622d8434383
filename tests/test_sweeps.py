"""The files for ``wandb sweep``: what its agent would start composes, and searches for what runs log."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from partcraft_lit.commands import train
from partcraft_lit.config import compose as config

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


def ends(parameter: dict) -> list:
    """The values of a grid, or the ends of a range."""
    return parameter.get("values") or [parameter["min"], parameter["max"]]


def commands(sweep: dict) -> list[list[str]]:
    """As the agent builds them; every value of every parameter is in one."""
    names, values = sweep["parameters"].keys(), [ends(parameter) for parameter in sweep["parameters"].values()]
    longest = max(map(len, values))
    rows = zip(*(list(itertools.islice(itertools.cycle(some), longest)) for some in values), strict=True)
    built = []
    for row in rows:
        args = create_sweep_command_args({"args": {name: {"value": v} for name, v in zip(names, row, strict=True)}})
        filled = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"], "${program}": [sweep["program"]]}
        filled["${args_no_hyphens}"] = args["args_no_hyphens"]
        built.append(
            [word for part in create_sweep_command(list(sweep["command"])) for word in filled.get(part, [part])]
        )
    return built


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_commands_of_the_agent_compose(path):
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    made = []
    for command in commands(sweep):
        assert command[:3] == ["/usr/bin/env", "python", "train.py"]
        values = config.plain(config.compose("train", command[3:]))
        train.check(values)
        made.append(values["loss"]["lambda_attn"])
    wanted = sweep["parameters"]["loss.lambda_attn"]
    assert set(ends(wanted)) <= set(made)


def test_a_search_goes_by_a_metric_that_its_runs_log():
    sweep = yaml.safe_load((ROOT / "sweeps" / "search.yaml").read_text(encoding="utf-8"))
    assert sweep["metric"] == {"name": "live/best", "goal": "maximize"}
    assert "callbacks=live" in sweep["command"]
    assert sweep["early_terminate"]["type"] == "hyperband"
