"""What is different about SDXL. What it shares with the others is tested with each kind in the other files."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones.latent_diffusion import choose_attention_layers
from partcraft_lit.backbones.lora import add_lora, lora_targets
from partcraft_lit.backbones.sampling import initial_noise, make_scheduler, sample
from partcraft_lit.backbones.stable_diffusion_xl import StableDiffusionXL
from partcraft_lit.backbones.text import plain_tokens
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import Backbone, PartToken

PROMPTS = ["a photo of a bird", "a red dog", "a bird"]


def as_backbone(backbone: StableDiffusionXL) -> Backbone:
    """For the type checker: the class fits the protocol."""
    return backbone


@pytest.fixture
def pipeline(make_components_xl):
    from diffusers import StableDiffusionXLPipeline

    made = StableDiffusionXLPipeline(**make_components_xl(), add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


def test_facts_about_the_model(tiny_backbone_xl):
    assert tiny_backbone_xl.token_widths == (32, 48)
    assert tiny_backbone_xl.attention_size == 8
    assert tiny_backbone_xl.attention_layers == tuple(
        f"{block}.transformer_blocks.{index}.attn2"
        for block in (
            "down_blocks.1.attentions.0",
            "mid_block.attentions.0",
            "up_blocks.0.attentions.0",
            "up_blocks.0.attentions.1",
        )
        for index in range(2)
    )


def test_text_equals_the_pipeline_s(tiny_backbone_xl, pipeline):
    conditioning = tiny_backbone_xl.encode_prompts(plain_tokens(tiny_backbone_xl.tokenizers, PROMPTS), None)
    expected, no_prompt, pooled, no_pooled = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
    assert torch.equal(conditioning.encoder_hidden_states, expected)
    assert torch.equal(conditioning.pooled_prompt_embeds, pooled)
    assert conditioning.encoder_hidden_states.shape == (3, 77, 32 + 48)
    absent = tiny_backbone_xl.encode_unconditional()
    assert torch.equal(absent.encoder_hidden_states, no_prompt[:1]) and not no_prompt.any()
    assert torch.equal(absent.pooled_prompt_embeds, no_pooled[:1])


def test_a_model_may_take_the_empty_prompt_for_none(make_components_xl):
    backbone = StableDiffusionXL(name="xl", **make_components_xl(), force_zeros_for_empty_prompt=False)
    empty = backbone.encode_prompts(plain_tokens(backbone.tokenizers, [""]), None)
    absent = backbone.encode_unconditional()
    assert torch.equal(absent.encoder_hidden_states, empty.encoder_hidden_states)
    assert torch.equal(absent.pooled_prompt_embeds, empty.pooled_prompt_embeds)
    assert absent.encoder_hidden_states.any()


@pytest.mark.parametrize("negative", [None, "a cat"])
def test_pictures_equal_the_pipeline_s(tiny_backbone_xl, pipeline, negative):
    """An independent implementation of guidance, of the absence of a prompt and of the six numbers."""
    pipeline.scheduler = make_scheduler(tiny_backbone_xl.noise_scheduler, "ddim")
    noise = initial_noise(tiny_backbone_xl, [torch_generator(seed, "sample") for seed in (4, 5, 6)])
    theirs = pipeline(
        PROMPTS, negative_prompt=None if negative is None else [negative] * 3, latents=noise.clone(),
        num_inference_steps=3, guidance_scale=5.0, output_type="pt", height=32, width=32,
    ).images  # fmt: skip
    ours = sample(
        tiny_backbone_xl,
        plain_tokens(tiny_backbone_xl.tokenizers, PROMPTS),
        None,
        negative_tokens=None if negative is None else plain_tokens(tiny_backbone_xl.tokenizers, [negative]),
        seeds=[4, 5, 6],
        steps=3,
        guidance_scale=5.0,
        scheduler="ddim",
    )
    assert (ours.int() - (theirs * 255).round().int()).abs().max() <= 1


def test_each_encoder_gets_its_share_of_the_part_vectors(tiny_backbone_xl, make_tokens):
    """A word's own two embeddings as part vector give what the word gives."""
    tokenizers = tiny_backbone_xl.tokenizers
    tokens = make_tokens([["a photo of a", PartToken(1, 0), "bird"]], tokenizers=tokenizers)
    red = tokenizers[0].convert_tokens_to_ids("red</w>")
    tables = [encoder.get_input_embeddings().weight for encoder in tiny_backbone_xl.text_encoders]
    vectors = torch.cat([table[red] for table in tables])[None, None]
    assert vectors.shape == (1, 1, 80)
    ours = tiny_backbone_xl.encode_prompts(tokens, vectors)
    words = tiny_backbone_xl.encode_prompts(plain_tokens(tokenizers, ["a photo of a red bird"]), None)
    assert torch.equal(ours.encoder_hidden_states, words.encoder_hidden_states)
    assert torch.equal(ours.pooled_prompt_embeds, words.pooled_prompt_embeds)


@pytest.mark.parametrize("eos", ["own", "as published"])
def test_the_pooled_embedding_is_read_at_the_end_of_the_text(fresh_backbone_xl, make_tokens, eos):
    """Tokens with ids above that of the end would shift it: published encoders look for the largest id (their settings
    say the end has id 2), and newly registered part tokens have larger ones."""
    encoder = fresh_backbone_xl.text_encoders[1]
    if eos == "as published":
        encoder.config.eos_token_id = encoder.text_model.eos_token_id = 2
    prompt = ["a", PartToken(1, 0), "bird", PartToken(2, 1)]
    tokens = make_tokens([prompt], tokenizers=fresh_backbone_xl.tokenizers)
    end = 5  # start, a, part, bird, part, end
    assert int(tokens.input_ids[1][0, end]) == fresh_backbone_xl.tokenizers[1].eos_token_id
    vectors = torch.randn(1, 2, 80, generator=torch.Generator().manual_seed(0))
    seen = {}
    layer = encoder.text_projection
    handle = layer.register_forward_pre_hook(lambda module, args: seen.update(pooled=args[0]))
    norm = encoder.text_model.final_layer_norm.register_forward_hook(lambda m, a, out: seen.update(states=out))
    pooled = fresh_backbone_xl.encode_prompts(tokens, vectors).pooled_prompt_embeds
    handle.remove()
    norm.remove()
    assert_close(seen["pooled"], seen["states"][:, end])
    assert_close(pooled, layer(seen["states"][:, end]))
    if eos == "as published":  # what the defect would do
        shifted = copy.deepcopy(tokens)
        shifted.input_ids[1][0, 4] = len(fresh_backbone_xl.tokenizers[1])
        with pytest.raises(IndexError):
            fresh_backbone_xl.encode_prompts(shifted, vectors)


def test_pooled_and_hidden_states_carry_gradients_to_both_shares(tiny_backbone_xl, make_tokens):
    tokens = make_tokens([["a", PartToken(1, 0)]], tokenizers=tiny_backbone_xl.tokenizers)
    vectors = torch.randn(1, 1, 80, generator=torch.Generator().manual_seed(0), requires_grad=True)
    conditioning = tiny_backbone_xl.encode_prompts(tokens, vectors)
    (pooled,) = torch.autograd.grad(conditioning.pooled_prompt_embeds.sum(), vectors, retain_graph=True)
    assert not pooled[..., :32].any() and pooled[..., 32:].all(), "the pooled embedding is the second encoder's"
    (hidden,) = torch.autograd.grad(conditioning.encoder_hidden_states.square().sum(), vectors)
    assert hidden[..., :32].all() and hidden[..., 32:].all()


def test_the_unet_is_told_of_sizes_and_crops(tiny_backbone_xl):
    tokens = plain_tokens(tiny_backbone_xl.tokenizers, ["a bird", "a dog"])
    whole = tiny_backbone_xl.encode_prompts(tokens, None)
    assert whole.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    crops = torch.tensor([[48, 1333, 0, 6], [32, 32, 0, 0]])
    cut = tiny_backbone_xl.encode_prompts(tokens, None, crops)
    assert cut.time_ids.tolist() == [[48, 1333, 0, 6, 32, 32], [32, 32, 0, 0, 32, 32]]
    assert cut.time_ids.dtype == torch.float32
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([10, 700])
    one, other = (tiny_backbone_xl.denoise(latents, timesteps, conditioning) for conditioning in (whole, cut))
    assert not torch.equal(one[0], other[0])
    assert_close(one[1], other[1])


def test_the_prediction_is_the_unet_s(tiny_backbone_xl, pipeline):
    conditioning = tiny_backbone_xl.encode_prompts(plain_tokens(tiny_backbone_xl.tokenizers, ["a bird"]), None)
    latents, timesteps = torch.randn(1, 4, 16, 16), torch.tensor([321])
    added = {
        "text_embeds": conditioning.pooled_prompt_embeds,
        "time_ids": torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]]),
    }
    expected = pipeline.unet(latents, timesteps, conditioning.encoder_hidden_states, added_cond_kwargs=added).sample
    assert_close(tiny_backbone_xl.denoise(latents, timesteps, conditioning), expected)


def test_half_precision_keeps_sizes_exact_and_the_vae_as_it_is_told(make_components_xl, make_tokens):
    backbone = StableDiffusionXL(
        name="half", **make_components_xl(), resolution=32, dtype="bfloat16", vae_dtype="float16"
    )
    assert {p.dtype for p in backbone.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for e in backbone.text_encoders for p in e.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in backbone.vae.parameters()} == {torch.float16}
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = backbone.encode_images(pixels)
    exact = StableDiffusionXL(name="full", **make_components_xl(), resolution=32)
    assert mean.dtype == std.dtype == backbone.decode_latents(mean).dtype == torch.float32
    assert_close(mean, exact.encode_images(pixels)[0], atol=2e-3, rtol=2e-2)
    assert {p.dtype for p in exact.vae.parameters()} == {torch.float32}
    tokens = make_tokens([["a", PartToken(1, 2)]], tokenizers=backbone.tokenizers)
    conditioning = backbone.encode_prompts(tokens, torch.zeros(1, 1, 80), torch.tensor([[1333, 999, 3, 5]]))
    assert conditioning.time_ids[0, :2].tolist() == [1333, 999], "bfloat16 would say 1336 and 1000"
    assert backbone.denoise(mean, torch.tensor([5]), conditioning).dtype == torch.float32


def test_parts_of_other_models_are_refused(make_components, make_components_xl):
    components = make_components_xl()
    small = {**components, "unet": make_components()["unet"]}
    with pytest.raises(UserError, match=r"reads text of width 32, .* give 32 \+ 48: this is not an SDXL base model"):
        StableDiffusionXL(name="xl", **small)
    components["unet"].register_to_config(addition_time_embed_dim=16)
    with pytest.raises(UserError, match=r"'text_time' of width 72; expected 'text_time' of 120"):
        StableDiffusionXL(name="xl", **components)


def test_the_hash_is_of_both_encoders(make_components_xl, tiny_backbone_xl):
    assert StableDiffusionXL(name="other name", **make_components_xl(), resolution=32).hash == tiny_backbone_xl.hash
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        components = make_components_xl()
        with torch.no_grad():
            next(components[part].parameters()).view(-1)[0] += 1e-3
        assert StableDiffusionXL(name="xl", **components, resolution=32).hash != tiny_backbone_xl.hash, part


# --- the published size, without weights ---


def test_sdxl_reads_the_60_maps_of_the_release(sdxl_unet):
    """16 x 16 at 512 px, 32 x 32 at 1024 px, the same layers: from the method's reference."""
    blocks = [*(f"down_blocks.2.attentions.{i}" for i in range(2)), "mid_block.attentions.0"]
    blocks += [f"up_blocks.0.attentions.{i}" for i in range(3)]
    wanted = tuple(f"{block}.transformer_blocks.{index}.attn2" for block in blocks for index in range(10))
    assert len(wanted) == 60
    assert choose_attention_layers(sdxl_unet, 512 // 8) == (16, wanted)
    assert choose_attention_layers(sdxl_unet, 1024 // 8) == (32, wanted)


def test_lora_on_all_attention_of_sdxl(sdxl_unet):
    """5.81 M at rank 4 in the reference; by hand: 140 attentions, each projection adds rank * (in + out)."""
    unet = copy.deepcopy(sdxl_unet)
    parameters = add_lora(unet, rank=4, scope="all")
    count = sum(parameter.numel() for parameter in parameters)
    by_hand = 0
    for width, layers in ((640, 2 * 2 + 3 * 2), (1280, 2 * 10 + 10 + 3 * 10)):
        own = 4 * (width + width)  # attn1: q, k, v, out
        cross = 2 * (width + width) + 2 * (2048 + width)  # attn2: q and out; k and v read the text
        by_hand += layers * 4 * (own + cross)
    assert count == by_hand
    assert round(count / 1e6, 2) == 5.81
    assert len(lora_targets(sdxl_unet, "cross")) == 70 * 4


def test_settings_of_sdxl_are_those_of_the_published_model(sdxl_unet):
    """Parameter counts of the published networks."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from partcraft_lit.backbones.model_configs import SDXL_BASE

    with torch.device("meta"):
        text = CLIPTextModelWithProjection(CLIPTextConfig(**SDXL_BASE["text_encoder_2"]))
    assert sum(p.numel() for p in sdxl_unet.parameters()) == 2_567_463_684
    assert sum(p.numel() for p in text.parameters()) == 694_659_840
