"""A run of Stable Diffusion with part vectors behind the text encoder: drawn from, scored, exported for diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def run(new_workshop, plain) -> Path:
    return new_workshop().train(*plain, "method.tokens.inject=after", "method.tokens.fill=bird")


def test_it_draws_and_is_scored(run, new_workshop):
    workshop = new_workshop()
    drawn = workshop("generate", f"run={run}", "prompt=a photo of a <1:0>*1.5 bird", "num_images=1", "sample.steps=1")
    assert drawn.code == 0, drawn.out
    scored = workshop("evaluate", f"run={run}")
    assert scored.code == 0, scored.out


def test_layers_of_a_unet_are_ranked(run, new_workshop):
    ended = new_workshop()("evaluate", f"run={run}", "layers=true", "layer_images=2")
    assert ended.code == 0, ended.out
    lines = (run / "evaluation" / "attention_layers.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "layer,target,side,auc,iou,inside,read"
    assert all(".attn2,probabilities," in line for line in lines[1:]) and len(lines) > 2
    assert "AUC" in ended.out
    words = new_workshop()("evaluate", f"run={run}", "layers=true", "layer_images=2", "layer_words=true")
    assert words.code == 0, words.out
    assert (run / "evaluation" / "attention_layers.csv").read_text(encoding="utf-8").splitlines()[1:] != lines[1:]


def test_an_export_for_diffusers_gives_back_what_was_trained(run, new_workshop, tmp_path):
    workshop, output = new_workshop(), tmp_path / "export"
    refused = workshop("export", f"run={run}", "to=[diffusers,comfyui]")
    assert refused.code == 2 and "comfyui cannot draw with this run: it puts its part vectors behind" in refused.out
    ended = workshop("export", f"run={run}", "to=[diffusers]", f"output_dir={output}", "check.steps=2")
    assert ended.code == 0, ended.out
    checks = json.loads((output / "export.json").read_text(encoding="utf-8"))["checks"]
    assert checks["text"] < 1e-5 and checks["image"] < 0.5
    readme = (output / "diffusers" / "README.md").read_text(encoding="utf-8")
    assert "behind the text encoder" in readme and "prompt_embeds=embeds" in readme
