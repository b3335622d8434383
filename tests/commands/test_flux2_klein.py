"""A run on a miniature of FLUX.2 klein, through the command line."""

from __future__ import annotations

import json

import pytest
import torch

import tiny_klein


@pytest.fixture(scope="module")
def klein(tmp_path_factory) -> tuple[str, ...]:
    from diffusers import Flux2KleinPipeline

    folder = tmp_path_factory.mktemp("klein")
    Flux2KleinPipeline(**tiny_klein.components()).save_pretrained(folder)
    return (
        "backbone=flux2_klein",
        f"backbone.source={folder}",
        "backbone.resolution=32",
        "backbone.dtype=float32",
        "backbone.text_layers=[1,2,3]",
        "backbone.text_length=64",
        "prior.weight=0",
    )


def trained(run, step):
    content = torch.load(run / "checkpoints" / f"step={step:06d}.ckpt", weights_only=True)
    return {name: value.numpy().tobytes() for name, value in content["state_dict"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("inject", ["before", "after"])
def test_continued_is_the_same_to_the_bit(klein, new_workshop, plain, inject):
    settings = (*klein, *plain, f"method.tokens.inject={inject}", "optim.lora_lr=0.01", "lora.scope=all")
    whole = new_workshop().train(*settings)
    workshop = new_workshop()
    half = workshop.train(*settings, "trainer.max_steps=2")
    ended = workshop("train", *settings, f"ckpt_path={half}")
    assert ended.code == 0, ended.out
    expected = trained(whole, 4)
    assert expected == trained(half, 4) and expected != trained(half, 2)
    assert {name.split(".")[0] for name in expected} == {"backbone", "method"}
    assert all(".lora_" in name for name in expected if name.startswith("backbone.transformer."))


@pytest.mark.slow
def test_a_whole_run(klein, workshop):
    run = workshop.train(*klein, "lora.rank=2")
    scores = json.loads((run / "scores.json").read_text())
    assert scores["eval/emr@reconstruction"] >= 0
    drawn = workshop("generate", f"run={run}", "prompt=a photo of a <part1:1>", "sample.steps=1", "num_images=1")
    assert drawn.code == 0, drawn.out


@pytest.mark.slow
def test_editing_is_scored_without_training(klein, workshop):
    run = workshop.train(*klein, "method=edit_references", "method.reference_size=32", "eval.untrained=0")
    scores = json.loads((run / "scores.json").read_text())
    assert "eval/emr@2_species" in scores and not any(key.startswith("untrained/") for key in scores)
    assert json.loads((run / "costs.json").read_text())["trainable_parameters"] == 0
    assert not list((run / "checkpoints").glob("*.ckpt"))
