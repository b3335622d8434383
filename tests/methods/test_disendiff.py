from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from partcraft_lit.backbones.attention import AttentionCapture
from partcraft_lit.callbacks.loss_terms import AddLossTerm
from partcraft_lit.core.errors import UserError
from partcraft_lit.losses.attention_iou import gaussian_kernel
from partcraft_lit.tokens.grammar import PartVocabulary

METHOD = ("method=disendiff", "method.captions.background=false")
PAIR = PartVocabulary(["background", "cat", "dog"], [1, 1, 1])
PROMPTS = ["a photo of a <cat:0> cat and <dog:0> dog", "a photo of a <dog:0> dog", "a photo of a cat"]


def slow_term(tokens: np.ndarray, nouns: np.ndarray) -> float:
    """The released steps once more for one caption: min-max, smoothing, square of the nouns, IoU with 1 added."""

    def smooth(image: np.ndarray) -> np.ndarray:
        image = (image - image.min()) / (image.max() - image.min() + 1e-8)
        padded, weights = np.pad(image, 1, mode="reflect"), gaussian_kernel("paper").double().numpy()
        height, width = image.shape
        return sum(weights[y, x] * padded[y : y + height, x : x + width] for y in range(3) for x in range(3))

    def iou(one: np.ndarray, other: np.ndarray) -> float:
        both = (one * other).sum()
        return (both + 1) / (one.sum() + other.sum() - both + 1)

    squares = [smooth(noun) ** 2 for noun in nouns]
    bind = [1 - iou(square, smooth(token)) for square, token in zip(squares, tokens, strict=True)]
    apart = [iou(squares[i], squares[j]) for i in range(len(nouns)) for j in range(i + 1, len(nouns))]
    return sum(bind) / max(len(bind), 1) + (sum(apart) / len(apart) if apart else 0.0)


@pytest.fixture
def pair(build):
    return build(*METHOD, vocabulary=PAIR)


def test_the_term_is_that_of_the_slow_definition_on_maps_of_tokens_and_their_nouns(pair, batch_of):
    batch = batch_of(pair, PROMPTS)
    pair.request_attention()
    with torch.no_grad():
        step = pair.forward_step(batch)
    pair.release_attention()
    positions = batch.tokens.part_positions
    assert positions.tolist() == [[5, 8], [5, -1], [-1, -1]]
    backbone = pair.backbone
    with (
        torch.no_grad(),
        AttentionCapture(backbone.unet, backbone.attention_layers, backbone.attention_size) as capture,
    ):
        with capture.armed(torch.tensor([[6, 9], [6, -1], [-1, -1]])):  # "cat" and "dog", behind their tokens
            scheduler = backbone.noise_scheduler
            noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
            backbone.denoise(noisy, batch.timesteps, backbone.encode_prompts(batch.tokens, pair.part_vectors(batch)))
        torch.testing.assert_close(step.noun_attention_maps, capture.maps(), rtol=1e-4, atol=1e-6)
    (term,) = pair.method.loss_terms()
    tokens, nouns = step.attention_maps.double().numpy(), step.noun_attention_maps.double().numpy()
    expected = [slow_term(tokens[row, :count], nouns[row, :count]) for row, count in enumerate((2, 1, 0))]
    torch.testing.assert_close(term(step).double(), torch.tensor(expected, dtype=torch.double), rtol=1e-4, atol=1e-5)


def test_a_batch_without_tokens_costs_nothing(pair):
    maps, used = torch.zeros(2, 0, 8, 8), torch.zeros(2, 0, dtype=torch.bool)
    (term,) = pair.method.loss_terms()
    batch = SimpleNamespace(tokens=SimpleNamespace(part_ids=used.long()))
    assert term(SimpleNamespace(attention_maps=maps, noun_attention_maps=maps, batch=batch)).tolist() == [0.0, 0.0]


def test_it_trains_what_custom_diffusion_trains_and_the_term_falls(build, batch_of):
    module = build(*METHOD, "method.weight=100", "optim.unet_lr=0.001", "optim.mapper_lr=0.002", vocabulary=PAIR)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight", "mapper.codes")) for name in trained)
    (term,) = module.method.loss_terms()
    batch = batch_of(module, PROMPTS)

    def value() -> float:
        module.request_attention()
        with torch.no_grad():
            found = float(term(module.forward_step(batch)).mean())
        module.release_attention()
        return found

    before = value()
    trainer = Trainer(
        max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[AddLossTerm(term)],
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch] * 10, batch_size=None))
    assert value() < before
    assert "train/loss_disentangle" in trainer.callback_metrics


def embeds(module, prompt: str) -> torch.Tensor:
    tokens = module.method.tokenize([prompt])
    with torch.no_grad():
        return module.backbone.encode_prompts(tokens, module.method.part_vectors(tokens)).encoder_hidden_states


@pytest.fixture
def parts(pair, make_components):
    """A pipeline's components around the trained UNet."""
    trained = dict(make_components(), unet=copy.deepcopy(pair.backbone.unet).requires_grad_(False).eval())
    trained["scheduler"] = DDIMScheduler.from_config(trained["scheduler"].config, clip_sample=False)
    return trained | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def test_a_community_lora_is_added_at_inference(pair, parts, tmp_path):
    """Weights that train are plain weights of the UNet, so an adapter made for the untrained model goes on top."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    style = copy.deepcopy(parts["unet"])
    style.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(style))
    pipeline = StableDiffusionPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        given = {"prompt_embeds": embeds(pair, PROMPTS[0]), "negative_prompt_embeds": embeds(pair, "")}
        seed = torch.Generator().manual_seed(0)
        return pipeline(**given, num_inference_steps=2, height=32, width=32, generator=seed, output_type="np").images

    plain = draw()
    pipeline.load_lora_weights(tmp_path)
    styled = draw()
    assert np.isfinite(styled).all() and np.abs(styled - plain).max() > 1e-3
    pipeline.unload_lora_weights()
    assert np.array_equal(draw(), plain)


def test_an_inpainting_pipeline_takes_the_concept_and_the_mask(pair, parts):
    pipeline = StableDiffusionInpaintPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    mask = Image.fromarray(np.pad(np.full((32, 16), 255, dtype=np.uint8), ((0, 0), (16, 0))))

    def draw(prompt: str) -> torch.Tensor:
        return pipeline(
            prompt_embeds=embeds(pair, prompt), negative_prompt_embeds=embeds(pair, ""), image=image, mask_image=mask,
            num_inference_steps=3, height=32, width=32, strength=1.0, generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images  # fmt: skip

    cat, dog = draw("a <cat:0> cat"), draw("a <dog:0> dog")
    assert torch.equal(cat[..., :8], dog[..., :8]), "outside the mask nothing changes"
    assert not torch.equal(cat[..., 8:], dog[..., 8:])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.most=3", "parts.M=4"], r"tells 2 to 3 concepts apart, got parts\.M=4"),
        (["parts.M=1"], r"2 or more concepts apart, got parts\.M=1\. For one concept take method=custom_diffusion"),
        (["method.nouns=false"], r"set method\.nouns=true"),
        (["parts.names=[]"], r"DisenDiff needs a noun for each part: name them"),
        (["parts.M=2", "parts.names=[cat,teddy-bear]"], r"the noun 'teddy-bear' is not one plain word"),
    ],
)
def test_messages_before_a_model_is_loaded(settings_of, overrides, message):
    settings = settings_of(*METHOD, *overrides)
    with pytest.raises(UserError, match=message):
        settings.method.check(settings, "")


def test_a_noun_of_several_tokens(build, settings_of, tiny_backbone):
    with pytest.raises(UserError, match=r"The noun 'axolotl' is 7 tokens to this model, and DisenDiff reads"):
        build(*METHOD, vocabulary=PartVocabulary(["background", "axolotl", "dog"], [1, 1, 1]))
    settings = settings_of(*METHOD, "parts.M=2", "parts.names=[cat,axolotl]")
    with pytest.raises(UserError, match="The noun 'axolotl'"):
        settings.method.check_words(tiny_backbone.tokenizers, "")
