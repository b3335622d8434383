from __future__ import annotations

from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader

from partcraft_lit.callbacks.loss_terms import AttentionLoss
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.losses.attention_mse import mse_attention_loss

PROMPTS = ["a photo of a <wing:2>", "<head:0> <wing:1>"]


def fit(module, batch, *callbacks, steps: int) -> Trainer:
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))
    return trainer


def values(module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_two_phases_train_two_sets(build, batch_of):
    module = build("method=break_a_scene", "trainer.max_steps=4")
    loss = AttentionLoss(0.01, lambda *given: mse_attention_loss(*given, num_parts=2))
    start, batch = values(module), batch_of(module, PROMPTS)

    class Between(Callback):
        def __init__(self) -> None:
            self.seen: dict = {}

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.seen[trainer.global_step] = values(pl_module)

    between = Between()
    fit(module, batch, loss, between, steps=4)
    first, last = between.seen[2], between.seen[4]
    assert {n for n in start if not torch.equal(start[n], first[n])} == {"method.mapper.codes"}
    second = {n for n in start if not torch.equal(first[n], last[n])}
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert "method.mapper.codes" not in second
    unet = {n for n in trained if n.startswith("backbone.unet.")}
    assert len(second & unet) > 0.95 * len(unet)
    assert any("text_encoders" in n for n in second)
    assert not any("token_embedding" in n for n in second), "words keep their vectors"


def test_the_diffusion_loss_looks_at_the_union_of_the_named_parts(build, batch_of):
    """By hand: squares inside the union over all latents, so that a small union has a small loss."""
    module = build("method=break_a_scene")
    batch = batch_of(module, PROMPTS)
    with torch.no_grad():
        step = module.forward_step(batch)
    squares = (step.model_pred - step.target).square()
    union = torch.stack([batch.label_map[0] == 2, (batch.label_map[1] == 1) | (batch.label_map[1] == 2)])
    expected = (squares * union[:, None]).mean()
    logged = fit(module, batch, steps=1).callback_metrics
    assert_close(logged["train/loss_diffusion"], expected)


def test_masks_are_as_fine_as_latents_and_attention_as_it_is(build, batch_of):
    """Label maps of 32 cells for latents of 16: the loss on attention takes the cell under each centre."""
    module = build("method=break_a_scene")
    batch = batch_of(module, PROMPTS, label_side=32)
    loss = AttentionLoss(0.01, lambda *given: mse_attention_loss(*given, num_parts=2))
    logged = fit(module, batch, loss, steps=1).callback_metrics
    assert 0 < float(logged["train/loss_attn"]) < 2


def test_captions_name_random_unions(build):
    method = build("method=break_a_scene", "method.captions.background=false").method
    captions = [method.make_caption([0, 1, 2], torch_generator(0, n)) for n in range(400)]
    sizes = Counter(caption.count("<") for caption in captions)
    assert sizes.keys() == {1, 2} and abs(sizes[1] - 200) < 50  # five standard deviations
    assert method.plain_caption([0, 1, 2]) == "a photo of a <head:1> <wing:2>", "samples name all"


def test_settings_of_the_paper(settings_of):
    settings = settings_of("method=break_a_scene", "trainer.max_steps=800")
    assert [(p.steps, p.groups) for p in settings.optim.phases] == [
        (400, ("mapper",)),
        (None, ("unet", "text_encoder")),
    ]
    optim, loss = settings.optim, settings.loss
    assert (optim.mapper_lr, optim.unet_lr, optim.text_encoder_lr) == (5e-4, 2e-6, 2e-6)
    assert (loss.attention, loss.lambda_attn, loss.region, loss.region_mean) == ("mse", 0.01, "prompted", "latents")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.captions.drop_prob=0.5"], r"drop_prob=0\.5: method\.subset=union draws which parts"),
        (["method.unet=lora"], r"'lora' trains in no phase: name it in a phase of optim\.phases"),
        (["optim.phases=[{steps:null,groups:[unet]}]"], r"'mapper' trains in no phase"),
    ],
)
def test_messages(settings_of, overrides, message):
    settings = settings_of("method=break_a_scene", *overrides)
    with pytest.raises(UserError, match=message):
        settings.method.check(settings, "bird")


def test_all_at_once_and_with_an_adapter(settings_of):
    for overrides in (
        ["optim.phases=[]"],
        ["method.unet=lora", "optim.phases=[{steps:2,groups:[mapper]},{steps:null,groups:[lora,text_encoder]}]"],
    ):
        settings = settings_of("method=break_a_scene", *overrides)
        settings.method.check(settings, "bird")
