from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones import sampling
from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.backbones.sampling import (
    SCHEDULERS,
    guidance_rescale,
    initial_noise,
    make_scheduler,
    rescale_noise_cfg,
    sample,
)
from partcraft_lit.backbones.stable_diffusion import StableDiffusion
from partcraft_lit.backbones.text import plain_tokens
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import PartToken


@pytest.fixture
def tokens(tiny_tokenizer):
    return plain_tokens([tiny_tokenizer], ["a photo of a bird", "a red dog", "a bird"])


def difference(one, other):
    return (one.int() - other.int()).abs().max().item()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_are_a_function_of_prompt_and_seed(tiny_backbone, tokens, tiny_tokenizer, scheduler):
    def draw(rows, seeds, batch_size=None):
        return sample(tiny_backbone, rows, None, seeds=seeds, steps=2, scheduler=scheduler, batch_size=batch_size)

    images = draw(tokens, [1, 2, 3])
    assert images.shape == (3, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert images.float().std() > 1
    assert torch.equal(draw(tokens, [1, 2, 3]), images)
    for batch_size in (1, 2):
        # a level of rounding is allowed: matrix products of other sizes may sum in another order
        assert difference(draw(tokens, [1, 2, 3], batch_size), images) <= 1
    alone = draw(plain_tokens([tiny_tokenizer], ["a red dog"]), [2])
    assert difference(alone[0], images[1]) <= 1
    assert difference(draw(tokens, [1, 9, 3])[1], images[1]) > 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_equals_the_pipeline_of_diffusers(make_components, tokens, prediction_type):
    """An independent implementation of guidance and of the order of steps."""
    from diffusers import StableDiffusionPipeline

    components = make_components(prediction_type=prediction_type)
    backbone = StableDiffusion(name="tiny", **components, resolution=32)
    for name in ("ddim", "dpm++", "dpm++_trailing", "unipc", "euler"):
        components["scheduler"] = make_scheduler(backbone.noise_scheduler, name)
        pipeline = StableDiffusionPipeline(
            **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        noise = initial_noise(backbone, [torch_generator(seed, "sample") for seed in (4, 5, 6)])
        theirs = pipeline(
            ["a photo of a bird", "a red dog", "a bird"], negative_prompt=["a cat"] * 3, latents=noise.clone(),
            num_inference_steps=4, guidance_scale=5.0, output_type="pt", height=32, width=32,
        ).images  # fmt: skip
        negative = plain_tokens(backbone.tokenizers, ["a cat"])
        ours = sample(
            backbone, tokens, None, negative_tokens=negative, seeds=[4, 5, 6], steps=4, guidance_scale=5.0,
            scheduler=name,
        )  # fmt: skip
        assert difference(ours, (theirs * 255).round().to(torch.uint8)) <= 1, name


def test_a_model_whose_schedule_ends_in_noise_is_rescaled_as_diffusers_does_it(make_components, tokens):
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    components = make_components(prediction_type="v_prediction")
    own = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    components["scheduler"] = DDPMScheduler.from_config(components["scheduler"].config, **own)
    backbone = StableDiffusion(name="tiny", **components, resolution=32)
    assert guidance_rescale(backbone.noise_scheduler) == 0.7
    components["scheduler"] = make_scheduler(backbone.noise_scheduler, "ddim")
    pipeline = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = initial_noise(backbone, [torch_generator(seed, "sample") for seed in (4, 5, 6)])
    given = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "pt", "height": 32, "width": 32}
    prompts = ["a photo of a bird", "a red dog", "a bird"]
    theirs, plain = (
        pipeline(prompts, latents=noise.clone(), guidance_rescale=rescale, **given).images for rescale in (0.7, 0.0)
    )
    ours = sample(backbone, tokens, None, seeds=[4, 5, 6], steps=4, guidance_scale=5.0, scheduler="ddim")
    assert difference(ours, (theirs * 255).round().to(torch.uint8)) <= 1
    assert difference(ours, (plain * 255).round().to(torch.uint8)) > 1


def test_rescaling_by_hand():
    cond, guided = torch.randn(2, 4, 3, 3), 3 * torch.randn(2, 4, 3, 3)
    assert torch.equal(rescale_noise_cfg(guided, cond, 0.0), guided)
    whole = rescale_noise_cfg(guided, cond, 1.0)
    assert_close(whole.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))
    assert_close(rescale_noise_cfg(guided, cond, 0.25), 0.75 * guided + 0.25 * whole)


def test_default_negative_is_the_empty_prompt_and_one_serves_all(tiny_backbone, tokens, tiny_tokenizer):
    def draw(negative):
        return sample(tiny_backbone, tokens, None, negative_tokens=negative, seeds=[1, 2, 3], steps=2)

    plain = draw(None)
    assert torch.equal(draw(plain_tokens([tiny_tokenizer], [""])), plain)
    assert torch.equal(draw(plain_tokens([tiny_tokenizer], [""] * 3)), plain)
    assert not torch.equal(draw(plain_tokens([tiny_tokenizer], ["a red robot"])), plain)


def test_scale_one_is_no_guidance_and_zero_is_the_negative_prompt_alone(tiny_backbone, tokens, tiny_tokenizer):
    def draw(prompts, negative, scale):
        return sample(
            tiny_backbone, prompts, None, negative_tokens=negative, seeds=[1, 2, 3], steps=2, guidance_scale=scale
        )

    other = plain_tokens([tiny_tokenizer], ["a blue cat"] * 3)
    assert torch.equal(draw(tokens, None, 1.0), draw(tokens, other, 1.0))
    assert difference(draw(tokens, other, 0.0), draw(other, tokens, 1.0)) <= 1


def test_a_prompt_of_several_images_is_encoded_once(tiny_backbone, tokens, tiny_tokenizer, monkeypatch):
    expected = sample(
        tiny_backbone,
        plain_tokens([tiny_tokenizer], ["a red dog", "a bird", "a red dog"]),
        None,
        seeds=[1, 2, 3],
        steps=2,
    )
    encoded = []
    encode = StableDiffusion.encode_prompts
    monkeypatch.setattr(
        StableDiffusion,
        "encode_prompts",
        lambda self, rows, *others: encoded.append(len(rows.part_positions)) or encode(self, rows, *others),
    )
    images = sample(tiny_backbone, tokens, None, seeds=[1, 2, 3], prompt_of=[1, 2, 1], steps=2, batch_size=2)
    assert difference(images, expected) <= 1
    assert encoded == [3, 1]  # the prompts, and the absence of one
    for wrong in ([0, 1], [0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match="prompt_of must name one of 3 prompts for each of 3 seeds"):
            sample(tiny_backbone, tokens, None, seeds=[1, 2, 3], prompt_of=wrong, steps=2)


def test_guidance_costs_one_forward_of_double_batch_per_step(tiny_backbone, tokens, monkeypatch):
    sizes = []
    denoise = StableDiffusion.denoise

    def count(self, latents, timesteps, conditioning):
        sizes.append((len(latents), len(timesteps), len(conditioning.encoder_hidden_states)))
        return denoise(self, latents, timesteps, conditioning)

    monkeypatch.setattr(StableDiffusion, "denoise", count)
    sample(tiny_backbone, tokens, None, seeds=[1, 2, 3], steps=3, batch_size=2)
    assert sizes == [(4, 4, 4)] * 3 + [(2, 2, 2)] * 3
    sizes.clear()
    sample(tiny_backbone, tokens, None, seeds=[1, 2, 3], steps=3, guidance_scale=1.0)
    assert sizes == [(3, 3, 3)] * 3


def test_part_vectors_are_used_also_in_the_negative_prompt(tiny_backbone, make_tokens):
    with_part = make_tokens([["a", PartToken(1, 0)]])

    def draw(seed, negative=None):
        vectors = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(seed))
        if negative:
            plain = make_tokens([["a bird"]])
            return sample(
                tiny_backbone, plain, None, negative_tokens=with_part, negative_vectors=vectors, seeds=[0], steps=2
            )
        return sample(tiny_backbone, with_part, vectors, seeds=[0], steps=2)

    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(draw(0, negative=True), draw(1, negative=True))
    with pytest.raises(ValueError, match="vectors are needed"):
        sample(tiny_backbone, with_part, None, seeds=[0], steps=1)


def test_noise_is_standard_normal_and_of_the_seed_alone(tiny_backbone):
    noise = initial_noise(tiny_backbone, [torch_generator(seed, "sample") for seed in range(40)])
    assert noise.shape == (40, 4, 16, 16)
    assert_close(noise.mean(), torch.zeros(()), atol=0.02, rtol=0)
    assert_close(noise.std(), torch.ones(()), atol=0.02, rtol=0)
    assert torch.equal(initial_noise(tiny_backbone, [torch_generator(7, "sample")])[0], noise[7])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_take_over_the_model_s_schedule_and_never_clip(make_components, name):
    backbone = StableDiffusion(name="v", **make_components(prediction_type="v_prediction"))
    scheduler = make_scheduler(backbone.noise_scheduler, name)
    assert scheduler.config.prediction_type == "v_prediction"
    assert_close(scheduler.betas, backbone.noise_scheduler.betas)
    assert not scheduler.config.get("clip_sample", False)
    assert not scheduler.config.get("thresholding", False)
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) == 5


def test_leaves_no_trace(each_fresh_backbone):
    """Neither gradients nor modes nor the global random state."""
    fresh_backbone = each_fresh_backbone
    tokens = plain_tokens(fresh_backbone.tokenizers, ["a photo of a bird", "a red dog", "a bird"])
    add_lora(fresh_backbone.unet)
    fresh_backbone.train()
    state = torch.random.get_rng_state()
    images = sample(fresh_backbone, tokens, None, seeds=[1, 2, 3], steps=2, scheduler="ddpm")
    assert not images.requires_grad
    assert fresh_backbone.unet.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in fresh_backbone.parameters())


def test_no_images():
    class Backbone:
        resolution = 32
        noise_scheduler = type("Scheduler", (), {"config": type("Config", (), {"num_train_timesteps": 1000})})

    none = torch.zeros(0, 0)
    assert sample(Backbone(), sampling.TokenizedPrompts((), none, none, none), None, seeds=[]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheduler": "dpmpp"}, r"scheduler='dpmpp' is unknown\. Did you mean 'd"),
        ({"steps": 0}, "steps=0: it must be between 1 and 1000"),
        ({"steps": 1001}, "steps=1001"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_messages(tiny_backbone, tokens, settings, message):
    with pytest.raises(UserError, match=message):
        sample(tiny_backbone, tokens, None, seeds=[1, 2, 3], **settings)


def test_counts_must_match(tiny_backbone, tokens, tiny_tokenizer):
    with pytest.raises(ValueError, match="3 prompts and 2 seeds"):
        sample(tiny_backbone, tokens, None, seeds=[1, 2])
    negative = plain_tokens([tiny_tokenizer], ["a", "b"])
    with pytest.raises(ValueError, match="2 negative prompts for 3 prompts"):
        sample(tiny_backbone, tokens, None, negative_tokens=negative, seeds=[1, 2, 3])
