"""PRX against diffusers' own pipeline and processors, at tiny widths, and its full-size shapes without weights."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch.testing import assert_close

import tiny_prx
from partcraft_lit.backbones.joint_attention import joint_token_probabilities
from partcraft_lit.backbones.lora import remove_lora
from partcraft_lit.backbones.prx import PRX, load_prx
from partcraft_lit.backbones.sampling import initial_noise, sample
from partcraft_lit.backbones.trainable_weights import set_trainable, trainable_groups
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import to_uint8
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import Backbone, PartToken

pytest.importorskip("ftfy")
LORA = {"rank": 2, "alpha": None, "scope": "cross", "seed": 0}
PROMPT = "a photo of a red bird"


def as_backbone(backbone: PRX) -> Backbone:
    """For the type checker: the class fits the protocol."""
    return backbone


@pytest.fixture(scope="module")
def shared() -> PRX:
    """Leave it alone."""
    return PRX(name="tiny prx", **tiny_prx.make_components(), resolution=tiny_prx.RESOLUTION)


@pytest.fixture
def prx(shared) -> PRX:
    return copy.deepcopy(shared)


@pytest.fixture
def pipeline(prx):
    from diffusers import PRXPipeline

    made = PRXPipeline(
        prx.transformer, prx.noise_scheduler, prx.text_encoders[0], prx.tokenizers[0], prx.vae, default_sample_size=256
    )
    made.set_progress_bar_config(disable=True)
    return made


def part_tokens(backbone: PRX, *prompts: list[str | PartToken]):
    return backbone.text_format(prompts)


def parts_of(tokens, width: int = 16, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((*tokens.part_positions.shape, width), generator=generator)


def test_sizes(shared):
    assert (shared.vae_scale_factor, shared.latent_channels, shared.attention_size) == (2, 4, 8)
    assert shared.attention_layers == ("blocks.1.attention", "blocks.2.attention"), "the middle half of four"
    assert shared.token_widths == shared.context_widths == (16,)
    assert shared.flow.shift == 3.0 and shared.flow.num_train_timesteps == 1000


def test_prompts_are_cleaned_tokenized_and_encoded_as_by_the_pipeline(prx, pipeline):
    prompts = ["A (Photo) of a RED bird!", "", "the cat   on my house"]
    tokens = prx.plain_tokens(prompts)
    ids, mask = pipeline._tokenize_prompts(prompts, torch.device("cpu"))
    assert torch.equal(tokens.input_ids[0], ids) and torch.equal(tokens.attention_mask, mask)
    embeds, wanted_mask, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    conditioning = prx.encode_prompts(tokens, None)
    assert torch.equal(conditioning.encoder_hidden_states, embeds)
    assert torch.equal(conditioning.attention_mask, wanted_mask)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_sample_is_the_pipeline_s(prx, pipeline, guidance_scale):
    """One at a time: that of several under guidance fails in diffusers 0.42."""
    tokens = part_tokens(prx, ["a photo of a ", PartToken(1, 2), " bird"])
    vectors = parts_of(tokens)
    settings = {"steps": 3, "guidance_scale": guidance_scale, "scheduler": "flow_euler"}
    drawn = sample(prx, tokens, vectors, seeds=[3, 4], prompt_of=[0, 0], **settings)
    conditioning = prx.encode_prompts(tokens, vectors)
    empty = prx.encode_unconditional()
    latents = initial_noise(prx, [torch_generator(3, "sample")])
    output = pipeline(
        prompt_embeds=conditioning.encoder_hidden_states,
        prompt_attention_mask=conditioning.attention_mask,
        negative_prompt_embeds=empty.encoder_hidden_states,
        negative_prompt_attention_mask=empty.attention_mask,
        latents=latents,
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        use_resolution_binning=False,
        output_type="pt",
    ).images
    assert (drawn[:1].int() - to_uint8(output * 2 - 1).int()).abs().max() <= 1
    assert not torch.equal(drawn[0], drawn[1])


def test_latents_of_both_kinds_of_vae():
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    lossless = PRX(name="dc", **tiny_prx.make_components(vae="AutoencoderDC"), resolution=32)
    mean, std = lossless.encode_images(pixels)
    assert_close(mean, lossless.vae.encode(pixels).latent * 0.41)
    assert not std.any(), "this encoder has no variance"
    assert_close(lossless.decode_latents(mean), lossless.vae.decode(mean / 0.41).sample)


def test_part_tokens_take_one_position_each_and_the_words_around_them_keep_their_ids(shared):
    tokenizer = shared.tokenizers[0]
    tokens = part_tokens(shared, ["A photo of a ", PartToken(1, 2), PartToken(2, 0, 0.5), " Bird"], [PartToken(0, 1)])
    words = [tokenizer.convert_ids_to_tokens(row) for row in tokens.input_ids[0].tolist()]
    blank = words[0][5]
    assert words[0][:9] == ["<bos>", "▁a"[1:], "▁photo", "▁of", "▁a", blank, blank, "▁bird", "<pad>"]
    assert tokens.part_positions.tolist() == [[5, 6], [1, -1]]
    assert tokens.part_ids.tolist() == [[1, 2], [0, -1]] and tokens.code_ids.tolist() == [[2, 0], [1, -1]]
    assert tokens.part_weights.tolist() == [[1.0, 0.5], [1.0, 1.0]]
    assert tokens.attention_mask.sum(dim=1).tolist() == [8, 2]
    filled = shared.text_format([["a ", PartToken(1, 0)]], fill="thing")
    assert tokenizer.convert_ids_to_tokens(int(filled.input_ids[0][0, 2])) == "▁thing"
    assert torch.equal(
        pickle.loads(pickle.dumps(shared.text_format))([["a bird"]]).input_ids[0][0, :3], words_of(shared)
    )


def words_of(backbone: PRX) -> torch.Tensor:
    return backbone.plain_tokens(["a bird"]).input_ids[0][0, :3]


def test_padding_on_the_left():
    components = tiny_prx.make_components()
    components["tokenizer"] = tiny_prx.make_tokenizer("left")
    backbone = PRX(name="left", **components, resolution=32)
    tokens = part_tokens(backbone, ["a ", PartToken(1, 0)])
    assert tokens.part_positions.tolist() == [[23]] and tokens.attention_mask[0].tolist() == [False] * 21 + [True] * 3


def test_half_precision_keeps_the_frequencies_of_positions():
    half = PRX(name="half", **tiny_prx.make_components(), resolution=32, dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and half.text_encoders[0].rotary_emb.inv_freq.dtype == torch.float32
    conditioning = half.encode_prompts(half.plain_tokens([PROMPT]), None)
    assert half.denoise(torch.randn(1, 4, 16, 16), torch.tensor([5.0]), conditioning).dtype == torch.float32


def test_a_prompt_that_is_too_long_is_refused(shared):
    with pytest.raises(UserError, match=r"takes 26 positions with its surroundings, and the text encoder has 24"):
        part_tokens(shared, ["bird " * 24, PartToken(1, 0)])
    with pytest.raises(UserError, match=r"'robot' is \d tokens to this model"):
        shared.text_format.word_id("robot")


# Attention.


def softmax_by_hand(query, key, mask):
    scores = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask[:, None, None, :], -float("inf")).softmax(dim=-1)


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 16, 8, generator=generator), torch.randn(2, 3, 21, 8, generator=generator)
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[1, 3:5] = False
    return query, key, mask, torch.tensor([[1, 4], [2, -1]])


@pytest.mark.parametrize("few", [False, True])
def test_columns_equal_a_full_softmax_and_so_do_their_gradients(states, few, monkeypatch):
    if few:
        monkeypatch.setattr("partcraft_lit.backbones.joint_attention._SCORES", 2 * 3 * 21 * 5)  # five queries at a time
    query, key, mask, positions = states
    query, key = query.requires_grad_(), key.requires_grad_()
    found = joint_token_probabilities(query, key, mask, positions)
    whole = softmax_by_hand(query, key, mask).mean(dim=1).transpose(1, 2).unflatten(2, (4, 4))
    wanted = torch.stack([whole[0, [1, 4]], torch.stack([whole[1, 2], torch.zeros(4, 4)])])
    assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)
    weights = torch.rand(found.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((found * weights).sum(), (query, key))
    theirs = torch.autograd.grad((wanted * weights).sum(), (query, key))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other.float(), atol=1e-6, rtol=1e-4)


def test_captured_columns_are_those_of_the_layers_and_outputs_stay(prx):
    tokens = part_tokens(prx, ["a ", PartToken(1, 0), " red ", PartToken(2, 1), " bird"], [PartToken(2, 2)])
    conditioning = prx.encode_prompts(tokens, parts_of(tokens))
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([300.0, 700.0])
    before = {name: layer.processor for name, layer in attentions(prx)}
    plain = prx.denoise(latents, timesteps, conditioning)
    capture = prx.capture_attention()
    with capture.armed(tokens.part_positions):
        captured = prx.denoise(latents, timesteps, conditioning)
    maps, layers = capture.maps(), capture.layer_maps()
    capture.remove()
    assert torch.equal(plain, captured)
    assert {name: layer.processor for name, layer in attentions(prx)} == before, "off: untouched"
    assert maps.shape == (2, 2, 8, 8) and tuple(layers) == prx.attention_layers
    assert not maps[1, 1].any() and (maps[0] > 0).all() and (maps.sum(dim=1) < 1).all(), "images are keys too"
    for name, layer_map in layers.items():
        assert_close(layer_map, whole_map(prx, name, latents, timesteps, conditioning, tokens), atol=1e-6, rtol=1e-4)


def attentions(backbone: PRX):
    return [(name, backbone.transformer.get_submodule(name)) for name in backbone._attentions()]


def whole_map(backbone: PRX, name: str, latents, timesteps, conditioning, tokens):
    """The full softmax of a layer's own inputs, by hand."""
    from diffusers.models.transformers.transformer_prx import apply_rope

    layer, found = backbone.transformer.get_submodule(name), {}
    handle = layer.register_forward_pre_hook(lambda module, args, kwargs: found.update(kwargs), with_kwargs=True)
    backbone.denoise(latents, timesteps, conditioning)
    handle.remove()
    image, text = found["hidden_states"], found["encoder_hidden_states"]
    heads = [part.unflatten(-1, (2, 8)).transpose(1, 2) for part in layer.img_qkv_proj(image).chunk(3, dim=-1)]
    text_key = layer.txt_kv_proj(text).chunk(2, dim=-1)[0].unflatten(-1, (2, 8)).transpose(1, 2)
    query = apply_rope(layer.norm_q(heads[0]), found["image_rotary_emb"])
    key = apply_rope(layer.norm_k(heads[1]), found["image_rotary_emb"])
    key = torch.cat([layer.norm_added_k(text_key), key], dim=2)
    mask = torch.cat([tokens.attention_mask, torch.ones(2, 64, dtype=torch.bool)], dim=1)
    mean = softmax_by_hand(query, key, mask).mean(dim=1).float()  # (2, 64, 24 + 64)
    columns = torch.zeros(2, 2, 64)
    for row, places in enumerate(tokens.part_positions.tolist()):
        for number, place in enumerate(places):
            if place >= 0:
                columns[row, number] = mean[row, :, place]
    return columns.unflatten(2, (8, 8))


def test_similarities_of_outputs_are_shares_of_the_prompts_tokens(prx):
    """By hand from a layer's values and attention: of the image tokens' outputs, and of the tokens' own values."""
    tokens = part_tokens(prx, ["a ", PartToken(1, 0), " red ", PartToken(2, 1), " bird"], [PartToken(2, 2)])
    conditioning = prx.encode_prompts(tokens, parts_of(tokens))
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([300.0, 700.0])
    plain = prx.denoise(latents, timesteps, conditioning)
    prx.attention_target = "outputs"
    capture = prx.capture_attention()
    seen = {}
    layer = prx.transformer.get_submodule(prx.attention_layers[0])
    layer.to_out[0].register_forward_pre_hook(lambda module, args: seen.update(output=args[0]))
    layer.txt_kv_proj.register_forward_hook(lambda module, args, output: seen.update(value=output[..., 16:]))
    with capture.armed(tokens.part_positions):
        assert torch.equal(prx.denoise(latents, timesteps, conditioning), plain)
    found = capture.layer_maps()[prx.attention_layers[0]]
    capture.remove()
    scores = seen["output"] @ seen["value"][0, [2, 4]].T / 4  # width 16
    assert_close(found[0], scores[0].softmax(dim=-1).T.unflatten(1, (8, 8)))
    assert_close(found[1], torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]))


@pytest.mark.parametrize("target", ["probabilities", "outputs"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_maps_train_tokens_and_adapter(prx, checkpointing, target):
    prx.attention_target = target
    set_trainable(prx, "lora", False, **LORA)
    if checkpointing:
        prx.enable_gradient_checkpointing()
        prx.train()
    tokens = part_tokens(prx, ["a ", PartToken(1, 0), PartToken(2, 0), " bird"])
    vectors = parts_of(tokens).requires_grad_()
    capture = prx.capture_attention()
    with capture.armed(tokens.part_positions):
        prediction = prx.denoise(torch.randn(1, 4, 16, 16), torch.tensor([500.0]), prx.encode_prompts(tokens, vectors))
    maps = capture.maps()
    capture.clear()
    (maps[:, 0].log().mean() + 0 * prediction.sum()).backward()
    assert vectors.grad.abs().sum() > 0
    assert any(p.grad is not None and p.grad.any() for p in trainable_groups(prx)["lora"])
    capture.remove()


@pytest.mark.parametrize("inject", ["before", "after"])
def test_gradients_reach_part_vectors_before_and_after_the_encoder(prx, inject):
    prx.inject = inject
    tokens = part_tokens(prx, ["a ", PartToken(1, 0), " bird"])
    vectors = parts_of(tokens).requires_grad_()
    conditioning = prx.encode_prompts(tokens, vectors)
    prx.denoise(torch.randn(1, 4, 16, 16), torch.tensor([500.0]), conditioning).square().mean().backward()
    assert vectors.grad.abs().sum() > 0
    if inject == "after":
        assert torch.equal(conditioning.encoder_hidden_states[0, 2], vectors[0, 0].detach())
        plain = prx.encode_text(tokens, None).encoder_hidden_states
        assert torch.equal(conditioning.encoder_hidden_states[0, 3:], plain[0, 3:]), "words see the fill word"


def test_words_as_the_denoiser_reads_them(shared):
    states = shared.word_states(["bird", "red"])
    embeds = shared.encode_prompts(shared.plain_tokens(["a photo of a red"]), None).encoder_hidden_states
    assert_close(states[1], embeds[0, 5])


# The adapter.


@pytest.mark.parametrize(("scope", "per_block"), [("cross", 1), ("all", 3)])
def test_an_adapter_changes_nothing_at_first_and_can_be_removed(prx, scope, per_block):
    latents, timesteps = torch.randn(1, 4, 16, 16), torch.tensor([500.0])
    conditioning = prx.encode_prompts(prx.plain_tokens([PROMPT]), None)
    plain, names = prx.denoise(latents, timesteps, conditioning), set(prx.state_dict())
    set_trainable(prx, "lora", False, **{**LORA, "scope": scope})
    assert torch.equal(prx.denoise(latents, timesteps, conditioning), plain)
    assert len(trainable_groups(prx)["lora"]) == 2 * per_block * 4
    assert all(parameter.requires_grad is (".lora_" in name) for name, parameter in prx.transformer.named_parameters())
    remove_lora(prx.transformer)
    assert set(prx.state_dict()) == names
    assert torch.equal(prx.denoise(latents, timesteps, conditioning), plain)


def test_keys_and_values_of_the_text_can_train_as_they_are(prx):
    set_trainable(prx, "cross_kv", False, **LORA)
    assert [tuple(p.shape) for p in trainable_groups(prx)["unet"]] == [(32, 16)] * 4


def test_full_size():
    """By hand: 16 blocks of width 1792 with 72,264,384 weights each; a LoRA of rank 4 on (1792 -> 3584)."""
    from diffusers import PRXTransformer2DModel

    with torch.device("meta"):
        transformer = PRXTransformer2DModel()
    assert sum(p.numel() for p in transformer.blocks[0].parameters()) == 72_264_384
    assert sum(p.numel() for p in transformer.parameters()) == 1_170_691_648
    components = tiny_prx.make_components()
    with torch.device("meta"):
        backbone = Shape(transformer, components)
    assert len(backbone.lora_targets("cross")) == 16 and len(backbone.lora_targets("all")) == 48
    set_trainable(backbone, "lora", False, rank=4, alpha=None, scope="cross", seed=0)
    assert sum(p.numel() for p in trainable_groups(backbone)["lora"]) == 16 * 4 * (1792 + 3584)


class Shape:
    """The parts of a backbone that say what trains, around a transformer without values."""

    lora_targets, cross_kv, _attentions = PRX.lora_targets, PRX.cross_kv, PRX._attentions

    def __init__(self, transformer, components) -> None:
        self.transformer = self.denoiser = transformer
        self.vae, self.text_encoders = components["vae"], [components["text_encoder"]]


# Loading.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_prx.save(tmp_path_factory.mktemp("prx"))


def test_a_folder_is_the_model_that_was_saved(shared, folder):
    loaded = load_prx(folder, resolution=32, dtype="float32", attention_blocks=[3, 0])
    assert loaded.hash == shared.hash
    assert loaded.attention_layers == ("blocks.0.attention", "blocks.3.attention")
    assert torch.equal(loaded.plain_tokens([PROMPT]).input_ids[0], shared.plain_tokens([PROMPT]).input_ids[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 30}, r"backbone\.resolution=30 does not fit this model: it must be a multiple of 4"),
        ({"attention_blocks": [4]}, r"attention_blocks=\[4\]: wanted one or more of 0 to 3"),
        ({"attention_size": 16}, r"attention_size=16: all attention maps of this model are 8 x 8"),
        ({"sha256": "0" * 8}, r"was asked for"),
    ],
)
def test_settings_that_do_not_fit(folder, settings, message):
    with pytest.raises(UserError, match=message):
        load_prx(folder, **{"resolution": 32, "dtype": "float32", **settings})


def test_what_is_missing_is_said_before_weights_are_read(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"is not a complete PRX model in diffusers' format: transformer/config\.json"):
        load_prx(tmp_path)
    with pytest.raises(UserError, match="No PRX model at nowhere"):
        load_prx("nowhere")
    monkeypatch.setattr("partcraft_lit.backbones.prx_loading._free_bytes", lambda device: 1000)
    with pytest.raises(UserError, match=r"take 0\.0 GB in float32, and cpu has 0\.0 GB free"):
        load_prx(folder, resolution=32, dtype="float32")


def test_an_offline_hub(monkeypatch):
    with pytest.raises(UserError, match="is not in the local cache, and HF_HUB_OFFLINE forbids"):
        load_prx("Photoroom/prx-512-t2i-sft")


def test_the_text_encoder_of_a_whole_encoder_decoder(folder, tmp_path):
    """The published configuration may be that of T5Gemma with its decoder."""
    import shutil

    other = shutil.copytree(folder, tmp_path / "whole")
    path = other / "text_encoder" / "config.json"
    path.write_text(json.dumps({"encoder": json.loads(path.read_text()), "model_type": "t5gemma"}))
    assert load_prx(other, resolution=32, dtype="float32").hash == load_prx(folder, resolution=32, dtype="float32").hash
