"""What every method must do, and what each one alone does."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import Callback
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.losses.diffusion import diffusion_target
from partcraft_lit.tokens.words import word_vector

#: Overrides -> groups that train. Rates are raised, so that a few steps show.
METHODS = {
    ("method=partcraft", "optim.lora_lr=0.01", "optim.mapper_lr=0.01"): ["lora", "mapper"],
    ("method=partcraft_released", "optim.lora_lr=0.01", "optim.mapper_lr=0.01"): ["lora", "mapper"],
    ("method=textual_inversion", "optim.mapper_lr=0.05"): ["mapper"],
    ("method=dreambooth", "optim.unet_lr=0.001"): ["unet", "mapper"],
    ("method=dreambooth", "method.text_encoder=true", "optim.unet_lr=0.001"): ["unet", "text_encoder", "mapper"],
    ("method=dreambooth_lora", "optim.lora_lr=0.01"): ["lora", "mapper"],
    ("method=dreambooth", "method.unet=cross_kv", "optim.unet_lr=0.01"): ["unet", "mapper"],
}


def tensors(module) -> dict[str, torch.Tensor]:
    networks = (module.backbone.unet, module.backbone.vae, *module.backbone.text_encoders, module.method)
    named = (pair for number, network in enumerate(networks) for pair in _named(number, network))
    return {name: value.detach().clone() for name, value in named}


def _named(number, network):
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        yield f"{number}/{name}", value


@pytest.mark.parametrize("overrides", METHODS, ids=" ".join)
def test_a_method_trains_what_it_says_and_lowers_the_loss(fresh_backbone, tools, overrides):
    module = tools.build(fresh_backbone, *overrides)
    groups = module.trainable_groups()
    assert list(groups) == METHODS[overrides]
    batch = tools.batch_of(module, prior="dreambooth" in overrides[0])
    before = tensors(module)
    trained = {id(p) for group in groups.values() for p in group}
    networks = (module.backbone.unet, module.backbone.vae, *module.backbone.text_encoders, module.method)
    named = {name: p for number, network in enumerate(networks) for name, p in _named(number, network)}
    losses = tools.fit(module, batch, 6)
    assert losses[-1] < losses[0]
    for name, value in tensors(module).items():
        if id(named[name]) not in trained:
            assert torch.equal(value, before[name]), name
    for name, group in groups.items():
        moved = [key for key, p in named.items() if id(p) in {id(q) for q in group} and not torch.equal(p, before[key])]
        assert moved, name


@pytest.mark.parametrize("overrides", METHODS, ids=" ".join)
def test_a_checkpoint_of_a_method_brings_it_back(tiny_backbone, tools, overrides):
    first = tools.build(copy.deepcopy(tiny_backbone), *overrides)
    with torch.no_grad():
        for group in first.trainable_groups().values():
            for parameter in group:
                parameter.add_(0.01)
    other = tools.build(copy.deepcopy(tiny_backbone), *overrides)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    assert state.keys() == {name for name, p in first.named_parameters() if p.requires_grad}
    other.load_state_dict(state)
    batch = tools.batch_of(first)
    with torch.no_grad():
        assert torch.equal(first.forward_step(batch).model_pred, other.forward_step(batch).model_pred)


# Phases.

PHASES = "optim.phases=[{steps:2,groups:[mapper]},{steps:null,groups:[unet]}]"


def test_groups_train_in_their_phases_and_rest_to_the_bit(fresh_backbone, tools):
    module = tools.build(fresh_backbone, "method=dreambooth", PHASES, "optim.unet_lr=0.001")
    batch = tools.batch_of(module, prior=True)
    unet = module.trainable_groups()["unet"]
    start = [p.detach().clone() for p in unet]
    tools.fit(module, batch, 2)
    assert all(torch.equal(p, q) for p, q in zip(unet, start, strict=True))
    again = tools.build(copy.deepcopy(fresh_backbone), "method=dreambooth", PHASES, "optim.unet_lr=0.001")
    codes = again.method.mapper.codes
    first = codes.detach().clone()
    seen = []

    class After(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(codes.detach().clone())

    tools.fit(again, batch, 4, After())
    assert not torch.equal(seen[0], first) and not torch.equal(seen[1], seen[0])
    assert torch.equal(seen[2], seen[1]) and torch.equal(seen[3], seen[1])
    assert any(not torch.equal(p, q) for p, q in zip(again.trainable_groups()["unet"], start, strict=True))


def test_the_schedule_by_hand(tools):
    optim = tools.settings_of(
        "optim.phases=[{steps:2,groups:[mapper]},{steps:3,groups:[unet,text_encoder]}]", "optim.warmup_steps=4"
    ).optim
    assert [optim.factor("mapper", step) for step in range(6)] == [0.25, 0.5, 0, 0, 0, 0]
    assert [optim.factor("unet", step) for step in range(6)] == [0, 0, 0.75, 1, 1, 1]  # the last phase goes on
    assert not any(optim.factor("lora", step) for step in range(6))
    plain = tools.settings_of("method=partcraft", "recipe/miniature=none").optim
    assert [plain.factor("mapper", step) for step in (0, 9)] == [1.0, 1.0]
    assert (plain.rate("mapper"), plain.rate("unet")) == (1e-4, 5e-6)


# Prior samples and regions.


def test_prior_samples_have_a_weight_of_their_own(fresh_backbone, tools):
    module = tools.build(fresh_backbone, "method=dreambooth_lora", "prior.weight=0.5")
    batch = tools.batch_of(module, prior=True)
    assert batch.prior.tolist() == [False, False, True, True]
    with torch.no_grad():
        step = module.forward_step(batch)
    errors = (step.model_pred - step.target).square().flatten(1).mean(dim=1)
    loss = tools.fit(module, batch, 1)[0]
    assert loss == pytest.approx(float(errors[:2].mean() + 0.5 * errors[2:].mean()), rel=1e-5)


def test_attention_losses_leave_prior_samples_out(fresh_backbone, tools):
    module = tools.build(fresh_backbone, "method=dreambooth_lora")
    batch = tools.batch_of(module, prior=True)

    class Rows:
        name, weight = "rows", 1.0

        def __call__(self, step):
            return torch.where(step.batch.prior, float("nan"), 7.0)

    module.add_loss_term(Rows())
    logged = []

    class Read(Callback):
        def on_train_batch_end(self, trainer, *_):
            logged.append(float(trainer.callback_metrics["train/loss_rows"]))

    assert tools.fit(module, batch, 1, Read())[0] > 7.0
    assert logged == [7.0]


def test_the_loss_counts_where_the_prompted_parts_are(fresh_backbone, tools):
    module = tools.build(fresh_backbone, "method=dreambooth_lora", "loss.region=prompted", "loss.region_mean=region")
    batch = tools.batch_of(module, prior=True, codes=(-1, 2, -1))  # the head alone is in the captions
    region = module._loss_region(batch)
    assert region.shape == (4, 16, 16)
    factor = 16 // batch.label_map.shape[-1]
    head = (batch.label_map == 1).float().repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    assert torch.equal(region[:2], head[:2])


@pytest.mark.parametrize(("region_mean", "ratio"), [("region", 4.0), ("latents", 1.0)])
def test_instance_and_prior_have_the_published_ratio(fresh_backbone, tools, region_mean, ratio):
    """Where all errors are 1, a sum over four channels over the sum of a mask is 4, and the mean of prior images 1."""
    module = tools.build(fresh_backbone, "method=custom_diffusion", f"loss.region_mean={region_mean}")
    logged: dict[str, float] = {}
    module.log_dict = lambda numbers, **_: logged.update(numbers)
    batch, scheduler = tools.batch_of(module, prior=True), module.backbone.noise_scheduler
    target = diffusion_target(
        batch.latents, batch.noise, batch.timesteps, scheduler.alphas_cumprod, scheduler.config.prediction_type
    )
    module.backbone.denoise = lambda *_: target + 1.0
    total = module.training_step(batch, 0)
    assert logged["train/loss_diffusion"] == pytest.approx(ratio) and logged["train/loss_prior"] == pytest.approx(1.0)
    assert float(total) == pytest.approx(ratio + 1.0)


# First words.


def test_tokens_start_from_a_word(tiny_backbone, tools):
    backbone = copy.deepcopy(tiny_backbone)
    module = tools.build(backbone, "method=textual_inversion", "method.tokens.init=[auto]")
    tables = [backbone.text_encoders[0].get_input_embeddings().weight]
    bird = word_vector("bird", backbone.tokenizers, tables)
    assert_close(module.method.bake()[1:], bird.expand(2, 3, -1))
    # At the start the token reads as the word does.
    prompts = module.method.tokenize(["a photo of a <head:1>", "a photo of a bird"])
    states = backbone.encode_prompts(prompts, module.part_vectors(type("B", (), {"tokens": prompts})))
    assert_close(states.encoder_hidden_states[0], states.encoder_hidden_states[1])
    words = tools.build(copy.deepcopy(tiny_backbone), "method=textual_inversion", "method.tokens.init=[head,wing]")
    assert_close(words.method.bake()[1, 0], word_vector("head", backbone.tokenizers, tables))
    assert_close(words.method.bake()[2, 2], word_vector("wing", backbone.tokenizers, tables))


def test_a_rare_word_that_does_not_train(fresh_backbone, tools):
    overrides = ("method=dreambooth", "parts.M=1", "parts.K=1", "method.tokens.init=[weird]")
    more = ("method.tokens.trained=false", "method.captions.background=false", "method.captions.template_prob=1.0")
    module = tools.build(fresh_backbone, *overrides, *more, 'method.captions.templates=["a {}"]', codes=(1, 1))
    assert list(module.trainable_groups()) == ["unet"]
    caption = module.method.make_caption(torch.tensor([0, 0]), torch.Generator().manual_seed(0))
    assert caption == "a <head:0> bird"
    assert not any("mapper" in name for name in module.state_dict())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.tokens.init=['tabby cat']"], r"'tabby cat' is not one word"),
        (["method.tokens.init=[a,b,c]"], r"no word, one for all foreground parts, or one for each of the 2"),
        (["method.tokens.trained=false"], r"keeps the tokens at their first vectors: name a rare word"),
        (["method.unet=lora"], r"trains nothing of the model, got method\.unet=lora"),
        (["mapper.init=features"], r"set mapper\.layers to 1 or more, or mapper\.init=random"),
        (["mapper.layers=2"], r"has no mapper, got mapper\.layers=2"),
        (["mapper.position=true", "method.tokens.init=[bird]"], r"set mapper\.layers=0 and mapper\.position=false"),
        (["method.tokens.init=[bird]", "method.tokens.trained=false"], r"Nothing would train"),
        (["optim.phases=[{steps:3,groups:[lora]}]"], r"optim\.phases\[0\] trains lora, and this method has mapper"),
        (
            ["optim.phases=[{steps:null,groups:[mapper]},{steps:1,groups:[mapper]}]"],
            r"optim\.phases\[0\]\.steps=null has no end",
        ),
        (["method=dreambooth", "optim.phases=[{steps:3,groups:[unet]}]"], r"'mapper' trains in no phase"),
        (["method=dreambooth", "method.unet=none"], r"DreamBooth trains the UNet"),
        (["method=dreambooth", "method.captions.class_noun=''"], r"DreamBooth needs a class noun"),
    ],
)
def test_settings_that_do_not_go_together_are_told_before_a_model_is_loaded(tools, overrides, message):
    settings = tools.settings_of("method=textual_inversion", *overrides)
    with pytest.raises(UserError, match=message):
        settings.method.check(settings, "bird")


def test_a_noun_that_is_asked_for_and_not_known(tools):
    for overrides in (["method=dreambooth"], ["method=textual_inversion", "method.tokens.init=[auto]"]):
        settings = tools.settings_of(*overrides)
        with pytest.raises(UserError, match=r"this one has none: set dataset\.class_noun"):
            settings.method.check(settings, "")


def test_a_word_of_several_tokens(fresh_backbone, tools):
    with pytest.raises(UserError, match=r"'platypus' is 7 tokens to this model \('p'.*take a common, single word"):
        tools.build(fresh_backbone, "method=textual_inversion", "method.tokens.init=[platypus]")
    recipe = tools.settings_of("method=textual_inversion", "method.tokens.init=[auto]").method
    recipe.check_words(fresh_backbone.tokenizers, "bird")
    with pytest.raises(UserError, match="'platypus' is 7 tokens to this model"):
        recipe.check_words(fresh_backbone.tokenizers, "platypus")


def test_each_token_may_have_a_noun_of_its_own(fresh_backbone, tools):
    words = ("method.captions.class_noun=each", "method.captions.separator=' and '", "parts.names=[head,wing]")
    plain = ("method.captions.background=false", "method.captions.shuffle=false", "method.captions.template_prob=0")
    for method in ("dreambooth", "custom_diffusion"):
        module = tools.build(copy.deepcopy(fresh_backbone), f"method={method}", *words, *plain)
        caption = module.method.make_caption(torch.tensor([0, 2, 1]), torch.Generator().manual_seed(0))
        assert caption == "<head:2> head and <wing:1> wing"
    settings = tools.settings_of("method=dreambooth", words[0])
    with pytest.raises(UserError, match=r"name the parts, for instance parts\.names=\[cat,dog\]"):
        settings.method.check(settings, "")


@pytest.mark.parametrize(
    ("method", "expected"),
    [  # layers and position of the mapper, rank of the adapter, rate of the tokens, batch
        ("partcraft", (2, True, 16, 1.6e-2, 16)),
        ("partcraft_released", (3, True, 4, 1e-4, 2)),
        ("textual_inversion", (0, False, 4, 5e-3, 8)),
        ("custom_diffusion", (0, False, 4, 8e-5, 8)),
    ],
)
def test_the_demo_s_recipe_is_partcraft_s(tools, method, expected):
    settings = tools.settings_of(f"method={method}", "backbone=mini")
    mapper = settings.mapper
    found = (mapper.layers, mapper.position, settings.lora.rank, settings.optim.mapper_lr, settings.data.batch_size)
    assert found == expected
