"""Configurations of a sweep, composed once per choice of groups, are those that Hydra composes one by one."""

from __future__ import annotations

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from composing import ComposedOnce
from partcraft_lit.config import sources
from partcraft_lit.config.loader import SharedLoader

GIVEN = (
    [],
    ["loss.lambda_attn=0.1", "seed=3"],
    ["seed=4", "loss.lambda_attn=0.01"],
    ["dataset=cub", "seed=1"],
    ["dataset=cub", "backbone=mini", "~callbacks.samples", "loss={lambda_attn: 2, snr_gamma: null}"],
    ["experiment=demo", "+loss_terms.tv={_target_: some.thing, weight: 0.1}", "hydra.sweep.dir=here"],
    [
        "parts.names=[a,'b c']",
        "+loss_terms.tv.weight=1",
        "++loss_terms.tv.weight=2",
        "dataset=folder",
        "dataset.dir='a b'",
    ],
    ["method=dreambooth", "method.tokens.init=[ktn]", "hydra.job.config.override_dirname.exclude_keys=[seed]"],
)


def hydras_own():
    return ConfigLoaderImpl(sources.loader("train").get_search_path())


@pytest.fixture
def both():
    """Loads one way and the other, one after another with the same loader."""
    plain, shared = hydras_own(), SharedLoader(hydras_own())

    def load(overrides):
        return [
            OmegaConf.to_yaml(loader.load_configuration("train", list(overrides), RunMode.RUN))
            for loader in (plain, shared)
        ]

    return load


@pytest.mark.parametrize("overrides", GIVEN)
def test_they_are_what_hydra_composes(overrides, both):
    for more in ([], ["seed=7"]):
        one, other = both([*overrides, *more] if not any(text.startswith("seed") for text in overrides) else overrides)
        assert one == other


def test_groups_are_composed_once_and_nothing_is_shared(monkeypatch):
    shared = SharedLoader(hydras_own())
    composed = []
    impl = SharedLoader._compose_config_from_defaults_list
    monkeypatch.setattr(
        SharedLoader, "_compose_config_from_defaults_list", lambda *a, **k: composed.append(1) or impl(*a, **k)
    )
    first, second = (shared.load_configuration("train", [f"seed={n}", "logger=none"], RunMode.RUN) for n in (1, 2))
    assert (first.seed, second.seed, len(composed)) == (1, 2, 1)
    first.loss.lambda_attn = 99
    assert second.loss.lambda_attn != 99
    assert shared.load_configuration("train", ["seed=3", "logger=csv"], RunMode.RUN).seed == 3
    assert len(composed) == 2


@pytest.mark.parametrize("overrides", [["loss.lamda=1"], ["seed=1,2"], ["+seed=1"]])
def test_mistakes_are_hydras(overrides):
    messages = []
    for loader in (hydras_own(), SharedLoader(hydras_own())):
        with pytest.raises(ConfigCompositionException) as raised:
            loader.load_configuration("train", list(overrides), RunMode.RUN)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_groups_of_folders_elsewhere_are_found(tmp_path, both):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n", encoding="utf-8")
    (tmp_path / "mine" / "a.yaml").write_text("b: 1\n", encoding="utf-8")
    one, other = both([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", "+mine=a", "loss.lambda_attn=1"])
    assert one == other and "b: 1" in one and "seed: 5" in one


def test_the_copies_that_tests_take_are_what_hydra_composes(tmp_path, monkeypatch):
    plain, copies = hydras_own(), ComposedOnce(hydras_own())
    sweep = ["seed=1,2", "logger=csv,none", "hydra.sweep.dir=c"]
    for mode in RunMode:
        for given in (
            ["seed=3"],
            ["hydra.run.dir='a b'", "seed=4"],
            ["logger=csv"],
            ["hydra.sweep.dir=c", "logger=csv"],
        ):
            monkeypatch.chdir(tmp_path if "seed=4" in given else tmp_path.parent)
            one, other = (each.load_configuration("train", given, mode) for each in (plain, copies))
            assert OmegaConf.to_yaml(one) == OmegaConf.to_yaml(other)
    for _ in range(2):
        one, other = (each.load_configuration("train", sweep, RunMode.MULTIRUN) for each in (plain, copies))
        assert OmegaConf.to_yaml(one) == OmegaConf.to_yaml(other)
