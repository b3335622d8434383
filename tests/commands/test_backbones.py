"""A whole run with the other kind of backbone, by the command line alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from PIL import Image

from partcraft_lit.callbacks.metrics_log import read_metrics


@pytest.fixture(scope="module")
def workshop(new_workshop, tiny_sdxl_folder):
    made = new_workshop()
    others = tuple(argument for argument in made.arguments if not argument.startswith("backbone"))
    chosen = ("backbone=sdxl", "backbone.resolution=32", f"backbone.source={tiny_sdxl_folder}", "lora.scope=all")
    return dataclasses.replace(made, arguments=(*others, *chosen))


@pytest.fixture(scope="module")
def run(workshop):
    return workshop.train("eval.enabled=false", "~callbacks.attention_maps", "trainer.max_steps=2")


def test_training(run):
    curves = read_metrics(run / "metrics.jsonl")
    assert [step for step, _ in curves["train/loss"]] == [0, 1]
    assert all(value > 0 for _, value in curves["train/loss_attn"])
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["frozen"]["backbone"] == "sdxl"
    state = content["state_dict"]
    assert all("lora_" in name or name.startswith("method.mapper.") for name in state)
    assert any("attn1" in name for name in state) and any("attn2" in name for name in state)
    assert state["method.mapper.codes"].shape[-1] == 32 + 48
    assert (run / "samples" / "step_000000.png").is_file() and (run / "report.html").is_file()


def test_generating(run, workshop, tmp_path):
    ended = workshop(
        "generate", "prompt=a photo of a <part1:0> bird", "num_images=2", "sample.steps=1", f"run={run}",
        "sample.negative_prompt=a dog", f"output_dir={tmp_path}",
    )  # fmt: skip
    assert ended.code == 0, ended.out
    with Image.open(tmp_path / "000001.png") as image:
        assert image.size == (32, 32)


def test_evaluating(run, workshop):
    counts = ("eval.reconstructions=2", "eval.compositions=2", "eval.species=[2]", "eval.ceiling_images=2")
    ended = workshop("evaluate", *counts, "sample.steps=1", f"run={run}")
    assert ended.code == 0, ended.out
    (scores,) = filter(None, (json.loads(path.read_text()) for path in run.rglob("scores.json")))
    assert 0 <= scores["eval/emr@reconstruction"] <= 1
