from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import Dinov2Config, Dinov2Model

from discovery import discover
from partcraft_lit.core.errors import UserError
from partcraft_lit.parts.color import ColorFeatures
from partcraft_lit.parts.dinov2 import DinoV2Features


def picture(height: int = 56, width: int = 56, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=56)
    folder = tmp_path_factory.mktemp("dinov2") / "tiny"
    Dinov2Model(config).save_pretrained(folder)
    return folder


class TestColor:
    def test_by_hand(self):
        image = torch.zeros(3, 4, 4, dtype=torch.uint8)
        image[0, :2, :2] = 255  # one pure red cell
        image[:, 2, 2:] = 255  # one cell half white, half black
        (grid,) = ColorFeatures(grid=2, bias=0.5)([image])
        assert grid.shape == (2, 2, 6)
        assert_close(grid[0, 0], torch.tensor([1 / 3 - 0.5, 1, 0.5, 0, 0, 0.5]))
        assert_close(grid[1, 1], torch.tensor([0, 0, 0, 0.5, 0, 0.5]))
        assert_close(grid[1, 0], torch.tensor([-0.5, 0, 0, 0, 0, 0.5]))

    @pytest.mark.parametrize(
        "size, shape", [((64, 64), (16, 16)), ((64, 96), (16, 24)), ((500, 64), (48, 16)), ((9, 9), (16, 16))]
    )
    def test_grid_follows_the_aspect(self, size, shape):
        (grid,) = ColorFeatures()([picture(*size)])
        assert grid.shape == (*shape, 6)
        assert bool(torch.isfinite(grid).all())

    def test_does_not_know_the_place(self):
        image = picture(64, 64)
        (grid,), (mirrored,) = ColorFeatures()([image]), ColorFeatures()([image.flip(-1)])
        assert_close(mirrored, grid.flip(1))

    def test_settings_are_in_the_hash(self):
        assert len({ColorFeatures().hash, ColorFeatures(grid=8).hash, ColorFeatures(bias=1).hash}) == 3
        with pytest.raises(ValueError, match="at least 2 cells"):
            ColorFeatures(grid=1)


class TestDinoV2:
    def test_equals_the_model_run_by_hand(self, dinov2_folder):
        image = picture()
        (grid,) = DinoV2Features(str(dinov2_folder), size=56)([image])
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixel_values = (image / 255 - mean[:, None, None]) / std[:, None, None]
        model = Dinov2Model.from_pretrained(dinov2_folder).eval()
        with torch.no_grad():
            hidden = model(pixel_values[None], output_hidden_states=True).hidden_states[-1]
        assert_close(grid, hidden[0, 1:].view(4, 4, 16))

    def test_final_norm_is_last_hidden_state(self, dinov2_folder):
        features = DinoV2Features(str(dinov2_folder), size=56, final_norm=True)
        (grid,), (plain,) = features([picture()]), DinoV2Features(str(dinov2_folder), size=56)([picture()])
        assert_close(grid, features.network.layernorm(plain))

    def test_layers_are_counted_like_a_list(self, dinov2_folder):
        second, also_second, last = (DinoV2Features(str(dinov2_folder), size=56, layer=layer) for layer in (1, -2, -1))
        image = picture()
        assert torch.equal(second([image])[0], also_second([image])[0])
        assert not torch.equal(second([image])[0], last([image])[0])
        assert second.hash == also_second.hash != last.hash
        with pytest.raises(UserError, match=r"Layer 3 .* has blocks 0\.\.\.2"):
            DinoV2Features(str(dinov2_folder), layer=3)

    def test_the_whole_image_is_seen_at_its_aspect(self, dinov2_folder):
        features = DinoV2Features(str(dinov2_folder), size=56)
        shapes = [tuple(grid.shape) for grid in features([picture(100, 150), picture(300, 60), picture(40, 40)])]
        assert shapes == [(4, 6, 16), (12, 4, 16), (4, 4, 16)]

    def test_batches_of_mixed_sizes_keep_their_order(self, dinov2_folder):
        features = DinoV2Features(str(dinov2_folder), size=56, batch_size=2)
        images = [picture(56, 56 + 28 * (index % 2), seed=index) for index in range(5)]
        together = features(images)
        for image, grid in zip(images, together, strict=True):
            assert_close(grid, features([image])[0])

    def test_is_frozen(self, dinov2_folder):
        network = DinoV2Features(str(dinov2_folder)).network
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())

    def test_the_hash_follows_weights_and_preparation(self, dinov2_folder, tmp_path):
        Dinov2Model.from_pretrained(dinov2_folder).save_pretrained(tmp_path)
        assert DinoV2Features(str(tmp_path)).hash == DinoV2Features(str(dinov2_folder)).hash
        assert DinoV2Features(str(tmp_path), size=448).hash != DinoV2Features(str(dinov2_folder)).hash
        weights = load_file(tmp_path / "model.safetensors")
        weights["layernorm.bias"] += 1
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert DinoV2Features(str(tmp_path)).hash != DinoV2Features(str(dinov2_folder)).hash

    def test_missing_weights_say_how_to_get_them(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

        def refuse(*args, **kwargs):
            raise OSError("We couldn't connect to the hub.\nmore")

        monkeypatch.setattr(Dinov2Model, "from_pretrained", refuse)
        with pytest.raises(UserError, match=r"'dinov2_base' \(facebook/dinov2-base\).*HF_HUB_OFFLINE.*hf download"):
            DinoV2Features("dinov2_base")

    @pytest.mark.parametrize(
        "model, message",
        [
            ("dinov2_bse", r"features\.dinov2_base\.model=dinov2_bse: .* Did you mean 'dinov2_base'"),
            ("/nowhere/at/all", "neither a known model nor a folder"),
        ],
    )
    def test_unknown_models(self, model, message):
        with pytest.raises(UserError, match=message):
            DinoV2Features(model)

    def test_folders_with_something_else(self, tmp_path):
        with pytest.raises(UserError, match=r"no config\.json"):
            DinoV2Features(str(tmp_path))
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(UserError, match="cannot be read as JSON"):
            DinoV2Features(str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
        with pytest.raises(UserError, match="model of type 'clip'"):
            DinoV2Features(str(tmp_path))

    def test_weights_with_holes_are_refused_not_filled_at_random(self, dinov2_folder, tmp_path):
        Dinov2Model.from_pretrained(dinov2_folder).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["encoder.layer.1.norm1.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"1 tensors are missing.*norm1"):
            DinoV2Features(str(tmp_path))

    def test_discovers(self, dinov2_folder, creatures):

        features = DinoV2Features(str(dinov2_folder), size=112)
        found = discover(creatures(8, sizes=((64, 64), (64, 90))), features, M=2, K=2, nredo=1)
        assert found.dictionary.features_hash == features.hash
        assert bool(torch.isfinite(F.normalize(found.part_features, dim=-1)).all())
