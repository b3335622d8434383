"""Laws of the training step: what trains, what must not move, what adds up, what a checkpoint holds."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.backbones.stable_diffusion import StableDiffusion
from partcraft_lit.callbacks.checkpoint import Checkpoints
from partcraft_lit.callbacks.loss_terms import AttentionLoss
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import StepOutput, TrainingBatch, TrainingExample
from partcraft_lit.data.datamodule import Collate
from partcraft_lit.losses.attention import entropy_attention_loss
from partcraft_lit.methods.optim import OptimSettings
from partcraft_lit.methods.part_tokens import PartTokens
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.tokens.captions import CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.mapper import TokenMapper

OPTIM = OptimSettings(
    lora_lr=1e-2,
    mapper_lr=2e-2,
    unet_lr=1e-3,
    text_encoder_lr=1e-3,
    weight_decay=0.01,
    betas=(0.9, 0.999),
    eps=1e-8,
    warmup_steps=0,
    cooldown_steps=0,
    total_steps=100,
    phases=(),
)
SAMPLING = SampleSettings(steps=2, guidance_scale=3.0, scheduler="dpm++", negative_prompt="", batch_size=2)


def build(
    backbone: StableDiffusion,
    codes: int = 3,
    layers: int = 1,
    rank: int = 2,
    snr_gamma: float | None = None,
    optim: OptimSettings = OPTIM,
) -> PersonalizationModule:
    """The module on a backbone that is the caller's to change."""
    vocabulary = PartVocabulary(("background", "head", "wing"), (codes,) * 3)
    add_lora(backbone.unet, rank=rank)
    mapper = TokenMapper(
        num_parts=2, num_codes=codes, widths=backbone.token_widths, layers=layers, position=True, norm_match=None
    )
    captions = CaptionBuilder(
        vocabulary=vocabulary, template_prob=0.5, shuffle=True, class_noun="", drop_prob=0.0, background=True
    )
    method = PartTokens(vocabulary, mapper, captions, backbone.tokenizers)
    return PersonalizationModule(backbone, method, optim, snr_gamma, SAMPLING)


def make_batch(module: PersonalizationModule, size: int = 2, seed: int = 0) -> TrainingBatch:
    """Random latents; the first caption has every part, the second no wing."""
    generator = torch.Generator().manual_seed(seed)
    backbone = module.backbone
    side = backbone.resolution // backbone.vae_scale_factor
    shape = (backbone.latent_channels, side, side)
    prompts = ["a photo of a <background:0> <head:1> <wing:2>", "<head:0> <background:2> bird"]
    examples = [
        TrainingExample(
            latents=torch.randn(shape, generator=generator),
            noise=torch.randn(shape, generator=generator),
            timestep=int(torch.randint(1000, (), generator=generator)),
            label_map=torch.randint(3, (backbone.attention_size,) * 2, generator=generator).to(torch.uint8),
            codes=torch.zeros(3, dtype=torch.long),
            prompt=prompts[number % 2],
            sample_id=number,
            image_id=number,
            crop=(64, 48, 0, 2),
        )
        for number in range(size)
    ]
    return Collate(module.method.tokenize)(examples)


def fit(module: PersonalizationModule, *callbacks, steps: int = 1, batch: TrainingBatch | None = None) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [make_batch(module) if batch is None else batch] * steps
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def attention_loss(weight: float) -> AttentionLoss:
    return AttentionLoss(weight, lambda maps, ids, labels: entropy_attention_loss(maps, ids, labels, 2))


class Constant:
    """A loss term whose value is known."""

    reads_attention = False

    def __init__(self, name: str, weight: float, value: float) -> None:
        self.name, self.weight, self.value = name, weight, value

    def __call__(self, step: StepOutput) -> Tensor:
        return torch.full((len(step.batch.latents),), self.value)


@pytest.fixture
def module(fresh_backbone) -> PersonalizationModule:
    return build(fresh_backbone)


def frozen(module: PersonalizationModule) -> dict[str, Tensor]:
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for index, encoder in enumerate(module.backbone.text_encoders):
        tensors |= {f"text {index} {name}": value for name, value in encoder.state_dict().items()}
    tensors |= {
        f"unet {name}": value for name, value in module.backbone.unet.state_dict().items() if "lora" not in name
    }
    tensors |= {f"vae {name}": value for name, value in module.backbone.vae.state_dict().items()}
    return {name: value.detach().clone() for name, value in tensors.items() if name not in trainable}


# What trains.


def test_exactly_the_mapper_and_the_adapter_train(module):
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    lora = {name for name in trainable if ".lora_A." in name or ".lora_B." in name}
    mapper = {f"method.mapper.{name}" for name, _ in module.method.mapper.named_parameters()}
    assert lora and mapper
    assert trainable == lora | mapper
    assert all(".attn2." in name for name in lora)
    optimizer = module.configure_optimizers()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"lora": 1e-2, "mapper": 2e-2}


def test_frozen_weights_are_bit_identical_after_steps_and_the_others_are_not(module):
    before = frozen(module)
    start = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    fit(module, attention_loss(0.1), steps=2)
    after = frozen(module)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    for name, parameter in module.named_parameters():
        if name in start:
            assert not torch.equal(start[name], parameter), name


def test_frozen_networks_stay_in_evaluation_mode(fresh_backbone):
    """A network with dropout would notice."""
    fresh_backbone.text_encoders[0].add_module("extra", nn.Dropout(0.5).eval())
    module = build(fresh_backbone)
    fit(module)
    assert not fresh_backbone.text_encoders[0].extra.training
    assert not fresh_backbone.vae.training


def test_warm_up_of_the_learning_rate(fresh_backbone):
    module = build(fresh_backbone, optim=dataclasses.replace(OPTIM, warmup_steps=4))
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_a_fused_optimizer_lets_gradients_be_clipped(module, monkeypatch):
    """Lightning refuses to clip where an optimizer unscales gradients by itself, as fused ones offer."""
    from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling

    parameter = torch.nn.Parameter(torch.zeros(1))
    assert _optimizer_handles_unscaling(torch.optim.AdamW([parameter], fused=True))
    monkeypatch.setattr(type(module), "device", property(lambda self: torch.device("cuda")))
    optimizer = module.configure_optimizers()
    assert all(group["fused"] for group in optimizer.param_groups)
    assert not _optimizer_handles_unscaling(optimizer)


def test_the_learning_rate_falls_to_zero_over_the_last_steps():
    optim = dataclasses.replace(OPTIM, cooldown_steps=4, total_steps=10)
    assert [optim.factor("lora", step) for step in range(10)] == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])
    assert optim.factor("lora", 12) == 0
    assert not optim.is_constant and OPTIM.is_constant


# What adds up.


def test_the_loss_is_the_weighted_sum_of_its_terms(module):
    module.add_loss_term(Constant("one", 0.5, 3.0))
    module.add_loss_term(Constant("two", 2.0, 0.25))
    batch = make_batch(module)
    with torch.no_grad():
        step = module.forward_step(batch)
    diffusion = float((step.model_pred - step.target).square().mean())
    logged = fit(module, batch=batch).callback_metrics
    assert float(logged["train/loss_diffusion"]) == pytest.approx(diffusion, rel=1e-5)
    assert float(logged["train/loss_one"]) == 3.0 and float(logged["train/loss_two"]) == 0.25
    assert float(logged["train/loss"]) == pytest.approx(diffusion + 0.5 * 3 + 2 * 0.25, rel=1e-5)


def test_the_attention_loss_is_added_with_its_weight(module):
    logged = fit(module, attention_loss(0.3)).callback_metrics
    assert float(logged["train/loss_attn"]) > 0
    expected = float(logged["train/loss_diffusion"]) + 0.3 * float(logged["train/loss_attn"])
    assert float(logged["train/loss"]) == pytest.approx(expected, rel=1e-5)


def test_min_snr_by_hand(fresh_backbone):
    module = build(fresh_backbone, snr_gamma=5.0)
    batch = make_batch(module)
    with torch.no_grad():
        step = module.forward_step(batch)
    alphas = module.backbone.noise_scheduler.alphas_cumprod[batch.timesteps]
    snr = alphas / (1 - alphas)
    errors = (step.model_pred - step.target).square().flatten(1).mean(dim=1)
    expected = float((errors * snr.clamp(max=5.0) / snr).mean())
    assert float(fit(module, batch=batch).callback_metrics["train/loss"]) == pytest.approx(expected, rel=1e-5)


def test_names_of_terms_are_unique(module):
    module.add_loss_term(Constant("one", 1.0, 1.0))
    with pytest.raises(ValueError, match="a loss term 'one' already"):
        module.add_loss_term(Constant("one", 1.0, 1.0))
    with pytest.raises(ValueError, match="a loss term 'diffusion' already"):
        module.add_loss_term(Constant("diffusion", 1.0, 1.0))
    module.remove_loss_term("one")
    module.add_loss_term(Constant("one", 1.0, 1.0))


# Attention.


def test_capture_changes_no_bit_of_outputs_and_gradients(module):
    batch = make_batch(module)

    def outputs() -> tuple[Tensor, list[Tensor]]:
        module.zero_grad()
        step = module.forward_step(batch)
        step.model_pred.square().mean().backward()
        return step.model_pred.detach(), [p.grad.clone() for p in module.parameters() if p.requires_grad]

    off, gradients_off = outputs()
    module.request_attention()
    on, gradients_on = outputs()
    module.release_attention()
    again, _ = outputs()
    assert torch.equal(off, on) and torch.equal(off, again)
    for a, b in zip(gradients_off, gradients_on, strict=True):
        assert torch.equal(a, b)


def test_without_a_request_no_layer_is_touched_and_requests_are_counted(module):
    processors = dict(module.backbone.unet.attn_processors)
    batch = make_batch(module)
    assert module.forward_step(batch).attention_maps is None
    assert module.backbone.unet.attn_processors == processors
    module.request_attention()
    module.request_attention()
    module.release_attention()
    size = module.backbone.attention_size
    assert module.forward_step(batch).attention_maps.shape == (2, 3, size, size)
    changed = {name for name, own in module.backbone.unet.attn_processors.items() if own is not processors[name]}
    assert changed == {f"{layer}.processor" for layer in module.backbone.attention_layers}
    module.release_attention()
    assert module.backbone.unet.attn_processors == processors


def test_a_probe_leaves_nothing_behind(module):
    processors = dict(module.backbone.unet.attn_processors)
    maps = module.probe_attention(make_batch(module))
    assert not maps.requires_grad
    assert (maps[1, 2] == 0).all() and (maps[0] > 0).all()  # the second caption has two part tokens
    assert module.backbone.unet.attn_processors == processors


@pytest.mark.parametrize("which", ["diffusion", "attention"])
def test_gradients_reach_the_tokens_of_the_prompts_and_no_others(fresh_backbone, which):
    module = build(fresh_backbone, layers=0)
    module.request_attention()
    step = module.forward_step(make_batch(module))
    loss = (
        (step.model_pred - step.target).square().mean() if which == "diffusion" else step.attention_maps.square().sum()
    )
    loss.backward()
    vectors = module.method.mapper
    gradient = next(p.grad for p in vectors.parameters() if p.ndim >= 2 and p.shape[-1] == sum(vectors.widths))
    rows = gradient.reshape(-1, gradient.shape[-1]).abs().sum(dim=1)
    used = {0 * 3 + 0, 1 * 3 + 1, 2 * 3 + 2, 1 * 3 + 0, 0 * 3 + 2}
    assert set(rows.nonzero().flatten().tolist()) == used
    lora = [p for name, p in module.named_parameters() if ".lora_B." in name]
    assert any(float(p.grad.abs().sum()) > 0 for p in lora if p.grad is not None)


# Images.


def test_a_picture_depends_on_prompt_and_seed_alone(module):
    prompts = ["<head:1> <wing:2>", "<head:0>", "a bird"]
    together = module.generate(prompts, [3, 4, 5])
    assert together.shape == (3, 3, module.backbone.resolution, module.backbone.resolution)
    assert together.dtype == torch.uint8
    for index, prompt in enumerate(prompts):
        alone = module.generate([prompt], [3 + index])[0]
        assert (alone.int() - together[index].int()).abs().max() <= 1  # the batch size may change the last bit
    assert not torch.equal(module.generate(["<head:0>"], [4]), module.generate(["<head:0>"], [5]))
    assert torch.equal(module.generate(["<head:0>"], [4]), module.generate(["<head:0>"], [4]))


def test_sampling_settings_can_be_changed_for_one_picture_or_for_all(module):
    base = module.generate(["<head:0>"], [1])
    assert torch.equal(module.generate(["<head:0>"], [1], steps=2, guidance_scale=3.0), base)
    assert not torch.equal(module.generate(["<head:0>"], [1], steps=4), base)
    other = module.generate(["<head:0>"], [1], guidance_scale=0.0)
    assert not torch.equal(other, base)
    assert not torch.equal(module.generate(["<head:0>"], [1], negative_prompt="<wing:1>"), base)
    module.use_sampling(dataclasses.replace(SAMPLING, guidance_scale=0.0))
    assert torch.equal(module.generate(["<head:0>"], [1]), other)


# Checkpoints.


def checkpoints_in(folder: Path) -> Checkpoints:
    callback = Checkpoints(every_n_steps=1)
    callback.folder = folder
    return callback


def test_a_checkpoint_holds_what_trains_and_no_more(module, tmp_path):
    fit(module, checkpoints_in(tmp_path), steps=2)
    path = tmp_path / "step=000002.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["state_dict"].keys() == {name for name, p in module.named_parameters() if p.requires_grad}
    for name, value in content["state_dict"].items():
        assert torch.equal(value, dict(module.named_parameters())[name])
    assert content["global_step"] == 2
    assert content["frozen"] == {"backbone": "tiny", "hash": module.backbone.hash}
    adapter = sum(value.nbytes for value in content["state_dict"].values())
    assert path.stat().st_size < 3 * adapter + 300_000  # the optimizer's two moments, and names


def test_a_checkpoint_of_the_embedded_model_has_a_few_megabytes(tmp_path):
    from partcraft_lit.world.pretrain.autoencoder import build_autoencoder
    from partcraft_lit.world.pretrain.denoiser import build_scheduler, build_text_encoder, build_unet
    from partcraft_lit.world.pretrain.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    backbone = StableDiffusion(
        name="mini",
        unet=build_unet(8),
        vae=build_autoencoder(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        resolution=64,
    )
    module = build(backbone, codes=20, layers=2, rank=4)
    fit(module, checkpoints_in(tmp_path))
    whole = sum(p.numel() * p.element_size() for p in backbone.unet.parameters())
    assert (tmp_path / "step=000001.ckpt").stat().st_size < min(3e6, whole)


def saved(module: PersonalizationModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_loading_restores_every_bit(tiny_backbone):
    trained = build(copy.deepcopy(tiny_backbone))
    fit(trained, steps=2)
    other = build(copy.deepcopy(tiny_backbone))
    other.load_state_dict(saved(trained))
    batch = make_batch(trained)
    with torch.no_grad():
        assert torch.equal(trained.forward_step(batch).model_pred, other.forward_step(batch).model_pred)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"rank": 3}, r"'backbone\.unet\..*lora_A.*' has shape \(2, \d+\), expected \(3, \d+\)"),
        ({"codes": 4}, r"'method\.mapper\..*' has shape .*M, K, lora\.rank or the backbone differ"),
        (
            {"layers": 2},
            r"missing tensors \d+, for instance 'method\.mapper.*unexpected none.*other settings of method",
        ),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tiny_backbone, changed, message):
    state = saved(build(copy.deepcopy(tiny_backbone)))
    other = build(copy.deepcopy(tiny_backbone), **changed)
    before = saved(other)
    with pytest.raises(UserError, match=message):
        other.load_state_dict(state)
    for name, value in saved(other).items():
        assert torch.equal(value, before[name])


def test_a_checkpoint_that_is_not_finite_is_refused(module):
    state = saved(module)
    next(iter(state.values())).view(-1)[0] = float("nan")
    with pytest.raises(UserError, match="its weights are not finite"):
        module.load_state_dict(state)


def rates(trainer: Trainer) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}


def test_a_run_that_had_cooled_down_is_extended_at_the_rates_of_the_longer_run(tiny_backbone, tmp_path):
    def settings(total: int) -> OptimSettings:
        return dataclasses.replace(OPTIM, cooldown_steps=2, total_steps=total)

    ended = fit(build(copy.deepcopy(tiny_backbone), optim=settings(2)), checkpoints_in(tmp_path), steps=2)
    assert set(rates(ended).values()) == {0.0}
    longer = build(copy.deepcopy(tiny_backbone), optim=settings(6))
    before = []
    longer.on_train_batch_start = lambda *_: before.append(rates(longer.trainer))
    trainer = Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    loader = DataLoader([make_batch(longer)] * 2, batch_size=None)
    trainer.fit(longer, loader, ckpt_path=tmp_path / "step=000002.ckpt", weights_only=True)
    assert before[0] == {"lora": OPTIM.lora_lr, "mapper": OPTIM.mapper_lr}


def test_halved_rates_are_kept_by_the_checkpoint(tiny_backbone, tmp_path):
    module = build(copy.deepcopy(tiny_backbone))
    module.scale_rates(0.5)
    trainer = fit(module, checkpoints_in(tmp_path))
    assert rates(trainer)["mapper"] == OPTIM.mapper_lr / 2
    content = torch.load(tmp_path / "step=000001.ckpt", weights_only=True)
    other = build(copy.deepcopy(tiny_backbone))
    other.on_load_checkpoint(content)
    assert rates(fit(other))["mapper"] == OPTIM.mapper_lr / 2


def test_a_checkpoint_on_other_weights_is_refused(module, make_components):
    content: dict = {}
    module.on_save_checkpoint(content)
    other = build(StableDiffusion(name="other", **make_components(seed=1), resolution=32))
    with pytest.raises(UserError, match=r"trained on weights [0-9a-f]{12} of 'tiny', but the backbone here is 'other'"):
        other.on_load_checkpoint(content)
    module.on_load_checkpoint(content)


def test_the_trainer_refuses_it_too(tiny_backbone, tmp_path: Path):
    fit(build(copy.deepcopy(tiny_backbone)), checkpoints_in(tmp_path))
    other = build(copy.deepcopy(tiny_backbone), rank=3)
    trainer = Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False)
    loader = DataLoader([make_batch(other)], batch_size=None)
    with pytest.raises(UserError, match="The checkpoint does not fit this run"):
        trainer.fit(other, loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_vectors_by_hand(module):
    """``part_vectors`` is the mapper on the batch's tokens."""
    batch = make_batch(module)
    with torch.no_grad():
        baked = module.method.bake()
        vectors = module.part_vectors(batch)
    assert_close(vectors[0, 1], baked[1, 1])
    assert_close(vectors[1, 0], baked[1, 0])
    assert (vectors[1, 2] == 0).all()


# What would make a GPU wait.


class _NoWaiting(TorchDispatchMode):
    """Raises where a value of a tensor would have to come back from the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in self.WAITING or boolean:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", (torch.float32, torch.bfloat16))
def test_a_step_never_waits_for_the_device(module, precision):
    callback = attention_loss(0.1)
    module.log_dict = lambda *args, **kwargs: None
    module.request_attention()
    module.add_loss_term(callback.term)
    batch = make_batch(module)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32), _NoWaiting():
        module.training_step(batch, 0).backward()
        nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], 1.0)
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_the_watch_for_waiting_sees_it():
    with _NoWaiting():
        for wait in (lambda x: x.item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: bool(x > 0)):
            with pytest.raises(AssertionError, match="waits for the device"):
                wait(torch.ones(1))
