"""What a data set brings with it, and what depends on the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from partcraft_lit import cli
from partcraft_lit.commands import train
from partcraft_lit.config import cmdline, machine
from partcraft_lit.config import compose as config
from partcraft_lit.core.errors import UserError

PHOTOGRAPHS = ("cub", "dogs", "sims4_faces", "multi_concept", "folder", "imagefolder")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Every test asks the machine anew, which has neither a GPU nor a hub unless the test says so."""
    for name in ("HARDWARE", "FEATURES"):
        # Set first, so that what the code under test writes is undone as well.
        monkeypatch.setenv(f"PARTCRAFT_{name}", "")
        monkeypatch.delenv(f"PARTCRAFT_{name}")
    monkeypatch.setattr("hydra._internal.hydra.ConfigLoaderImpl", ConfigLoaderImpl)  # no copies of what was composed
    monkeypatch.setattr(machine, "_may_have_gpu", lambda: False)
    monkeypatch.setattr(machine, "hub_has", lambda repository, file: False)
    machine.take_notes()


def composed(*overrides):
    return config.plain(config.compose("train", list(overrides)))


def test_the_command_that_people_type_trains_sd15_as_the_paper_does(monkeypatch):
    monkeypatch.setattr(machine, "hub_has", lambda repository, file: True)
    values = composed("dataset=cub", "loss.lambda_attn=0.01")
    settings = train.check(values)
    assert "load_sd15" in values["backbone"]["_target_"] and values["backbone"]["resolution"] == 512
    assert settings.parts.features == "dinov2_base" and (settings.parts.M, settings.parts.K) == (5, 256)
    assert settings.data.batch_size == 2 and values["trainer"]["max_steps"] * 2 == 100 * 5994
    assert (settings.optim.lora_lr, settings.optim.mapper_lr, settings.lora.rank, settings.lora.scope) == (
        1e-4,
        1e-4,
        4,
        "cross",
    )
    assert values["trainer"]["accelerator"] == "auto" and settings.loss.lambda_attn == 0.01
    assert machine.take_notes() == ["hardware=auto: no GPU, so hardware=none"]


@pytest.mark.parametrize("dataset", PHOTOGRAPHS)
def test_every_photographic_data_set_brings_sd15_and_the_choice_on_the_command_line_wins(dataset):
    given = [f"dataset={dataset}", "dataset.dir=/x"]
    values = composed(*given)
    assert "load_sd15" in values["backbone"]["_target_"] and values["data"]["batch_size"] == 2
    assert values["parts"]["features"] == "efficientnet_lite0"  # no hub here
    mini = composed(*given, "backbone=mini", "parts.features=color", "trainer.max_steps=7", "hardware=8gb")
    assert "load_mini" in mini["backbone"]["_target_"] and mini["data"]["batch_size"] == 16
    assert (mini["trainer"]["max_steps"], mini["parts"]["features"]) == (7, "color")
    assert mini["hardware"]["max_batch_size"] == 1
    discovered = config.plain(config.compose("discover", given))
    assert discovered["parts"]["features"] == "efficientnet_lite0"


def test_train_alone_is_the_demo_with_the_method_of_the_paper_and_twice_the_steps():
    steps = machine.steps_here("cpu", 1200, 700)
    plain, demo = composed(), composed("experiment=demo", "method=partcraft", f"trainer.max_steps={steps}")
    assert plain == demo
    assert (plain["trainer"]["max_steps"], plain["data"]["batch_size"], plain["optim"]["mapper_lr"]) == (
        steps,
        16,
        1.6e-2,
    )
    assert composed("experiment=demo", "dataset=folder", "dataset.dir=/x")["data"]["batch_size"] == 16
    balanced = composed("experiment=demo")
    assert (balanced["method"]["name"], balanced["trainer"]["max_steps"]) == ("partcraft_balanced", 600)
    without = composed("recipe/miniature=none")
    assert (without["data"]["batch_size"], without["lora"]["rank"]) == (8, 4)


def test_features_without_a_hub_are_told_in_one_line(monkeypatch):
    assert machine.features_for("cub") == machine.features_for("dogs") == "efficientnet_lite0"
    assert machine.take_notes() == [
        "DINOv2 is neither in the cache nor within reach, so parts.features=efficientnet_lite0"
    ]
    assert machine.features_for("creatures") == "mini"


def test_what_is_missing_is_told_before_any_work_with_a_command_that_runs_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    typed = ["dataset=cub", "loss.lambda_attn=0.01", f"paths.data={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *typed])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and not Path("logs").exists()
    assert "'partcraft fetch dataset=cub' gets it" in said and "hf download stable-diffusion-v1-5/" in said
    assert "needs a GPU, and torch sees none: hardware=cpu" in said
    command = "partcraft train dataset=cub loss.lambda_attn=0.01"
    assert said.rstrip().endswith(f"{command} paths.data={tmp_path} backbone=mini parts.features=efficientnet_lite0")
    machine.check_start(composed("dataset=folder", "dataset.dir=/x", "backbone=mini"), [])


def test_training_sd15_without_a_gpu_has_to_be_asked_for(monkeypatch):
    monkeypatch.setattr(machine, "hub_has", lambda repository, file: True)
    given = ["dataset=folder", "dataset.dir=/x"]
    with pytest.raises(
        UserError, match=r"^dataset\.dir: there is no folder /x\. .* needs a GPU.* With the data set there"
    ):
        machine.check_start(composed(*given), given)
    machine.check_start(composed(*given, "hardware=cpu"), given)
    machine.check_start(composed(*given, "trainer=cpu"), given)
    monkeypatch.setattr(machine, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    machine.check_start(composed(*given, "hardware=none"), given)


@pytest.mark.parametrize(
    ("free", "preset"),
    [(None, "none"), (7.5, "8gb"), (3.0, "8gb"), (11.4, "12gb"), (15.5, "16gb"), (23.4, "24gb"), (79, "24gb")],
)
def test_auto_takes_the_preset_for_the_free_memory(monkeypatch, free, preset):
    monkeypatch.setattr(machine, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(machine, "free_gpu_gigabytes", lambda: free)
    assert cmdline.as_written("hardware=auto", False) == f"hardware={preset}"
    monkeypatch.setattr(machine, "free_gpu_gigabytes", lambda: 1.0)  # the first process has filled it by now
    assert cmdline.as_written("hardware=auto", False) == f"hardware={preset}"
    (note,) = machine.take_notes()
    assert f"so hardware={preset}" in note
    assert cmdline.as_written("hardware=12gb", False) == "hardware=12gb"


def test_free_memory_is_that_of_the_gpu_that_has_least(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((12 - index) * 10**9, 24 * 10**9))
    assert machine.free_gpu_gigabytes() == 11.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.free_gpu_gigabytes() is None


def test_auto_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(machine, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(machine, "free_gpu_gigabytes", lambda: 11.5)
    with pytest.raises(SystemExit):
        cli.main(["train", "hardware=auto", "backbone=sd15", "--cfg", "job"])
    shown = capsys.readouterr().out
    assert "hardware=auto: 11.5 GB of GPU memory are free, so hardware=12gb" in shown
    assert "max_batch_size: 2" in shown


def test_what_the_command_line_chose_is_not_commented_on(monkeypatch, capsys):
    monkeypatch.setattr(machine, "hub_has", lambda *_: False)
    for chosen, is_noted in (("parts.features=color", False), ("parts.K=3", True)):
        for name in ("HARDWARE", "FEATURES"):
            monkeypatch.delenv(f"PARTCRAFT_{name}", raising=False)
        with pytest.raises(SystemExit):
            cli.main(["discover", "dataset=folder", "dataset.dir=/nope", chosen])
        assert ("so parts.features=efficientnet_lite0" in capsys.readouterr().out) == is_noted


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_is_bfloat16_only_where_it_is_native(monkeypatch, native, precision):
    asked = []
    monkeypatch.setattr(machine, "_has_bfloat16", lambda accelerator: asked.append(accelerator) or native)
    for overrides in ([], ["experiment=arena"], ["experiment=arena_pair"]):
        assert composed(*overrides)["trainer"]["precision"] == precision
    given_as = cmdline.as_written("trainer.precision=auto", False)
    given = ("dataset=folder", "dataset.dir=/x", "trainer.accelerator=gpu")
    assert composed(*given, given_as)["trainer"]["precision"] == precision
    assert asked[-1] == "gpu" and set(asked[:-1]) == {"cpu"}
    assert composed("trainer.precision=32-true")["trainer"]["precision"] == "32-true"
    assert composed()["trainer"]["max_steps"] == (1200 if native else 700)
    assert composed("trainer.max_steps=9")["trainer"]["max_steps"] == 9
