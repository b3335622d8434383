from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

import tiny_klein
from partcraft_lit.backbones.flux2_klein import Flux2Klein, load_flux2_klein, patchify, unpatchify
from partcraft_lit.backbones.flux2_loading import count_bytes
from partcraft_lit.backbones.lora import add_lora, lora_layers, remove_lora
from partcraft_lit.backbones.sampling import initial_noise, sample
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import to_unit
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import PartToken

HEAD = PartToken(1, 3)
LENGTH = 48
PROMPTS = ["a photo of a red bird", "a striped robot"]


@pytest.fixture(scope="module")
def klein() -> Flux2Klein:
    """Shared: leave its weights, adapters and layers alone."""
    return tiny_klein.backbone()


@pytest.fixture
def fresh(klein) -> Flux2Klein:
    return copy.deepcopy(klein)


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import Flux2KleinPipeline

    made = Flux2KleinPipeline(**tiny_klein.components())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def draw(pipeline) -> Callable[..., torch.Tensor]:
    """The images of diffusers' own pipeline, uint8."""

    def images(latents, guidance_scale=4.0, steps=3, **options):
        made = pipeline(
            prompt=PROMPTS,
            height=32,
            width=32,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            latents=latents,
            max_sequence_length=LENGTH,
            text_encoder_out_layers=tiny_klein.LAYERS,
            output_type="pt",
            **options,
        ).images
        return (made * 255).round()

    return images


def noise_of(klein, seeds):
    return initial_noise(klein, [torch_generator(seed, "sample") for seed in seeds])


def test_sizes(klein):
    assert klein.vae_scale_factor == 4 and klein.latent_channels == 16
    assert klein.attention_size == 8 and klein.token_widths == (16,) and klein.context_widths == (48,)
    assert klein.attention_layers == ("single_transformer_blocks.0.attn",)
    assert len(klein.text_encoders[0].model.layers) == 4


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipeline(klein, draw, guidance_scale):
    seeds = [5, 6]
    tokens = klein.plain_tokens(PROMPTS)
    got = sample(klein, tokens, None, seeds=seeds, steps=3, guidance_scale=guidance_scale, scheduler="flow_euler")
    expected = draw(noise_of(klein, seeds), guidance_scale)
    assert (got.float() - expected).abs().max() <= 1
    assert (got[0] != got[1]).any()


def test_references_are_those_of_the_pipeline(klein, draw):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    shown = [torch.randint(0, 256, (3, side, 64), generator=generator, dtype=torch.uint8) for side in (64, 96)]
    latents = [klein.encode_images(to_unit(image[None]))[0] for image in shown]
    with klein.references(latents):
        got = sample(
            klein, klein.plain_tokens(PROMPTS), None, seeds=[5, 6], steps=2, guidance_scale=4.0, scheduler="flow_euler"
        )
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in shown]
    expected = draw(noise_of(klein, [5, 6]), steps=2, image=images)
    assert (got.float() - expected).abs().max() <= 1
    without = draw(noise_of(klein, [5, 6]), steps=2)
    assert (expected - without).abs().max() > 1, "they are seen"


def test_latents_are_normalised_patches(klein, pipeline):
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = klein.encode_images(pixels)
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, None)
    assert_close(mean, expected)
    assert std.shape == mean.shape == (2, 16, 8, 12) and (std > 0).all()
    raw = klein.vae.encode(pixels).latent_dist
    assert_close(klein.decode_latents(mean), klein.vae.decode(raw.mode()).sample, rtol=1e-4, atol=1e-4)


def test_patches_by_hand(pipeline):
    latents = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    assert patchify(latents)[0, :, 0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert torch.equal(patchify(latents), pipeline._patchify_latents(latents))
    assert torch.equal(unpatchify(patchify(latents)), latents)


def test_part_vectors_before_and_after_the_encoder(fresh):
    tokens = fresh.text_format([["a photo of a ", HEAD, " bird"]])
    for inject, width in (("before", 16), ("after", 48)):
        fresh.inject = inject
        vectors = torch.randn(1, 1, width, requires_grad=True)
        states = fresh.encode_prompts(tokens, vectors).encoder_hidden_states
        assert states.shape == (1, LENGTH, 48)
        changed = (states != fresh.encode_prompts(tokens, vectors * 2).encoder_hidden_states).any(dim=-1)[0]
        assert changed[: int(tokens.part_positions)].sum() == 0 and changed[int(tokens.part_positions)]
        latents, times = torch.randn(1, 16, 8, 8), torch.tensor([300.0])
        with fresh.capture_attention() as capture, capture.armed(tokens.part_positions):
            velocity = fresh.denoise(latents, times, fresh.encode_prompts(tokens, vectors))
            maps = capture.maps()
        assert velocity.shape == latents.shape and maps.shape == (1, 1, 8, 8)
        for value in (velocity.square().mean(), maps.sum()):
            (gradient,) = torch.autograd.grad(value, vectors, retain_graph=True)
            assert gradient.abs().sum() > 0


def test_the_word_states_are_those_behind_the_last_token(klein):
    states = klein.word_states(["bird", "dog"])
    assert states.shape == (2, 48) and (states[0] != states[1]).any()
    tokens = klein.plain_tokens(["a photo of a bird"])
    place = tiny_klein.tokenizer().convert_ids_to_tokens(tokens.input_ids[0][0].tolist()).index("Ġbird")
    assert_close(states[0], klein.encode_text(tokens, None).encoder_hidden_states[0, place])


def test_lora_scopes(fresh):
    cross, everything = fresh.lora_targets("cross"), fresh.lora_targets("all")
    assert cross == [f"transformer_blocks.{i}.attn.add_{x}_proj" for i in range(2) for x in "kv"]
    assert len(everything) == 2 * 8 + 2 * 2 and set(cross) < set(everything)
    assert [name for name, _ in fresh.cross_kv()] == [f"{name}.weight" for name in cross]


@pytest.mark.parametrize("scope", ["cross", "all"])
def test_an_untrained_adapter_changes_nothing_and_its_file_is_read_by_diffusers(fresh, pipeline, scope):
    from partcraft_lit.backbones.lora_files import to_diffusers

    arguments = (torch.randn(1, 16, 8, 8), torch.tensor([300.0]), fresh.encode_unconditional())
    with torch.no_grad():
        before = fresh.denoise(*arguments)
        trained = add_lora(fresh.denoiser, rank=2, alpha=4, scope=scope, seed=0, targets=fresh.lora_targets(scope))
        assert torch.equal(fresh.denoise(*arguments), before)
        for number, weight in enumerate(trained):
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
        changed = fresh.denoise(*arguments)
        assert (changed - before).abs().max() > 1e-3
    layers = lora_layers(fresh.denoiser)
    tensors = to_diffusers({"transformer": layers})
    other = copy.deepcopy(pipeline)
    other.load_lora_weights(tensors)
    read = lora_layers_named(other.transformer)
    assert read.keys() == layers.keys()
    for name, layer in layers.items():
        assert_close(read[name], layer.delta(), rtol=1e-5, atol=1e-6)
    remove_lora(fresh.denoiser)
    with torch.no_grad():
        assert torch.equal(fresh.denoise(*arguments), before)


def lora_layers_named(network):
    """Layer -> delta, of an adapter of any name."""
    return {
        name: part.get_delta_weight(next(iter(part.lora_A))).double()
        for name, part in network.named_modules()
        if getattr(part, "lora_A", None)
    }


def test_timesteps_are_shifted_as_in_the_pipeline(klein):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    scheduler = tiny_klein.scheduler()
    klein.set_timesteps(scheduler, 4, torch.device("cpu"))
    mu = torch.tensor(compute_empirical_mu(64, 4))
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25])
    assert_close(scheduler.sigmas[:4], mu.exp() / (mu.exp() + (1 / sigmas - 1)))


def test_heun_cannot_be_shifted(klein):
    with pytest.raises(UserError, match=r"sample\.scheduler=flow_euler"):
        sample(klein, klein.plain_tokens(["a"]), None, seeds=[1], steps=2, scheduler="flow_heun")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 30}, "multiple of 4 .* The nearest is 32"),
        ({"attention_layers": ["single_transformer_blocks.0.attnn"]}, "Did you mean"),
        ({"attention_layers": []}, "at least one layer"),
        ({"attention_size": 9}, "have a side of 8"),
        ({"text_layers": (1, 2)}, "2 layers of this text encoder give 32"),
        ({"transformer": tiny_klein.transformer(guidance_embeds=True)}, "FLUX.2 dev"),
        ({"transformer": tiny_klein.transformer(in_channels=8)}, "latents of 8 channels, the VAE gives 16"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tiny_klein.backbone(**changes)


def test_a_folder_is_loaded(klein, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = load_flux2_klein(
        tmp_path, resolution=32, text_layers=tiny_klein.LAYERS, text_length=LENGTH, dtype="float32"
    )
    assert loaded.hash == klein.hash
    tokens = klein.plain_tokens(PROMPTS)
    with torch.no_grad():
        assert torch.equal(
            loaded.encode_prompts(tokens, None).encoder_hidden_states,
            klein.encode_prompts(tokens, None).encoder_hidden_states,
        )
    (tmp_path / "transformer" / "config.json").unlink()
    with pytest.raises(UserError, match=r"transformer/config\.json missing"):
        load_flux2_klein(tmp_path)


def test_a_model_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"hf download black-forest-labs/FLUX\.2-klein-base-4B"):
        load_flux2_klein()
    with pytest.raises(UserError, match="No model at"):
        load_flux2_klein(tmp_path / "nowhere")


def test_too_little_memory_is_told_before_weights_are_read(pipeline, tmp_path, monkeypatch):
    from partcraft_lit.backbones import flux2_loading

    pipeline.save_pretrained(tmp_path)
    monkeypatch.setattr(flux2_loading, "_free_memory", lambda device: 1000.0)
    monkeypatch.setattr("diffusers.AutoencoderKLFlux2.from_pretrained", None)
    with pytest.raises(UserError, match=r"GB free\. backbone\.dtype=bfloat16 halves them"):
        load_flux2_klein(tmp_path, dtype="float32")


def test_full_size():
    """What klein-4B takes by its settings, from which memory is foretold; 28 of 36 layers of the encoder are kept."""
    transformer, encoder = tiny_klein.full_size()
    weights = [sum(p.numel() for p in network.parameters()) for network in (transformer, encoder)]
    assert [round(number / 1e9, 2) for number in weights] == [3.88, 4.02]
    layer = 2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128
    kept = 28 * layer + 151936 * 2560 + 2560
    sizes = [
        count_bytes(transformer.config, encoder.config, torch.bfloat16, bits, (9, 18, 27)) for bits in (None, "int8")
    ]
    assert sizes[0] == (2 * weights[0], 2 * kept)
    assert [round(number / 1e9, 1) for number in sizes[1]] == [3.9, 3.6]
    assert transformer.config.joint_attention_dim == 3 * encoder.config.hidden_size


def test_half_precision():
    made = tiny_klein.backbone(dtype=torch.bfloat16)
    assert made.dtype == torch.bfloat16
    images = sample(made, made.plain_tokens(PROMPTS), None, seeds=[5, 6], steps=2, scheduler="flow_euler")
    assert images.shape == (2, 3, 32, 32) and (images[0] != images[1]).any()


@pytest.mark.parametrize("inject", ["before", "after"])
def test_an_offloaded_text_encoder_stays_on_the_cpu(klein, inject):
    made = tiny_klein.backbone(offload_text_encoder=True)
    tokens = made.text_format([["a photo of a ", HEAD, " bird"]])
    vectors = torch.ones(1, 1, 16 if inject == "before" else 48)
    made.inject = klein.inject = inject
    try:
        expected = klein.encode_prompts(tokens, vectors).encoder_hidden_states
    finally:
        klein.inject = "before"
    made.to("meta")
    assert {p.device.type for p in made.text_encoders.parameters()} == {"cpu"} and made.device.type == "meta"
    assert torch.equal(made.encode_prompts(tokens, vectors).encoder_hidden_states, expected)
