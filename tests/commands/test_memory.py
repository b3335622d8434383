"""What the hardware settings do to networks, batches and results."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from partcraft_lit.backbones.attention import AttentionCapture
from partcraft_lit.backbones.latent_diffusion import LatentDiffusion
from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.backbones.settings import HardwareSettings, SampleSettings
from partcraft_lit.commands import train
from partcraft_lit.config import compose as config
from partcraft_lit.config import factories
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Conditioning
from partcraft_lit.runs.memory import apply_memory_options, batch_limit_note, in_passes, offloaded
from partcraft_lit.runs.settings import TrainSettings

NONE = HardwareSettings(gradient_checkpointing=False, max_batch_size=None, offload=(), compile=False)


def settings_for(*overrides: str) -> TrainSettings:
    return train.check(config.plain(config.compose("train", overrides)))


@pytest.mark.parametrize(
    ("batch", "most", "passes"),
    [(8, None, 1), (8, 8, 1), (8, 9, 1), (8, 4, 2), (8, 3, 4), (6, 4, 2), (7, 4, 7), (1, 1, 1)],
)
def test_a_batch_is_split_into_equal_passes(batch, most, passes):
    assert dataclasses.replace(NONE, max_batch_size=most).passes(batch) == passes


@pytest.mark.parametrize(("most", "passes"), [(None, 1), (16, 1), (8, 2), (4, 4), (3, 8), (2, 8), (1, 8)])
def test_prior_images_count_among_those_at_once(most, passes):
    limit = "null" if most is None else most
    settings = settings_for(f"hardware.max_batch_size={limit}", "prior.weight=1", "data.batch_size=8")
    fitted, number = in_passes(settings)
    assert number == passes
    assert 2 * fitted.data.batch_size <= max(most or 16, 2)  # one example and its prior image are never parted
    assert fitted.prior.batch_size == min(8, most or 8)


def test_it_is_said_where_two_images_go_where_one_was_asked_for():
    asked = ("hardware.max_batch_size=1", "data.batch_size=8")
    assert batch_limit_note(in_passes(settings_for(*asked))[0]) is None
    said = batch_limit_note(in_passes(settings_for(*asked, "prior.weight=1"))[0])
    assert said is not None and "max_batch_size=1: 2 images go through" in said
    assert batch_limit_note(settings_for("hardware.max_batch_size=2", "prior.weight=1")) is None


def test_without_a_gpu_the_networks_of_the_first_minutes_rest():
    settings = settings_for("hardware=cpu", "backbone=sd15")
    assert settings.hardware.offload == ("vae", "features")
    values = config.plain(config.compose("train", ["hardware=cpu", "backbone=sd15"]))
    assert values["trainer"]["accelerator"] == "cpu"
    assert values["backbone"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("preset", ["8gb", "12gb", "16gb", "24gb"])
def test_presets_ask_for_less_the_smaller_they_are_and_keep_the_batch(preset):
    settings = settings_for(f"hardware={preset}", "backbone=sd15")
    most = {"8gb": 1, "12gb": 2, "16gb": 2, "24gb": 4}[preset]
    assert settings.hardware.max_batch_size == most
    assert settings.hardware.gradient_checkpointing == (preset in ("8gb", "12gb"))
    assert settings.hardware.offload == (() if preset == "24gb" else ("vae", "features"))
    fitted, passes = in_passes(settings)
    assert fitted.data.batch_size * passes == settings.data.batch_size == 8
    assert fitted.data.batch_size == fitted.data.encode_batch_size == most
    values = config.plain(config.compose("train", [f"hardware={preset}", "backbone=sd15"]))
    assert values["trainer"]["precision"] == "bf16-mixed"
    assert values["backbone"]["dtype"] == ("float32" if preset == "24gb" else "bfloat16")


def test_none_changes_nothing():
    settings = settings_for()
    assert settings.hardware == NONE
    assert in_passes(settings) == (settings, 1)
    sample = SampleSettings(steps=1, guidance_scale=1.0, scheduler="ddim", negative_prompt="", batch_size=8)
    assert NONE.capped(sample) == sample
    assert dataclasses.replace(NONE, max_batch_size=3).capped(sample).batch_size == 3


def test_what_the_user_says_wins():
    values = config.plain(config.compose("train", ["hardware=8gb", "backbone=sd15", "backbone.dtype=float32"]))
    assert values["backbone"]["dtype"] == "float32"


def test_the_preset_is_no_part_of_what_a_run_is():
    """A run may go on on another machine."""
    from partcraft_lit.core.rundir import settings_hash

    plain, spared = (
        config.plain(config.compose("train", [f"hardware.max_batch_size={most}"])) for most in ("null", "2")
    )
    assert settings_hash(plain) == settings_hash(spared)


# --- checkpointing ---


def test_checkpointing_runs_blocks_again_and_gives_the_same_gradients(each_fresh_backbone: LatentDiffusion):
    backbone = each_fresh_backbone.train()
    block = backbone.unet.get_submodule("down_blocks.0.resnets.0")
    runs = []
    block.register_forward_pre_hook(lambda module, args: runs.append(1))
    generator = torch.Generator().manual_seed(0)
    width = sum(backbone.token_widths)
    latents, text = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 77, width, generator=generator)
    empty = backbone.encode_unconditional()
    grads, counts = [], []
    for hardware in (NONE, dataclasses.replace(NONE, gradient_checkpointing=True)):
        apply_memory_options(hardware, backbone)
        runs.clear()
        hidden = text.clone().requires_grad_()
        conditioning = Conditioning(hidden, empty.pooled_prompt_embeds, empty.time_ids)
        sample = latents.clone().requires_grad_()
        backbone.denoise(sample, torch.tensor([9]), conditioning).square().mean().backward()
        grads.append((hidden.grad, sample.grad))
        counts.append(len(runs))
    assert counts == [1, 2], "once forward, and once again in the backward pass"
    torch.testing.assert_close(grads[0], grads[1])


# --- compiling ---


@pytest.mark.slow
def test_blocks_that_are_traced_give_the_same_maps_and_gradients(fresh_backbone: LatentDiffusion):
    """All of compiling but the machine code, which takes a minute to make."""
    backbone = fresh_backbone
    add_lora(backbone.unet, scope="all")
    for parameter in backbone.unet.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 32, generator=generator)
    found = []
    for compiled in (False, True):
        if compiled:
            backbone.compile_blocks("eager")
        hidden = text.clone().requires_grad_()
        with (
            AttentionCapture(backbone.unet, backbone.attention_layers) as capture,
            capture.armed(torch.tensor([[1, 2], [3, -1]])),
        ):
            prediction = backbone.denoise(latents, torch.tensor([9, 500]), Conditioning(hidden))
            maps = capture.maps()
        (prediction.square().mean() + maps.square().sum()).backward()
        grads = [p.grad.clone() for p in backbone.unet.parameters() if p.requires_grad]
        backbone.unet.zero_grad()
        found.append((prediction.detach(), maps.detach(), hidden.grad, grads))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@torch.no_grad()
def test_a_block_in_machine_code_equals_itself(fresh_backbone: LatentDiffusion):
    """Forward and in float32: a compiler takes a quarter of the time of both passes in bfloat16."""
    block = next(m for m in fresh_backbone.unet.modules() if type(m).__name__ == "BasicTransformerBlock")
    generator, width = torch.Generator().manual_seed(0), block.norm1.normalized_shape[0]
    states, text = (torch.randn(2, length, size, generator=generator) for length, size in ((64, width), (77, 32)))
    expected = block(states, encoder_hidden_states=text)
    fresh_backbone.compile_blocks()
    assert block._compiled_call_impl is not None
    torch.testing.assert_close(block(states, encoder_hidden_states=text), expected, rtol=1e-4, atol=1e-5)


def test_compiling_without_a_compiler_is_told_at_once(fresh_backbone: LatentDiffusion, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        apply_memory_options(dataclasses.replace(NONE, compile=True), fresh_backbone)


# --- a run ---


def test_a_run_in_passes_trains_what_a_run_in_one_pass_trains(new_workshop, plain):
    """The whole way: batches of two in two passes, activations computed again, the VAE and features offloaded."""
    states = []
    for overrides in (
        (),
        ("hardware.max_batch_size=1", "hardware.gradient_checkpointing=true", "hardware.offload=[vae,features]"),
    ):
        run = new_workshop().train(*plain, *overrides, "optim.lora_lr=1e-3")
        states.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    for name, value in states[0].items():
        torch.testing.assert_close(
            states[1][name], value, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: name + text
        )


# --- offload ---


def test_a_resting_vae_stays_where_it_is_while_the_rest_moves(each_fresh_backbone: LatentDiffusion):
    backbone = torch.nn.Sequential(each_fresh_backbone)  # moved with what holds it, as in training
    each_fresh_backbone.offload_vae()
    backbone.to("meta")
    assert {p.device.type for p in each_fresh_backbone.unet.parameters()} == {"meta"}
    assert {p.device.type for p in each_fresh_backbone.text_encoders.parameters()} == {"meta"}
    assert {p.device.type for p in each_fresh_backbone.vae.parameters()} == {"cpu"}
    assert "vae" in dict(each_fresh_backbone.named_children())


def test_a_resting_vae_works_on_the_unet_s_device_and_goes_back(each_fresh_backbone: LatentDiffusion, monkeypatch):
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = each_fresh_backbone.encode_images(pixels)
    pictures = each_fresh_backbone.decode_latents(expected[0])
    moves = []
    vae = each_fresh_backbone.vae
    monkeypatch.setattr(vae, "to", lambda device: moves.append(str(device)))
    device = torch.device("cuda", 0)
    monkeypatch.setattr(type(each_fresh_backbone), "device", property(lambda self: device))
    each_fresh_backbone.offload_vae()
    assert all(torch.equal(a, b) for a, b in zip(each_fresh_backbone.encode_images(pixels), expected))
    assert torch.equal(each_fresh_backbone.decode_latents(expected[0]), pictures)
    assert moves == ["cpu", "cuda:0", "cpu", "cuda:0", "cpu"]
    monkeypatch.setattr(vae, "encode", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        each_fresh_backbone.encode_images(pixels)
    assert moves[-2:] == ["cuda:0", "cpu"], "also after an error"


def test_on_a_cpu_a_resting_vae_lies_in_a_file_and_works_as_before(each_fresh_backbone: LatentDiffusion, tmp_path):
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = each_fresh_backbone.encode_images(pixels)
    weight = next(each_fresh_backbone.vae.parameters())
    before = weight.data_ptr()
    apply_memory_options(dataclasses.replace(NONE, offload=("vae",)), each_fresh_backbone, tmp_path)
    assert weight.data_ptr() != before
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(each_fresh_backbone.encode_images(pixels), expected))


def test_patch_features_rest_on_the_cpu_and_come_back():
    class Features:
        def __init__(self) -> None:
            self.network, self.device = torch.nn.Linear(1, 1, device="meta"), torch.device("meta")

    class Network(torch.nn.Linear):
        def to(self, device):
            return self.to_empty(device=device)

    features = Features()
    features.network = Network(1, 1, device="meta")
    with offloaded(features, NONE):
        assert features.device.type == "meta"
    with offloaded(features, dataclasses.replace(NONE, offload=("features",))):
        assert features.device.type == features.network.weight.device.type == "cpu"
    assert features.device.type == features.network.weight.device.type == "meta"
    with offloaded(object(), dataclasses.replace(NONE, offload=("features",))):  # colours have no network
        pass


def test_mistakes():
    for override, message in (
        ("hardware.offload=[text_encoder]", r"hardware\.offload\[0\]='text_encoder': wanted one of vae, features"),
        ("hardware.max_batch_size=0", r"hardware\.max_batch_size=0"),
    ):
        with pytest.raises(factories.UserError, match=message):
            settings_for(override)
