"""What only a GPU can show: the same numbers as on the CPU, the same bytes twice, every method and model to its end.

``make test-gpu`` runs these, and takes the runs of other tests to the GPU too.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny_klein
import tiny_prx
from partcraft_lit.backbones.mini_dit import load_mini_dit
from partcraft_lit.backbones.sampling import sample
from partcraft_lit.backbones.stable_diffusion import load_mini
from partcraft_lit.callbacks.metrics_log import read_metrics
from partcraft_lit.world.pretrain import recipe
from workshop import STEPS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

GPU = ("trainer.accelerator=gpu", "trainer.devices=1")
#: Method -> what it needs on pictures without nouns.
METHODS = {
    "textual_inversion": (),
    "dreambooth": ("dataset.class_noun=bird", "prior.images=2", "prior.steps=1"),
    "dreambooth_lora": ("dataset.class_noun=bird", "prior.images=2", "prior.steps=1"),
    "custom_diffusion": ("dataset.class_noun=bird", "prior.images=2", "prior.steps=1"),
    "break_a_scene": ("dataset.class_noun=bird", "prior.images=2", "prior.steps=1"),
    "disendiff": (
        *("dataset.class_noun=bird", "prior.images=2", "prior.steps=1"),
        *("method.captions.background=false", "parts.names=[head,body]"),
    ),
    "partcraft": (),
    "partcraft_released": (),
    "partcraft_features": (),
    "partcraft_balanced": (),
}


def trained(run: Path) -> dict[str, bytes]:
    content = torch.load(run / "checkpoints" / f"step={STEPS:06d}.ckpt", weights_only=True, map_location="cpu")
    return {name: value.numpy().tobytes() for name, value in content["state_dict"].items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_is_scored_and_draws(new_workshop, method):
    workshop = new_workshop()
    run = workshop.train(*GPU, f"method={method}", *METHODS[method], "trainer.precision=bf16-mixed")
    assert any(key.startswith("eval/") for key in json.loads((run / "scores.json").read_text()))
    curve = read_metrics(run / "metrics.jsonl")["train/loss"]
    assert len(curve) == STEPS and all(0 < value < 100 for _, value in curve)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_has_the_losses_of_one_on_the_cpu_and_its_own_twice(new_workshop, plain, precision):
    # not its own bytes: two runs in float32 differed in the last bits on an H200
    settings = (*plain, f"trainer.precision={precision}")
    first, second = (new_workshop().train(*settings, *GPU) for _ in range(2))
    on_cpu = new_workshop().train(*settings, "trainer.accelerator=cpu", "trainer.devices=1")
    ours, again, expected = (dict(read_metrics(run / "metrics.jsonl")["train/loss"]) for run in (first, second, on_cpu))
    assert ours == pytest.approx(expected, rel=1e-3 if precision == "32-true" else 3e-2)
    assert ours == pytest.approx(again, rel=1e-5 if precision == "32-true" else 1e-2)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(new_workshop, plain):
    whole = new_workshop().train(*plain, *GPU)
    workshop = new_workshop()
    half = workshop.train(*plain, *GPU, f"trainer.max_steps={STEPS // 2}")
    ended = workshop("train", *plain, *GPU, f"ckpt_path={half}")
    assert ended.code == 0, ended.out
    assert trained(half) == trained(whole)


@pytest.mark.parametrize("load, scheduler", [(load_mini, "dpm++_trailing"), (load_mini_dit, "flow_euler")])
def test_images_are_those_of_the_cpu_up_to_rounding(load, scheduler):
    images = []
    for device in ("cpu", "cuda"):
        backbone = load(device=device)
        tokens = backbone.plain_tokens(["a photo of a bird with red head and blue wing"])
        given = {"seeds": [1, 2], "prompt_of": [0, 0], "steps": 8, "guidance_scale": 4.0}
        images.append(sample(backbone, tokens, None, scheduler=scheduler, **given).float())
    assert float((images[0] - images[1]).abs().mean()) < 1.0


def test_prx_trains(new_workshop, plain, tmp_path):
    pytest.importorskip("ftfy")
    given = (f"backbone.source={tiny_prx.save(tmp_path)}", "backbone.max_length=64", "method.tokens.fill=bird")
    run = new_workshop().train(*GPU, *plain, "backbone=prx", *given, "sample.steps=2")
    assert len(trained(run)) > 4


@pytest.mark.parametrize("quantize", ["null", "int8"])
def test_klein_trains_with_its_text_encoder_on_the_cpu(new_workshop, plain, tmp_path, quantize):
    from diffusers import Flux2KleinPipeline

    if quantize != "null":
        pytest.importorskip("torchao")
    Flux2KleinPipeline(**tiny_klein.components()).save_pretrained(tmp_path)
    given = (f"backbone.source={tmp_path}", "backbone.text_layers=[1,2,3]", "backbone.text_length=64", "prior.weight=0")
    kept = (f"backbone.quantize={quantize}", "backbone.offload_text_encoder=true", "method.tokens.inject=after")
    run = new_workshop().train(*GPU, *plain, "backbone=flux2_klein", *given, *kept)
    assert len(trained(run)) > 4


def test_pretraining_on_drawn_images_makes_the_same_bytes_twice(new_workshop, monkeypatch):
    monkeypatch.setattr(recipe, "SHEET_CAPTIONS", ("a photo of a bird",))
    found = []
    for _ in range(2):
        workshop = new_workshop()
        lengths = [f"{stage}.{key}" for stage in ("denoiser", "polish") for key in ("steps=3", "batch_size=8")]
        given = ("autoencoder.steps=2", "autoencoder.batch_size=4", "pool.images=64", "pool.workers=2", *GPU)
        ended = workshop("pretrain", *lengths, *given)
        assert ended.code == 0, ended.out
        (run,) = (workshop.root / "logs" / "pretrain" / "runs").iterdir()
        found.append(load_file(run / "weights" / "unet" / "diffusion_pytorch_model.safetensors"))
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())
