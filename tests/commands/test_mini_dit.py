"""The miniature diffusion transformer: pretrained for two steps, loaded, trained on, and drawn from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from partcraft_lit.backbones.mini_dit import load_mini_dit, text_mask
from partcraft_lit.backbones.sampling import initial_noise, sample
from partcraft_lit.core.images import to_uint8
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.world.pretrain import dit


@pytest.fixture(scope="module")
def folder(new_workshop) -> Path:
    workshop = new_workshop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dit, "SHEET_CAPTIONS", ("a photo of a bird",))
        patch.setattr(dit, "_SHEET_STEPS", 1)
        given = ("pool.images=8", "pool.workers=1", "dit.steps=2", "dit.batch_size=2", "dit.precision=fp32")
        ended = workshop("pretrain", "stage=dit", *given)
    assert ended.code == 0, ended.out
    (run,) = (workshop.root / "logs" / "pretrain" / "runs").iterdir()
    assert (run / "checkpoints" / "samples.png").exists()
    return run / "weights"


def test_the_folder_is_the_model(folder):
    backbone = load_mini_dit(folder)
    assert (backbone.resolution, backbone.vae_scale_factor, backbone.attention_size) == (64, 4, 16)
    assert backbone.flow.density == "logit_normal" and backbone.flow.shift == dit.SHIFT
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 15e6


def test_the_mask_ends_with_the_text(folder):
    backbone = load_mini_dit(folder)
    tokens = backbone.plain_tokens(["a bird", ""])
    assert text_mask(tokens.input_ids[0], backbone.tokenizers[0].eos_token_id).sum(dim=1).tolist() == [4, 2]
    given = backbone.tokenizers[0](["a bird", ""], padding="max_length", max_length=77, return_tensors="pt")
    mask = backbone.encode_prompts(tokens, None).attention_mask
    assert torch.equal(mask, given.attention_mask.bool()), "as diffusers' pipeline masks it"


def test_a_sample_is_that_of_diffusers_pipeline(folder):
    pytest.importorskip("ftfy")
    from diffusers import PRXPipeline

    backbone = load_mini_dit(folder)
    pipeline = PRXPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = sample(
        backbone,
        backbone.plain_tokens(["a bird"]),
        None,
        seeds=[5],
        steps=2,
        guidance_scale=4.0,
        scheduler="flow_euler",
    )
    output = pipeline(
        "a bird",
        latents=initial_noise(backbone, [torch_generator(5, "sample")]),
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=4.0,
        use_resolution_binning=False,
        skip_text_cleaning=True,
        output_type="pt",
    ).images
    assert (drawn.int() - to_uint8(output * 2 - 1).int()).abs().max() <= 1


@pytest.mark.parametrize("inject", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_it_trains(folder, new_workshop, plain, inject):
    given = ("backbone=mini_dit", f"backbone.path={folder}", "backbone.resolution=64", "trainer.max_steps=2")
    own = (
        "hardware=none",
        "sample.scheduler=flow_euler",
        "callbacks.checkpoints.every_n_steps=2",
        "loss.lambda_attn=0.1",
    )
    workshop = new_workshop()
    workshop.arguments = tuple(text for text in workshop.arguments if not text.startswith("backbone"))
    run = workshop.train(*plain, *given, *own, f"method.tokens.inject={inject}", "method.tokens.fill=bird")
    content = torch.load(run / "checkpoints" / "step=000002.ckpt", weights_only=True)["state_dict"]
    assert any("txt_kv_proj.lora_B" in name and value.any() for name, value in content.items())


def test_missing_weights_are_told(new_workshop, tmp_path):
    workshop = new_workshop()
    workshop.arguments = tuple(text for text in workshop.arguments if not text.startswith("backbone"))
    ended = workshop("train", "backbone=mini_dit", f"backbone.path={tmp_path}", "backbone.resolution=64")
    assert ended.code == 2 and "is not a miniature diffusion transformer: transformer, vae" in ended.out, ended.out
