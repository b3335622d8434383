from __future__ import annotations

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from partcraft_lit.backbones.model_configs import SD1, write_configs
from partcraft_lit.backbones.trainable_weights import cross_kv, set_trainable, trainable_groups
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.data.prior import prior_prompt
from partcraft_lit.runs.settings import TrainSettings

PROMPTS = ["a photo of a <head:1> <wing:2>", "<head:0> bird"]


def fit(module, batch, steps: int = 2) -> None:
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))


def test_exactly_the_cross_attention_s_keys_and_values_and_the_tokens_train(build, batch_of):
    module = build("method=custom_diffusion")
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    layers = [name for name, _ in module.backbone.unet.named_modules() if name.endswith("attn2")]
    wanted = {f"backbone.unet.{layer}.to_{which}.weight" for layer in layers for which in "kv"}
    assert trained == wanted | {"method.mapper.codes"}
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    fit(module, batch_of(module, PROMPTS))
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert changed == trained


class Shape:
    """A backbone of a UNet alone."""

    def __init__(self, unet) -> None:
        self.denoiser, self.vae, self.text_encoders = unet, torch.nn.Identity(), [torch.nn.Identity()]

    def cross_kv(self):
        return cross_kv(self.denoiser)


def test_the_count_on_sd15(tmp_path):
    """2 * 768 * (320 * 5 + 640 * 5 + 1280 * 6) weights, 76.7 MB in float32: the 75 MB that the paper stores."""
    write_configs(SD1, tmp_path)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((tmp_path / "unet" / "config.json").read_text()))
    backbone = Shape(unet)
    set_trainable(backbone, "cross_kv", False, rank=4, alpha=None, scope="cross", seed=0)
    groups = trainable_groups(backbone)
    assert sum(p.numel() for p in groups["unet"]) == 1536 * 12480 == 19_169_280
    assert len(backbone.cross_kv()) == 32


@pytest.mark.parametrize("detached", [True, False])
def test_the_start_of_the_text_trains_nothing(build, detached):
    """With a text of which there is nothing but the first position, keys and values get no gradient."""
    module = build("method=custom_diffusion", f"method.detach_start={str(detached).lower()}")
    unet = module.backbone.unet
    unet(torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 1, 32)).sample.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for _, p in cross_kv(unet)) is not detached


def test_captions_of_concepts(build):
    module = build(
        "method=custom_diffusion", "method.nouns=true", "method.captions.template_prob=1.0",
        "method.captions.templates=['photo of a {}']", "method.captions.separator=' and '",
        "method.captions.background=false", "method.captions.shuffle=false",
    )  # fmt: skip
    assert module.method.make_caption([0, 2, -1], torch_generator(0)) == "photo of a <head:2> head"
    assert module.method.plain_caption([0, 2, 1]) == "a photo of a <head:2> head and <wing:1> wing"


def test_dictionary_captions_are_those_of_the_other_methods(build, settings_of):
    own, other = build("method=custom_diffusion").method, build("method=textual_inversion").method
    assert own.plain_caption([0, 1, 2]) == other.plain_caption([0, 1, 2])


def test_settings_of_the_paper(settings_of):
    settings: TrainSettings = settings_of("method=custom_diffusion")
    assert (settings.optim.unet_lr, settings.optim.mapper_lr) == (8e-5, 8e-5)
    assert (settings.prior.weight, settings.loss.region_mean, settings.loss.uses_attention) == (1.0, "region", False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.unet=none"], "method=custom_diffusion trains the UNet: set method.unet=cross_kv"),
        (["method.tokens.init=[teddy bear]"], "'teddy bear' is not one word"),
        (["method.tokens.init=[cat,dog]"], r"one for all foreground parts, or one for each of the 5"),
    ],
)
def test_messages(settings_of, overrides, message):
    settings = settings_of("method=custom_diffusion", *overrides)
    with pytest.raises(UserError, match=message):
        settings.method.check(settings, "bird")


def test_prior_images_need_a_prompt(settings_of):
    with pytest.raises(UserError, match=r"prior\.prompt=auto is 'a photo of a' with the noun of the dataset"):
        prior_prompt(settings_of("method=custom_diffusion").prior, "")
