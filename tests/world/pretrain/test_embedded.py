"""Autoencoder and denoiser of the embedded model: shapes, a few steps, and what must not move."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPTextModel

from partcraft_lit.backbones.loading import packaged_weights
from partcraft_lit.core.images import to_unit
from partcraft_lit.world.pretrain import autoencoder as autoencoder_module
from partcraft_lit.world.pretrain.autoencoder import build_autoencoder, train_autoencoder
from partcraft_lit.world.pretrain.denoiser import (
    TextAndDenoiser,
    build_denoiser,
    build_scheduler,
    build_text_encoder,
    build_unet,
    cell_weights,
    noise_dependent,
    train_denoiser,
)
from partcraft_lit.world.pretrain.examples import FreshExamples, told_shapes, words_of_parts
from partcraft_lit.world.pretrain.recipe import use_published_names
from partcraft_lit.world.pretrain.tokenizer import build_tokenizer
from partcraft_lit.world.zoo.captions import COLOR_WORDS, SPECIES_NAMES, tells_shapes
from partcraft_lit.world.zoo.looks import BEAST, BIRD, NUM_PARTS, TEXTURES
from partcraft_lit.world.zoo.scenes import PretrainingScenes
from pretraining import loop_settings

SCENES = PretrainingScenes(seed=2)
SETTINGS = loop_settings(steps=2, batch_size=2, lr=1e-3, warmup=1)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return build_autoencoder()


def silent(line: str) -> None:
    pass


def test_pixels_in_minus_one_to_one():
    values = to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert_close(values, torch.tensor([-1.0, -0.6, 1.0]))


def test_latents_are_a_quarter_of_the_side(vae):
    with torch.no_grad():
        posterior = vae.encode(torch.zeros(2, 3, 64, 64)).latent_dist
        assert posterior.mean.shape == (2, 8, 16, 16)
        assert vae.decode(posterior.mean).sample.shape == (2, 3, 64, 64)


def test_autoencoder_training_is_repeatable_and_sets_the_scale_of_latents(tmp_path, monkeypatch):
    real_batch = PretrainingScenes.batch
    # the scale is measured on many scenes; 8 do here
    monkeypatch.setattr(PretrainingScenes, "batch", lambda self, indices: real_batch(self, indices[:8]))
    first, second = (train_autoencoder(SCENES, SETTINGS, tmp_path / name, silent) for name in "ab")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    drawing, _ = real_batch(SCENES, range(10**9, 10**9 + 8))
    with torch.no_grad():
        latents = first.encode(to_unit(drawing.images)).latent_dist.mean * first.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)


def test_kl_is_a_trace_of_the_loss():
    assert 0 < autoencoder_module.KL_WEIGHT <= 1e-4


def test_scheduler_is_that_of_stable_diffusion_scaled_to_end_in_noise():
    scheduler = build_scheduler()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0).sqrt()  # shifted to 0 at the end, and scaled to what it was at the start
    expected = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()
    assert_close(scheduler.alphas_cumprod.double(), expected, atol=1e-5, rtol=1e-4)
    assert scheduler.alphas_cumprod[-1] == 0
    assert (scheduler.config.prediction_type, scheduler.config.timestep_spacing) == ("v_prediction", "trailing")


def test_denoiser_sees_text_at_16_by_16():
    unet = build_unet(8)
    seen: list[int] = []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.register_forward_hook(lambda m, args, output: seen.append(output.shape[1]))
    with torch.no_grad():
        out = unet(torch.zeros(1, 8, 16, 16), torch.tensor([1]), encoder_hidden_states=torch.zeros(1, 77, 128)).sample
    assert out.shape == (1, 8, 16, 16)
    assert seen.count(16 * 16) == 3


def trained(vae, checkpoint, model=None, settings=SETTINGS, weight=0.1, polished_from=None) -> TextAndDenoiser:
    """A few steps on the images of ``SCENES``."""
    tokenizer = build_tokenizer()
    source = FreshExamples(SCENES, tokenizer, vae.eval(), torch.device("cpu"))
    model = model or build_denoiser(tokenizer, 8, SCENES.seed)
    return train_denoiser(source, SCENES.seed, model, settings, checkpoint, silent, weight, polished_from=polished_from)


def test_denoiser_trains_text_and_unet_and_leaves_the_autoencoder(vae, tmp_path):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    settings = dataclasses.replace(SETTINGS, optimizer="muon")
    first, second = (trained(vae, tmp_path / name / "denoiser.pt", settings=settings) for name in "ab")
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]), name
    start = build_denoiser(build_tokenizer(), 8, SCENES.seed).state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    moved = [name for name, value in first.state_dict().items() if not torch.equal(value, start[name])]
    assert any(name.startswith("text_encoder.") for name in moved)
    assert any(name.startswith("unet.") and "attn2" in name for name in moved)


def test_without_the_grounding_loss_another_base_comes_out(vae, tmp_path):
    told, plain = (trained(vae, tmp_path / str(weight) / "denoiser.pt", weight=weight) for weight in (0.1, 0.0))
    assert not torch.equal(told.unet.mid_block.resnets[0].conv1.weight, plain.unet.mid_block.resnets[0].conv1.weight)


def test_polishing_goes_on_with_the_images_that_follow(vae, tmp_path, monkeypatch):
    real_batch = PretrainingScenes.batch
    seen: list[range] = []

    def batch(self, indices):
        seen.append(indices)
        return real_batch(self, indices)

    monkeypatch.setattr(PretrainingScenes, "batch", batch)
    model = trained(vae, tmp_path / "denoiser.pt").requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    polished = trained(vae, tmp_path / "polish.pt", model, polished_from=2)
    assert seen == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    distances = [(value - before[name]).abs().max() for name, value in polished.state_dict().items()]
    assert 0 < float(max(distances)) < 0.02  # two steps of a rate of 1e-3 away, not a model made anew


def test_weights_of_cells_go_to_one_without_noise():
    weights = torch.tensor([[[0.5, 1.5]], [[0.5, 1.5]], [[0.5, 1.5]]])
    found = noise_dependent(weights, torch.tensor([0.0, 0.5, 1.0]))
    assert_close(found, torch.tensor([[[1.0, 1.0]], [[0.75, 1.25]], [[0.5, 1.5]]]))


def test_shapes_that_a_caption_says():
    shape = BIRD.shapes[0][1]
    text = f"a photo of a bird with red {shape} head, blue body and {SPECIES_NAMES['bird'][0]} wing"
    assert tells_shapes(BIRD, text) == [True, False, True, False, False]
    assert tells_shapes(BIRD, f"a photo of a {SPECIES_NAMES['bird'][0]} with red head") == [True] * NUM_PARTS
    beast = f"a beast with {BEAST.shapes[3][1]} legs"
    said = told_shapes([(BIRD, BEAST), (BIRD,)], [f"{text} and {beast}", ""])
    assert said.tolist() == [
        [True, False, True, False, False, *tells_shapes(BEAST, beast)],
        [False] * 2 * NUM_PARTS,
    ]
    assert sum(tells_shapes(BEAST, beast)) == 1


def test_weights_of_cells_by_hand():
    label_maps = torch.zeros(1, 16, 16, dtype=torch.uint8)
    label_maps[0, :4, :4] = 1
    label_maps[0, 5, 9] = 2  # a dot that no cell's middle sees, in the cell (1, 2)
    cells = label_maps[:, 2::4, 2::4]
    expected = torch.full((1, 4, 4), 15**-0.5)
    expected[0, 0, 0] = 1.0
    expected[0, 1, 2] *= 2
    assert_close(cell_weights(label_maps, cells), expected / expected.mean())


def test_words_of_both_creatures_are_known():
    ids, labels = words_of_parts(
        [(BIRD, BEAST), (BIRD,)],
        ["a photo of a bird with red striped head and a beast with blue tail", "a photo of a bird with pink legs"],
    )
    # start, a photo of a bird with red striped head and a beast with blue tail
    assert ids.tolist() == [[7, 8, 9, 14, 15], [7, 8, -1, -1, -1]]
    assert labels.tolist() == [[1, 1, 1, 10, 10], [5, 5, -1, -1, -1]]


def test_words_of_parts_stand_where_the_tokenizer_puts_them():
    tokenizer = build_tokenizer()
    scenes = PretrainingScenes(seed=6, pair_share=0.5)
    _, captions = scenes.batch(range(40))
    families = [scenes.families(index) for index in range(40)]
    places, labels = words_of_parts(families, captions)
    for row, text in enumerate(captions):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        for place, label in zip(places[row].tolist(), labels[row].tolist(), strict=True):
            if place >= 0:
                word = tokens[place].removesuffix("</w>")
                creature, part = divmod(label - 1, NUM_PARTS)
                family = families[row][creature]
                known = {*COLOR_WORDS, *TEXTURES, *SPECIES_NAMES[family.noun], *family.shapes[part]}
                assert word in known | {family.part_names[part]}, (text, word)


def test_the_text_encoder_is_stored_under_the_published_names(tmp_path):
    path = packaged_weights("mini") / "text_encoder" / "model.safetensors"
    assert all(name.startswith("text_model.") for name in load_file(path))
    made = build_text_encoder(build_tokenizer())
    made.save_pretrained(tmp_path)
    use_published_names(tmp_path / "model.safetensors")
    assert all(name.startswith("text_model.") for name in load_file(tmp_path / "model.safetensors"))
    again = CLIPTextModel.from_pretrained(tmp_path)
    for name, weight in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


@pytest.mark.parametrize("name", ["mini", "mini_dit"])
def test_packaged_configurations_say_float32_and_no_folder(name):
    configs = list(packaged_weights(name).glob("*/config.json"))
    assert len(configs) >= 3
    for config in configs:
        values = json.loads(config.read_text(encoding="utf-8"))
        assert "_name_or_path" not in values and values.get("dtype", "float32") == "float32"
