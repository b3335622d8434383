"""DINO scores with real, tiny models of random weights."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from partcraft_lit.core.errors import UserError
from partcraft_lit.metrics.dino import DinoFeatures, load_dino

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module", params=["vit", "dinov2"])
def model(request):
    torch.manual_seed(0)
    if request.param == "vit":
        return ViTModel(
            ViTConfig(**SIZES, intermediate_size=16, image_size=224, patch_size=56), add_pooling_layer=False
        ).eval()
    return Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, image_size=518, patch_size=56)).eval()


def test_the_class_token_describes_the_middle(model, pictures):
    features = DinoFeatures(model, "tiny")
    image = torch.nn.functional.interpolate(pictures(1).float(), (256, 300)).to(torch.uint8)
    found = features(image)
    assert found.shape == (1, features.dim) == (1, 8)
    cut = image[:, :, 16:240, 38:262].float() / 255  # 256 needs no resizing
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        assert_close(found, model(pixel_values=(cut - mean) / std).last_hidden_state[:, 0])


def test_loaded_from_a_folder_and_independent_of_the_batch(model, pictures, tmp_path):
    model.save_pretrained(tmp_path / "tiny-dino")
    loaded = load_dino(str(tmp_path / "tiny-dino"), batch_size=1)
    assert_close(loaded(pictures(2)), DinoFeatures(model, "x")(pictures(2)), atol=1e-5, rtol=1e-4)
    assert loaded.id == "tiny-dino"


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"Did you mean .*'dino_small16'"):
        load_dino("dino_small")
    with pytest.raises(UserError, match=r"'facebook/dino-vits16' .* could not be loaded"):
        load_dino("dino_small16")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=r"of type 'clip', but 'vit' \(DINO\) or 'dinov2' is wanted"):
        load_dino(str(tmp_path))
    ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=16, intermediate_size=16)).save_pretrained(tmp_path / "more")
    load_dino(str(tmp_path / "more"))  # a pooling layer too many does no harm
    ViTModel(
        ViTConfig(**SIZES, image_size=32, patch_size=16, intermediate_size=16), add_pooling_layer=False
    ).save_pretrained(tmp_path / "less")
    config = (tmp_path / "less" / "config.json").read_text()
    (tmp_path / "less" / "config.json").write_text(config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(UserError, match="do not fit a DINO model: 16 tensors are missing"):
        load_dino(str(tmp_path / "less"))
