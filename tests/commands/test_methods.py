"""Methods through the command line, from images to a run that draws."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from partcraft_lit.data import prior as prior_module

DREAMBOOTH = ("method=dreambooth", "prior.images=2", "prior.steps=1", "trainer.max_steps=2")
#: Label maps then are as fine as the latents (16), not as the attention.
REGION = ("loss.region=prompted", "backbone.attention_size=8")


@pytest.mark.slow
def test_a_noun_that_is_not_known_is_asked_for_before_a_model_is_loaded(new_workshop, plain):
    ended = new_workshop()("train", "method=dreambooth", *plain, "backbone.source=/nowhere", "backbone.resolution=64")
    assert ended.code != 0 and "this one has none: set dataset.class_noun" in ended.out
    assert "nowhere" not in ended.out


@pytest.mark.parametrize("place", ("", "file.safetensors"))
def test_a_noun_of_several_tokens_is_told_before_a_network_is_loaded(
    new_workshop, plain, tiny_sd_folder, tmp_path, place
):
    shutil.copytree(tiny_sd_folder / "tokenizer", tmp_path / "tokenizer")  # there is nothing else to load
    (tmp_path / "file.safetensors").touch()
    given = ("method=disendiff", "parts.names=[axolotl,dog]", f"backbone.source={tmp_path / place}")
    ended = new_workshop()("train", *plain, *given)
    assert ended.code == 2 and "The noun 'axolotl' is 7 tokens to this model" in ended.out, ended.out


@pytest.mark.slow
def test_dreambooth_draws_its_prior_images_once_for_all_runs(new_workshop, plain, monkeypatch, tmp_path):
    drawn = []
    sample = prior_module.sample
    monkeypatch.setattr(prior_module, "sample", lambda *a, **k: drawn.append(k["seeds"]) or sample(*a, **k))
    workshop = new_workshop()
    own = ("dataset.class_noun=bird", f"paths.store={tmp_path}")  # other tests may have drawn such images
    run = workshop.train(*DREAMBOOTH, *REGION, *plain, *own)
    assert drawn == [[0, 1]]
    numbers = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss_prior" in line for line in numbers)
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert any(name.endswith("conv_in.weight") for name in state) and not any("lora" in name for name in state)
    ended = workshop("generate", "prompt=a photo of a <part1:0> bird", "num_images=1", "sample.steps=1")
    assert ended.code == 0, ended.out
    workshop.train(*DREAMBOOTH, *plain, *own, "seed=1")
    assert drawn == [[0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "name", "extra"),
    [
        ("textual_inversion", "concept", ()),
        ("dreambooth", "subject", ("method.tokens.init=[weird]", "prior.images=2", "prior.steps=1")),
    ],
)
def test_the_published_setting_with_one_concept(new_workshop, plain, experiment, name, extra):
    workshop = new_workshop()
    small = ("parts.M=1", "parts.K=1", f"parts.names=[{name}]", "trainer.max_steps=2", "dataset.class_noun=bird")
    run = workshop.train(f"experiment={experiment}", *small, *plain, *extra)
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    mapper = {key: value for key, value in content.items() if "mapper" in key}
    assert bool(mapper) == (experiment == "textual_inversion")
    ended = workshop("generate", f"prompt=a photo of a <{name}:0>", "num_images=1", "sample.steps=1")
    assert ended.code == 0, ended.out


@pytest.mark.slow
def test_codes_that_are_classes(new_workshop, plain):
    run = new_workshop().train("method=partcraft_released", "parts.codes=class", *plain, "trainer.max_steps=2")
    codes = json.loads((run / "parts" / "dictionary.json").read_text())
    assert codes["class_names"] == ["species 0", "species 1", "species 2"]
