from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.parts.segmenter import Segmenter


def dictionary(**changes) -> PartDictionary:
    axes = torch.eye(3)
    fields = {
        "names": ("background", "head", "wing"),
        "segmenter": Segmenter(torch.zeros(3), axes, torch.tensor([False, True, True]), axes[1:], min_component_size=2),
        "code_centroids": (axes[:1], axes[1:], axes),
        "features_id": "test",
        "features_hash": "0" * 64,
        "settings": {"num_parts": 2},
        "metadata": {"foreground": {"confidence": 0.5}},
    }
    return PartDictionary(**(fields | changes))


def test_save_and_load(tmp_path):
    saved = dictionary(class_names=("finch", "crow", "jay"))
    loaded = PartDictionary.load(saved.save(tmp_path / "new" / "folder"))
    assert loaded.hash == saved.hash
    assert loaded.segmenter.hash == saved.segmenter.hash
    for name in ("names", "class_names", "features_id", "features_hash", "settings", "metadata", "codes_per_part"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert (loaded.num_parts, loaded.num_codes(2), loaded.dim) == (2, 3, 3)


def test_equal_dictionaries_give_equal_files(tmp_path):
    dictionary().save(tmp_path / "a")
    dictionary().save(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_saving_over_another_leaves_one(tmp_path):
    dictionary().save(tmp_path)
    other = dictionary(code_centroids=(torch.eye(3)[:1], torch.eye(3)[:1], torch.eye(3)))
    other.save(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert PartDictionary.load(tmp_path).hash == other.hash


def test_names_can_be_edited_in_the_json(tmp_path):
    dictionary().save(tmp_path)
    path = tmp_path / "dictionary.json"
    path.write_text(path.read_text().replace('"wing"', '"left-wing"'))
    assert PartDictionary.load(tmp_path).names == ("background", "head", "left-wing")
    path.write_text(path.read_text().replace('"left-wing"', '"head"'))
    with pytest.raises(UserError, match="'head' is taken twice"):
        PartDictionary.load(tmp_path)


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no part dictionary in .*partcraft discover"):
        PartDictionary.load(tmp_path / "missing")
    dictionary().save(tmp_path)
    (tensors,) = tmp_path.glob("*.safetensors")
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + b"\x07")
    with pytest.raises(UserError, match="not the ones that the description names"):
        PartDictionary.load(tmp_path)
    tensors.unlink()
    with pytest.raises(UserError, match=r"lost its tensors, .*dictionary-"):
        PartDictionary.load(tmp_path)
    tensors.write_bytes(content)
    path = tmp_path / "dictionary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="format is 99, this version reads 1"):
        PartDictionary.load(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"dictionary\.json cannot be read"):
        PartDictionary.load(tmp_path)


def test_renaming_keeps_everything_else():
    assert dictionary().renamed(["a", "b"]).hash == dictionary().hash
    with pytest.raises(ValueError, match="3 names and tables"):
        dictionary().renamed(["a"])


def test_codes_are_nearest_and_absent_stays_absent():
    vectors = torch.tensor([[[1.0, 0, 0], [0, 0, 9], [0.1, 0.9, 0]], [[1.0, 0, 0], [0, 0, 0], [0, 0.1, 0.2]]])
    present = torch.tensor([[True, True, True], [True, False, True]])
    assert dictionary().read_codes(vectors, present).tolist() == [[0, 1, 1], [0, ABSENT, 2]]


def test_centroids_by_hand():
    found = dictionary().centroids(torch.tensor([[0, 1, ABSENT]]))
    assert_close(found, torch.tensor([[[1.0, 0, 0], [0, 0, 1], [0, 0, 0]]]))


def test_every_centroid_reads_as_its_own_code():
    book = dictionary()
    codes = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 1, 2]])
    assert torch.equal(book.read_codes(book.centroids(codes), codes != ABSENT), codes)


@pytest.mark.parametrize("codes", [[[0, 2, 0]], [[0, 0, -2]], [[1, 0, 0]]])
def test_codes_that_do_not_exist_are_refused(codes):
    with pytest.raises(ValueError, match=r"Part \d \(\w+\) has codes 0\.\.\."):
        dictionary().centroids(torch.tensor(codes))


def test_codes_of_the_wrong_width_are_refused():
    with pytest.raises(ValueError, match=r"codes must be \(B, 3\)"):
        dictionary().centroids(torch.tensor([[0, 0]]))


def test_a_predictor_refuses_other_features(found, creatures, meaningful):
    features = meaningful()
    features.hash = "meaningful-v2"
    with pytest.raises(UserError, match=r"made with features 'meaningful' .* discover again"):
        KMeansPartPredictor(found.dictionary, features)


def test_predicting_nothing_gives_nothing(found, meaningful):
    prediction = KMeansPartPredictor(found.dictionary, meaningful()).predict([])
    assert prediction.codes.shape == (0, 3)
    assert prediction.part_features.shape == (0, 3, 9)
