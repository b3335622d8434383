from __future__ import annotations

import copy
import gc
import pickle
import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from discovery import discover
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import ABSENT
from partcraft_lit.parts import on_disk
from partcraft_lit.parts.discovery import read_parts
from partcraft_lit.parts.kmeans import assign, cluster_codes, cosine_kmeans, spread
from partcraft_lit.parts.on_disk import FeatureCache, LabelMaps, MappedRows
from partcraft_lit.parts.quality import score_parts

MAPS = [torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7]]), torch.tensor([[8], [9]])]


def test_small_sets_are_what_fitting_all_in_memory_gives(creatures, meaningful):
    source, features = creatures(30), meaningful()
    found = discover(source, features, M=2, K=3)
    segmenter = found.dictionary.segmenter
    grids = features([source.image(index) for index in range(30)])
    label_maps = segmenter.label_all(grids)
    vectors = torch.stack([segmenter.describe(*pair) for pair in zip(grids, label_maps, strict=True)])
    assert all(torch.equal(a, b) for a, b in zip(found.label_maps, label_maps, strict=True))
    assert torch.equal(found.part_features, vectors)
    for part in range(3):
        shown = (vectors[:, part] != 0).any(dim=1)
        seed = derive_seed(0, "discovery", f"codes{part}")
        table, labels = cluster_codes(vectors[shown, part], 3, seed=seed)
        order = torch.bincount(labels).argsort(descending=True, stable=True)
        assert torch.equal(found.dictionary.code_centroids[part], table[order])
        assert torch.equal(found.codes[shown, part], order.argsort()[labels])
        assert bool((found.codes[~shown, part] == ABSENT).all())


def test_more_images_than_the_bound_are_all_read(tmp_path, creatures, meaningful):
    source, store = creatures(210), Store(tmp_path)
    found = discover(source, meaningful(), M=2, K=3, max_patches=200, nredo=2, store=store)
    assert found.part_features.dtype == torch.float16
    quality = score_parts(source, found.label_maps, found.codes)
    assert quality.mean_nmi == pytest.approx(1.0)
    shown = [source.has_head(index) for index in range(210)]
    assert (found.codes[:, 1] != ABSENT).tolist() == shown
    _, codes, part_features = read_parts(source, meaningful(), found.dictionary, store=store)
    assert torch.equal(codes, found.codes)
    assert torch.equal(part_features, found.part_features)
    again = discover(source, meaningful(), M=2, K=3, max_patches=200, nredo=2, store=store)
    assert torch.equal(again.codes, found.codes)
    assert again.report.parts == found.report.parts


def test_class_codes_come_in_pieces(monkeypatch, creatures, meaningful):
    whole = discover(creatures(21), meaningful(), M=2, K=3, codes="class")
    monkeypatch.setattr("partcraft_lit.parts.segmentation.VECTORS", 4)
    monkeypatch.setattr("partcraft_lit.parts.segmentation.IMAGES", 4)
    pieces = discover(creatures(21), meaningful(), M=2, K=3, codes="class")
    assert torch.equal(whole.codes, pieces.codes)
    assert whole.report.parts == pieces.report.parts
    for first, second in zip(whole.dictionary.code_centroids, pieces.dictionary.code_centroids, strict=True):
        assert_close(first, second)


def test_pieces_are_assigned_as_the_whole_is():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    centroids, labels = cosine_kmeans(x, 5)
    unused = F.normalize(torch.cat([-100 * x[:1], centroids]), dim=1)
    unused[0] = 0
    kept, found = assign(x.split(7), unused)
    assert_close(kept, centroids)
    assert torch.equal(found, labels)


def test_spread_takes_all_or_evenly():
    assert spread(torch.arange(5), 5).tolist() == [0, 1, 2, 3, 4]
    assert spread(torch.arange(10), 5).tolist() == [0, 2, 4, 6, 8]


@pytest.fixture(params=["file", "memory", "sent"])
def label_maps(request) -> LabelMaps:
    if request.param == "memory":
        return LabelMaps.in_memory(MAPS)
    maps = LabelMaps(3)
    for index in (2, 0, 1):
        maps.put(index, MAPS[index])
    return maps if request.param == "file" else pickle.loads(pickle.dumps(maps))


def test_label_maps_are_a_sequence(label_maps):
    assert len(label_maps) == 3
    for found, put in zip(label_maps, MAPS, strict=True):
        assert found.dtype == torch.uint8
        assert found.tolist() == put.tolist()
    assert label_maps[-1].tolist() == [[8], [9]]
    assert [m.tolist() for m in label_maps[1:]] == [[[7]], [[8], [9]]]
    assert copy.deepcopy(label_maps)[0].tolist() == MAPS[0].tolist()
    with pytest.raises(IndexError, match="3 label maps"):
        label_maps[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_and_features_come_back(dtype):
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = MappedRows((5, 2, 3), dtype)
    with FeatureCache(1 << 20) as features:
        for index in (3, 1, 0, 4, 2):
            rows.put(index, x[index].float())
            features.put(index, x[index])
        assert all(torch.equal(features.get(index), x[index]) for index in range(5))
    kept = rows.rows
    assert torch.equal(kept, x)
    rows.release()
    assert torch.equal(kept, x)
    del rows
    assert torch.equal(kept, x)  # the memory lives as long as the tensor


def test_temporary_files_are_closed_with_their_objects(recwarn):
    warnings.simplefilter("always", ResourceWarning)
    held = [LabelMaps(1), LabelMaps.in_memory(MAPS), MappedRows((2, 3), torch.float32)]
    files = [held[0]._file, held[2]._file]
    del held
    gc.collect()
    assert [file.closed for file in files] == [True, True]
    assert not [str(warning.message) for warning in recwarn]


def test_a_full_disk_says_what_is_wanted(monkeypatch):
    def full(*arguments: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(on_disk.os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"need 0\.40 GB more .*No space left.*TMPDIR"):
        MappedRows((10_000, 10, 1000), torch.float32)


def test_a_disk_that_takes_only_a_piece_of_what_is_written_loses_nothing(monkeypatch):
    real = on_disk.os.pwrite
    monkeypatch.setattr(on_disk.os, "pwrite", lambda file, data, offset: real(file, data[:5], offset))
    maps, x = LabelMaps(3), torch.randn(4, 7)
    with FeatureCache(1 << 20) as features:
        for index, label_map in enumerate(MAPS):
            maps.put(index, label_map)
            features.put(index, x + index)
        assert [found.tolist() for found in maps] == [label_map.tolist() for label_map in MAPS]
        assert all(torch.equal(features.get(index), x + index) for index in range(3))
