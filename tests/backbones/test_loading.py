from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from partcraft_lit.backbones import components, loading
from partcraft_lit.backbones import single_file as single_file_module
from partcraft_lit.backbones.stable_diffusion import load_mini, load_sd15
from partcraft_lit.backbones.stable_diffusion_xl import load_sdxl
from partcraft_lit.core.errors import UserError


@pytest.fixture
def folder(tiny_sd_folder, tmp_path):
    return shutil.copytree(tiny_sd_folder, tmp_path / "model")


# --- a folder in diffusers' format ---


def test_a_folder_gives_the_model_that_was_saved(tiny_sd_folder, tiny_backbone):
    for backbone in (load_sd15(tiny_sd_folder, resolution=32), load_sd15(str(tiny_sd_folder), resolution=None)):
        assert backbone.hash == tiny_backbone.hash
        assert backbone.resolution == 32
        assert backbone.attention_layers == tiny_backbone.attention_layers
        assert backbone.name == "sd15"
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert load_mini(tiny_sd_folder, resolution=32).name == "mini"


def test_what_was_saved_in_half_precision_is_read_in_float32(folder, tiny_sd_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    pipeline.save_pretrained(folder.parent / "half")
    half = load_sd15(folder, variant="fp16", resolution=32)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert half.hash == load_mini(folder.parent / "half", resolution=32).hash
    assert half.hash != load_sd15(folder, resolution=32).hash


def test_a_tokenizer_of_old_files_only_is_read(folder, tiny_tokenizer, tiny_words):
    """The published SD1.5 has vocab.json and merges.txt, no tokenizer.json."""
    from partcraft_lit.backbones.stable_diffusion import load_sd15

    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    vocabulary = tiny_tokenizer.get_vocab()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    shutil.copy(f"{tiny_tokenizer.name_or_path}/merges.txt", folder / "tokenizer")
    (tokenizer,) = load_sd15(folder, resolution=32).tokenizers
    text = " ".join(tiny_words) + " zebra, 7!"
    assert tokenizer(text).input_ids == tiny_tokenizer(text).input_ids


def test_an_incomplete_folder_says_what_is_missing_before_reading_weights(folder, monkeypatch):
    shutil.rmtree(folder / "vae")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    monkeypatch.setattr(loading, "_load_pretrained", lambda *args: pytest.fail("read weights"))
    wanted = r"vae/config\.json, scheduler/scheduler_config\.json missing; it holds .*unet.*hf download"
    with pytest.raises(UserError, match=wanted):
        load_sd15(folder)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"unet/config\.json.*it holds nothing"):
        load_sd15(tmp_path)


def test_a_model_with_two_text_encoders_is_another_kind(folder):
    (folder / "text_encoder_2").mkdir()
    with pytest.raises(UserError, match=r"two text encoders \(SDXL\)"):
        load_sd15(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_missing_or_cut_short_name_the_folder(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"The model in {re.escape(str(folder))} could not be read"):
        load_sd15(folder, resolution=32)
    file.unlink()
    with pytest.raises(UserError, match=rf"The model in {re.escape(str(folder))} could not be read"):
        load_sd15(folder, resolution=32)


def test_a_variant_that_is_not_there_is_named(folder):
    with pytest.raises(UserError, match="variant 'bf16'"):
        load_sd15(folder, variant="bf16", resolution=32)


# --- nothing there ---


def test_a_path_that_does_not_exist_names_its_nearest_sibling(folder):
    with pytest.raises(
        UserError, match=r"No model at .*modle\. Give a folder in diffusers' format.*Did you mean 'model'"
    ):
        load_sd15(folder.parent / "modle")
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist either"):
        load_sd15(str(folder.parent / "nowhere" / "model"))
    for text in ("./model", "~/model_that_is_not", "model.safetensors", "a/b/c"):
        with pytest.raises(UserError, match="No model at"):
            load_sd15(text)


def test_a_hub_id_that_cannot_be_had_offline_says_how_to_get_it(monkeypatch):
    with pytest.raises(UserError) as caught:
        load_sd15("somebody/some-model")
    message = str(caught.value)
    assert "'somebody/some-model' is not in the local cache, and HF_HUB_OFFLINE forbids" in message
    assert "hf download somebody/some-model" in message
    assert "backbone.source=PATH" in message


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("Cannot access gated repo for url", r"is gated.*hf auth login.*To get it"),
        ("401 Client Error", "may be gated"),
        ("\n\nWe couldn't connect\nmore", r"'owner/model' could not be loaded: We couldn't connect To get it"),
    ],
)
def test_other_refusals_of_the_hub(monkeypatch, said, wanted):
    from diffusers import DDPMScheduler

    def refuse(*args, **kwargs):
        raise OSError(said)

    monkeypatch.setattr(DDPMScheduler, "from_pretrained", refuse)
    monkeypatch.setattr(components, "_offline", lambda: False)
    with pytest.raises(UserError, match=wanted):
        load_sd15("owner/model")


def test_packaged_weights_that_are_missing():
    with pytest.raises(UserError, match=r"backbone 'nosuch' are missing: .*weights/nosuch.*partcraft pretrain"):
        loading.packaged_weights("nosuch")


# --- a single file ---


def original_format(backbone, unet_blocks=None) -> dict[str, torch.Tensor]:
    """The tiny model under the names of the original Stable Diffusion code, written out for its two levels."""
    state = {}
    for name, tensor in backbone.unet.state_dict().items():
        state[f"model.diffusion_model.{original_unet_name(name, unet_blocks or UNET_BLOCKS)}"] = tensor
    for name, tensor in backbone.vae.state_dict().items():
        renamed = original_vae_name(name)
        is_projection = ".attn_1." in renamed and renamed.endswith("weight") and ".norm." not in renamed
        state[f"first_stage_model.{renamed}"] = tensor[:, :, None, None] if is_projection else tensor
    for name, tensor in backbone.text_encoders[0].state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


UNET_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_NAMES = [
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.0\.resnets\.(\d)", r"up.1.block.\1"),
    (r"up_blocks\.1\.resnets\.(\d)", r"up.0.block.\1"),
    (r"up_blocks\.0\.upsamplers\.0", "up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_(\w)", r"mid.attn_1.\1"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]


def original_unet_name(name: str, blocks: dict[str, str]) -> str:
    block = max((block for block in blocks if name.startswith(block + ".")), key=len)
    rest = name.removeprefix(block + ".")
    if "resnets" in block:
        layer, _, leaf = rest.rpartition(".")
        rest = f"{UNET_RESNET[layer]}.{leaf}"
    return f"{blocks[block]}.{rest}"


def original_vae_name(name: str) -> str:
    for pattern, replacement in VAE_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture
def single_file(tiny_backbone, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_file(original_format(tiny_backbone), path)
    return path


def test_a_single_file_with_settings_beside_it_is_the_same_model(single_file, tiny_sd_folder, tiny_backbone):
    backbone = load_sd15(single_file, resolution=32, config=tiny_sd_folder)
    assert backbone.hash == tiny_backbone.hash
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 77, 32, generator=generator)
    with torch.no_grad():
        outputs = [model.unet(latents, torch.tensor([3]), text).sample for model in (backbone, tiny_backbone)]
    torch.testing.assert_close(*outputs)


def test_a_single_file_that_lacks_weights(tiny_backbone, tiny_sd_folder, tmp_path):
    state = original_format(tiny_backbone)
    for name in ("model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.bias"):
        del state[name]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"part\.safetensors (lacks 2 weights|does not fit)"):
        load_sd15(tmp_path / "part.safetensors", resolution=32, config=tiny_sd_folder)
    unet_only = {name: tensor for name, tensor in original_format(tiny_backbone).items() if "diffusion_model" in name}
    save_file(unet_only, tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match=r"unet\.safetensors"):
        load_sd15(tmp_path / "unet.safetensors", resolution=32, config=tiny_sd_folder)


def test_a_single_file_of_another_shape_needs_its_settings(single_file, tiny_sd_folder):
    shutil.copytree(tiny_sd_folder / "tokenizer", single_file.parent / "tokenizer")
    with pytest.raises(UserError, match=r"not a plain SD 1\.x checkpoint \(text width 32.*backbone\.config=FOLDER"):
        load_sd15(single_file)


def test_a_single_sd1_file_needs_no_settings(tmp_path, tiny_sd_folder, monkeypatch):
    """Two tensors of the right shapes pass for SD1.5; the conversion itself is tested on the tiny model."""
    shutil.copytree(tiny_sd_folder / "tokenizer", tmp_path / "tokenizer")
    prefix = "model.diffusion_model.input_blocks"
    state = {
        f"{prefix}.0.0.weight": torch.zeros(320, 4, 3, 3),
        f"{prefix}.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, 768),
    }
    save_file(state, tmp_path / "v1.safetensors")
    seen = {}

    def convert(path, layout, checkpoint, config, tokenizers):
        seen.update({file.parent.name: json.loads(file.read_text()) for file in config.glob("*/*.json")})
        seen["folder"] = config
        raise UserError("enough")

    monkeypatch.setattr(single_file_module, "_convert", convert)
    with pytest.raises(UserError, match="enough"):
        load_sd15(tmp_path / "v1.safetensors")
    assert seen["unet"]["block_out_channels"] == [320, 640, 1280, 1280]
    assert seen["scheduler"]["beta_schedule"] == "scaled_linear"
    assert not seen["folder"].exists(), "the settings were temporary"


def test_a_single_file_that_is_no_stable_diffusion(tmp_path, tiny_sd_folder):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"not a Stable Diffusion checkpoint in the original format"):
        load_sd15(tmp_path / "other.safetensors", config=tiny_sd_folder / "tokenizer")
    with pytest.raises(UserError, match=r"other\.safetensors does not fit the settings"):
        load_sd15(tmp_path / "other.safetensors", config=tiny_sd_folder)


def test_a_tokenizer_can_come_from_beside_the_file(single_file, tiny_sd_folder, tiny_tokenizer):
    shutil.copytree(tiny_sd_folder / "tokenizer", single_file.parent / "tokenizer")
    tokenizer = single_file_module.load_tokenizer(single_file, None)
    assert tokenizer("a striped bird").input_ids == tiny_tokenizer("a striped bird").input_ids


def test_a_tokenizer_without_its_vocabulary_is_an_error(folder):
    """transformers would go on with a vocabulary of two tokens."""
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer" / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"has \d tokens and the text encoder \d+: .*vocab\.json"):
        load_sd15(folder, resolution=32)


def test_a_tokenizer_can_come_from_the_hub_s_cache(single_file, tiny_tokenizer, monkeypatch):
    import huggingface_hub

    asked = []

    def cached(repository, name, subfolder):
        asked.append((repository, subfolder))
        if subfolder:
            raise FileNotFoundError(name)
        return f"{tiny_tokenizer.name_or_path}/{name}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    tokenizer = single_file_module.load_tokenizer(single_file, None)
    assert tokenizer("a striped bird").input_ids == tiny_tokenizer("a striped bird").input_ids
    assert asked[0] == ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer")


def test_without_any_tokenizer(single_file):
    with pytest.raises(UserError, match=r"holds no tokenizer.*vocab\.json and merges\.txt of CLIP.*backbone\.config"):
        load_sd15(single_file)


def test_files_that_cannot_be_read(tmp_path, tiny_sd_folder):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a tensor")
    with pytest.raises(UserError, match=r"broken\.safetensors is not a readable safetensors file"):
        load_sd15(broken, config=tiny_sd_folder)
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.ckpt is not a \.safetensors file; other checkpoints can run code"):
        load_sd15(pickled)
    with pytest.raises(UserError, match=r"backbone\.config=.*nowhere is not a folder"):
        load_sd15(broken, config=tmp_path / "nowhere")


# --- tokenizers alone ---


def test_tokenizers_alone_come_from_a_folder_a_file_or_the_hub(
    folder, single_file, tiny_tokenizer, tiny_sd_folder, monkeypatch
):
    """Words are looked at before gigabytes are read, wherever the model is."""
    text = "a striped bird"
    for network in ("unet", "vae", "text_encoder"):
        shutil.rmtree(folder / network)  # nothing of these is needed
    (alone,) = loading.tokenizers_without_networks(folder)
    assert alone(text).input_ids == tiny_tokenizer(text).input_ids
    (alone,) = loading.tokenizers_without_networks(single_file, config=tiny_sd_folder)
    assert alone(text).input_ids == tiny_tokenizer(text).input_ids

    import transformers

    asked, real = [], transformers.CLIPTokenizer.from_pretrained

    def of_hub(location, *, subfolder, revision):
        asked.append((location, subfolder, revision))
        return real(str(folder), subfolder=subfolder)

    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", of_hub)
    (alone,) = loading.tokenizers_without_networks("owner/model", revision="abc")
    assert alone(text).input_ids == tiny_tokenizer(text).input_ids
    assert loading.tokenizers_without_networks("owner/model@v1") and asked == [
        ("owner/model", "tokenizer", "abc"),
        ("owner/model", "tokenizer", "v1"),
    ]


def test_where_there_is_no_tokenizer_loading_the_model_will_say_why(folder, single_file, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert loading.tokenizers_without_networks("owner/nothing-like-this") == []
    assert loading.tokenizers_without_networks("./nowhere") == []
    for file in (folder / "tokenizer").iterdir():
        file.unlink()  # transformers makes a tokenizer of two tokens out of nothing
    assert loading.tokenizers_without_networks(folder) == []
    with pytest.raises(UserError, match="holds no tokenizer"):
        loading.tokenizers_without_networks(single_file)


# --- mirrors, revisions, hashes ---


@pytest.fixture
def hub(monkeypatch, tiny_sd_folder):
    """A hub with one model, ``copies/good``; what else it says to whom is up to the test. Counts who is asked for."""
    asked = []
    answers = {}
    real = loading._load_pretrained

    def load(location, layout, revision, variant, vae=None):
        asked.append((location, revision))
        with loading.explain_load_errors(location, revision, variant):
            if location in answers:
                raise answers[location]
            return real(str(tiny_sd_folder), layout, None, variant, vae)

    monkeypatch.setattr(loading, "_load_pretrained", load)
    monkeypatch.setattr(components, "_offline", lambda: False)
    return asked, answers


def hub_error(kind):
    """An error as diffusers passes it on: another one in front of the hub's own."""
    from huggingface_hub import errors

    error = OSError("owner/model is not a local folder and is not a valid model identifier")
    own = getattr(errors, kind)
    error.__context__ = own.__new__(own)  # made without the answer of a server
    return error


def test_mirrors_are_tried_in_turn_and_the_first_that_can_be_had_is_named(hub, caplog):
    asked, answers = hub
    answers["owner/gone"] = hub_error("RepositoryNotFoundError")
    answers["copies/locked"] = hub_error("GatedRepoError")
    mirrors = ("copies/locked", "copies/good@v2", "copies/never")
    backbone = load_sd15("owner/gone", mirrors=mirrors, resolution=32)
    assert asked == [("owner/gone", None), ("copies/locked", None), ("copies/good", "v2")]
    assert backbone.resolution == 32
    assert "owner/gone could not be had; its mirror copies/good is used" in caplog.text


def test_the_source_itself_is_enough(hub, caplog):
    asked, _ = hub
    load_sd15("copies/good", mirrors=("copies/never",), resolution=32)
    assert asked == [("copies/good", None)]
    assert "mirror" not in caplog.text and "float32" not in caplog.text, "diffusers warns of casts, needlessly"


def test_when_no_mirror_can_be_had_each_says_why(hub):
    _, answers = hub
    answers["owner/gone"] = hub_error("RepositoryNotFoundError")
    answers["copies/locked"] = hub_error("GatedRepoError")
    wanted = (
        r"Neither the model nor a mirror.*\(1\) The hub has no model 'owner/gone' for you.*\(2\) The hub refuses "
        r"'copies/locked': the model is gated\. Accept its terms on https://huggingface\.co/copies/locked, then log in "
        r"with `hf auth login`\. To get it: `hf download owner/gone`"
    )
    with pytest.raises(UserError, match=wanted):
        load_sd15("owner/gone", mirrors=("copies/locked",))


def test_a_pinned_revision_is_that_of_one_repository(hub):
    asked, answers = hub
    answers["owner/model"] = hub_error("RevisionNotFoundError")
    with pytest.raises(UserError, match=r"'owner/model' has no revision 'abc123'"):
        load_sd15("owner/model", revision="abc123", mirrors=("copies/good",))
    assert asked == [("owner/model", "abc123")]


def test_a_revision_of_a_folder_is_not_passed_over_in_silence(tiny_sd_folder, caplog):
    load_sd15(tiny_sd_folder, revision="abc123")
    assert "backbone.revision=abc123 is of hub ids alone" in caplog.text and "backbone.sha256 pins" in caplog.text


def test_mirrors_are_no_remedy_for_a_folder(folder, hub):
    asked, _ = hub
    with pytest.raises(UserError, match="No model at"):
        load_sd15(folder.parent / "modle", mirrors=("copies/good",))
    assert not asked


def test_offline_only_the_cache_is_looked_at(monkeypatch):
    """The real libraries, with an empty cache: each place is named, and nothing is fetched."""
    wanted = r"\(1\) The model 'a/b' is not in the local cache, and HF_HUB_OFFLINE.*\(2\) The model 'c/d' is not in"
    with pytest.raises(UserError, match=wanted):
        load_sd15("a/b", mirrors=("c/d",))


@pytest.mark.parametrize("digits", [8, 64])
def test_weights_that_are_the_wanted_ones(tiny_sd_folder, tiny_backbone, digits):
    assert load_sd15(tiny_sd_folder, resolution=32, sha256=tiny_backbone.hash[:digits]).hash == tiny_backbone.hash


def test_weights_that_are_not_the_wanted_ones(tiny_sd_folder, tiny_sdxl_folder, tiny_backbone):
    for load, place in ((load_sd15, tiny_sd_folder), (load_sdxl, tiny_sdxl_folder)):
        with pytest.raises(UserError, match=rf"have the hash [0-9a-f]{{64}}, backbone\.sha256={'0' * 64} was asked"):
            load(place, resolution=32, sha256="0" * 64)
    for wrong in ("abc", tiny_backbone.hash.upper(), "xyz" * 4):
        with pytest.raises(UserError, match="wanted 8 to 64 hexadecimal digits"):
            load_sd15(tiny_sd_folder, resolution=32, sha256=wrong)


# --- SDXL, SD 2.x, other VAEs ---


def test_a_folder_gives_the_sdxl_that_was_saved(tiny_sdxl_folder, tiny_backbone_xl):
    backbone = load_sdxl(tiny_sdxl_folder, resolution=32)
    assert backbone.hash == tiny_backbone_xl.hash
    assert [tokenizer.pad_token for tokenizer in backbone.tokenizers] == ["<|endoftext|>", "!"]
    assert not backbone.encode_unconditional().encoder_hidden_states.any()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_what_stands_for_no_prompt_is_read_from_the_model(tiny_sdxl_folder, tmp_path):
    other = shutil.copytree(tiny_sdxl_folder, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    assert load_sdxl(other, resolution=32).encode_unconditional().encoder_hidden_states.any()
    (other / "model_index.json").unlink()
    assert not load_sdxl(other, resolution=32).encode_unconditional().encoder_hidden_states.any()


def test_a_folder_of_the_other_kind_names_the_backbone_for_it(tiny_sd_folder, tiny_sdxl_folder):
    with pytest.raises(UserError, match=r"two text encoders \(SDXL\); this backbone takes SD 1.*Use backbone=sdxl"):
        load_sd15(tiny_sdxl_folder)
    with pytest.raises(UserError, match=r"one text encoder \(SD 1.*this backbone takes SDXL\. Use backbone=sd15"):
        load_sdxl(tiny_sd_folder)


def test_an_incomplete_sdxl_folder(tiny_sdxl_folder, tmp_path):
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "model")
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(UserError, match=r"tokenizer_2/vocab\.json or tokenizer\.json missing.*stable-diffusion-xl"):
        load_sdxl(folder)


def test_another_vae(tiny_sdxl_folder, tiny_backbone_xl, make_components_xl, tmp_path):
    """By itself or inside a whole model; latents are then found under another hash."""
    vae = make_components_xl(seed=1)["vae"]
    vae.save_pretrained(tmp_path / "alone")
    vae.save_pretrained(tmp_path / "whole" / "vae")
    alone, whole = (
        load_sdxl(tiny_sdxl_folder, resolution=32, vae=tmp_path / name, vae_dtype="float16")
        for name in ("alone", "whole")
    )
    assert alone.hash == whole.hash != tiny_backbone_xl.hash
    assert next(alone.vae.parameters()).dtype == torch.float16
    assert torch.equal(next(alone.vae.parameters()), next(vae.parameters()).half())
    with pytest.raises(UserError, match=r"backbone\.vae=.*alon: No model at .*Did you mean 'alone'"):
        load_sdxl(tiny_sdxl_folder, resolution=32, vae=tmp_path / "alon")


def test_sd2_is_the_same_loader_with_wider_text_and_v_prediction(tmp_path, make_components, tiny_tokenizer):
    """The shape of SD 2.1: text of another width, linear projections, heads by block, v-prediction."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    components = make_components(prediction_type="v_prediction")
    components["text_encoder"] = CLIPTextModel(
        CLIPTextConfig(**{**components["text_encoder"].config.to_dict(), "hidden_size": 48, "hidden_act": "gelu"})
    )
    settings = {**components["unet"].config, "cross_attention_dim": 48, "use_linear_projection": True}
    components["unet"] = UNet2DConditionModel.from_config({**settings, "attention_head_dim": [2, 4]})
    pipeline = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(tmp_path / "sd2")
    backbone = load_sd15(tmp_path / "sd2", resolution=32, name="sd21")
    assert backbone.token_widths == (48,) and backbone.name == "sd21"
    assert backbone.noise_scheduler.config.prediction_type == "v_prediction"


# --- a single file of SDXL ---


def open_clip_name(name: str) -> str:
    """A name of CLIPTextModelWithProjection as OpenCLIP has it."""
    renames = [
        (r"^text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
        (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^text_model\.final_layer_norm", "ln_final"),
        (r"^text_projection\.weight", "text_projection"),
        (r"^text_model\.encoder\.layers", "transformer.resblocks"),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"self_attn\.out_proj", "attn.out_proj"),
    ]
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def open_clip_format(encoder) -> dict[str, torch.Tensor]:
    state, joined = {}, {}
    for name, tensor in encoder.state_dict().items():
        if found := re.match(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", name):
            joined.setdefault((found[1], found[3]), {})[found[2]] = tensor
        else:
            renamed = open_clip_name(name)
            state[renamed] = tensor.T if renamed == "text_projection" else tensor
    for (layer, leaf), shares in joined.items():
        state[f"transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = torch.cat([shares[letter] for letter in "qkv"])
    return state


XL_UNET_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def test_a_single_file_of_sdxl_is_the_same_model(tiny_backbone_xl, tiny_sdxl_folder, tmp_path):
    state = original_format(tiny_backbone_xl, XL_UNET_BLOCKS)
    prefix = "cond_stage_model.transformer."
    first = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    second = open_clip_format(tiny_backbone_xl.text_encoders[1])
    state |= {f"conditioner.embedders.0.transformer.{name}": tensor for name, tensor in first.items()}
    state |= {f"conditioner.embedders.1.model.{name}": tensor.clone().contiguous() for name, tensor in second.items()}
    save_file(state, tmp_path / "xl.safetensors")
    settings = shutil.copytree(tiny_sdxl_folder, tmp_path / "settings")
    backbone = load_sdxl(tmp_path / "xl.safetensors", resolution=32, config=settings)
    assert backbone.hash == tiny_backbone_xl.hash
    shutil.rmtree(settings / "tokenizer_2")
    backbone = load_sdxl(tmp_path / "xl.safetensors", resolution=32, config=settings)
    tokens = [tokenizer("a bird", padding="max_length", max_length=8).input_ids for tokenizer in backbone.tokenizers]
    assert tokens[0][:4] == tokens[1][:4]
    assert backbone.tokenizers[1].convert_ids_to_tokens(tokens[1][4:]) == ["!"] * 4


@pytest.mark.parametrize(
    ("load", "widths", "message"),
    [
        ("sd15", (640, 2048), "is a checkpoint of SDXL; this backbone takes SD 1.x and 2.x. Use backbone=sdxl"),
        ("sdxl", (320, 768), "is a checkpoint of SD 1.x or 2.x; this backbone takes SDXL. Use backbone=sd15"),
        ("sdxl", (640, 1280), r"not a plain SDXL checkpoint \(text width 1280"),
    ],
)
def test_a_single_file_of_the_other_kind_names_the_backbone_for_it(tmp_path, tiny_sd_folder, load, widths, message):
    shutil.copytree(tiny_sd_folder / "tokenizer", tmp_path / "tokenizer")
    prefix = "model.diffusion_model.input_blocks"
    place = "1.1" if widths[0] == 320 else "4.1"
    state = {
        f"{prefix}.0.0.weight": torch.zeros(320, 4, 3, 3),
        f"{prefix}.{place}.transformer_blocks.0.attn2.to_k.weight": torch.zeros(*widths),
    }
    save_file(state, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=message):
        {"sd15": load_sd15, "sdxl": load_sdxl}[load](tmp_path / "file.safetensors")
