from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from discovery import discover
from partcraft_lit.core.errors import UserError
from partcraft_lit.world.creatures import Creatures
from partcraft_lit.world.mini_features import (
    MiniFeatures,
    MiniSettings,
    default_folder,
    load_patch_network,
    local_appearance,
    save_patch_network,
    share_along_surfaces,
)
from partcraft_lit.world.patch_network import PatchNetwork, normalise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights")
    save_patch_network(PatchNetwork(8, widths=(8, 16, 16), depth=1), path, MiniSettings(), {"steps": 0})
    return path


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


@pytest.mark.parametrize(("stride", "side"), [(1, 64), (2, 32), (4, 16)])
def test_grids_follow_the_aspect(folder, stride, side):
    features = MiniFeatures(folder, settings=MiniSettings(stride=stride))
    grids = features(pictures((64, 64), (100, 200), (51, 30), (10, 10)))
    assert [tuple(grid.shape) for grid in grids] == [
        (side, side, features.dim),
        (side, 2 * side, features.dim),
        (108 // stride, side, features.dim),
        (side, side, features.dim),
    ]
    assert all(grid.dtype == torch.float32 and bool(torch.isfinite(grid).all()) for grid in grids)
    kinds = grids[0][..., : features.semantic_dims]
    assert_close(kinds.norm(dim=-1), torch.ones(side, side))


def test_batches_change_nothing(folder):
    images = pictures((64, 64), (64, 80), (64, 64), (64, 64))
    for one, other in zip(MiniFeatures(folder)(images), MiniFeatures(folder, batch_size=1)(images), strict=True):
        assert_close(one, other, atol=1e-5, rtol=0)


def test_kinds_ignore_brightness_and_contrast(folder):
    image = torch.rand(1, 3, 16, 16)
    assert_close(normalise(image * 0.5 + 0.2), normalise(image), atol=1e-5, rtol=0)
    assert bool(torch.isfinite(normalise(torch.zeros(1, 3, 16, 16))).all())


def test_sharing_stays_on_its_side_of_an_edge():
    colors = torch.zeros(1, 3, 12, 12)
    colors[..., 6:] = 1.0
    maps = torch.rand(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    maps[..., 6:] += 5
    shared = share_along_surfaces(maps, colors, reach=4, color_reach=0.1)
    assert float(shared[..., :6].max()) < 1
    assert float(shared[..., 6:].min()) > 5
    assert float(shared[..., :6].std()) < 0.6 * float(maps[..., :6].std())


def test_sharing_equals_the_sum_by_hand():
    generator = torch.Generator().manual_seed(1)
    maps, colors = torch.rand(1, 1, 1, 3, generator=generator), torch.rand(1, 3, 1, 3, generator=generator)
    shared = share_along_surfaces(maps, colors, reach=1, color_reach=0.5)
    weights, total = 0.0, 0.0
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            near = -(down**2 + right**2) / 2
            unlike = float((colors[0, :, 0, 1 + right] - colors[0, :, 0, 1]).square().sum())
            weight = torch.tensor(near - unlike / 0.5).exp()
            weights, total = weights + weight, total + weight * maps[0, 0, 0, 1 + right]
    assert float(shared[0, 0, 0, 1]) == pytest.approx(float(total / weights), abs=1e-6)


def test_appearance_of_a_plain_picture():
    seen = torch.tensor([0.8, 0.2, 0.2])[None, :, None, None].expand(1, 3, 8, 8)
    looks = local_appearance(seen)
    assert_close(looks[0, :3, 4, 4], torch.tensor([-0.1, 0.6, 0.3]))
    assert_close(looks[0, 3:6], torch.zeros(3, 8, 8), atol=1e-3, rtol=0)


def test_hash_knows_weights_and_settings(folder, tmp_path):
    torch.manual_seed(1)
    save_patch_network(PatchNetwork(8, widths=(8, 16, 16), depth=1), tmp_path, MiniSettings(), {})
    hashes = {
        MiniFeatures(folder).hash,
        MiniFeatures(tmp_path).hash,
        MiniFeatures(folder, settings=MiniSettings(stride=2)).hash,
    }
    assert len(hashes) == 3
    assert MiniFeatures(folder, batch_size=3).hash in hashes


def test_discovery_finds_parts_by_semantic_channels_alone(folder):
    features = MiniFeatures(folder, settings=MiniSettings(stride=4))
    dictionary = discover(Creatures(species=2, images_per_species=4), features, M=2, K=2, nredo=1).dictionary
    assert bool((dictionary.segmenter.part_centroids[:, features.semantic_dims :] == 0).all())
    assert bool((dictionary.segmenter.foreground_centroids[:, features.semantic_dims :] == 0).all())
    assert bool((dictionary.code_centroids[1][:, features.semantic_dims :] != 0).any())


def test_missing_weights_are_said(tmp_path):
    with pytest.raises(UserError, match=r"no features\.safetensors and no features\.json in .*features=color needs"):
        MiniFeatures(tmp_path / "nowhere")


def test_damaged_weights_are_said(folder, tmp_path):
    for name, content in (("features.safetensors", b"junk"), ("features.json", b"{")):
        for part in ("features.safetensors", "features.json"):
            (tmp_path / part).write_bytes((folder / part).read_bytes())
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            MiniFeatures(tmp_path)


def test_packaged_weights_are_small_and_say_where_they_come_from():
    folder = default_folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    assert json.loads((folder / "features.json").read_text())["training"]["steps"] > 0
    network, _, _ = load_patch_network(folder)
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
