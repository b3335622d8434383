"""Parts that the data set brings along are taken as they are, and what does not fit is told before any network."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from discovery import dataset_parts, parts_settings
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT, GroundTruth
from partcraft_lit.parts.color import ColorFeatures
from partcraft_lit.parts.dataset_parts import check_dataset_parts
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.parts.quality import score_parts


class Squares:
    """Grey images with a red square on the left and, in even ones, a blue one on the right."""

    class_noun = ""
    class_names = ("cat", "dog")
    part_names = ("red", "blue")

    def __len__(self) -> int:
        return 4

    def label_map(self, index: int) -> torch.Tensor:
        mask = torch.zeros(32, 48, dtype=torch.uint8)
        mask[8:24, 4:20] = 1
        if index % 2 == 0:
            mask[8:24, 28:44] = 2
        return mask

    def image(self, index: int) -> torch.Tensor:
        colors = torch.tensor([[120, 120, 120], [220, 30, 30], [20, 20, 200]], dtype=torch.uint8)
        return colors[self.label_map(index).long()].permute(2, 0, 1)

    def name(self, index: int) -> str:
        return f"{index}.png"

    def content_hash(self, index: int) -> str:
        return f"{index:032x}"

    def label(self, index: int) -> int | None:
        return index % 2

    def truth(self, index: int) -> GroundTruth:
        return GroundTruth(self.label_map(index), (0, 0), self.part_names)


@pytest.fixture
def features() -> ColorFeatures:
    return ColorFeatures(grid=16, bias=0.5)


def test_masks_are_the_label_maps_and_their_looks_the_dictionary(features):
    source = Squares()
    found = dataset_parts(source, features, source="masks", K=1)
    assert found.dictionary.names == ("background", "red", "blue")
    assert found.dictionary.codes_per_part == (1, 1, 1)
    for index in range(4):
        assert torch.equal(found.label_maps[index], source.label_map(index))
    assert found.codes.tolist() == [[0, 0, 0], [0, 0, ABSENT]] * 2
    assert found.report.parts[2]["images"] == 2
    reading = KMeansPartPredictor(found.dictionary, features).predict([source.image(0), source.image(1)])
    assert reading.codes.tolist() == [[0, 0, 0], [0, 0, ABSENT]]


def test_variants_of_a_part_are_clustered(features):
    class Changing(Squares):
        def image(self, index: int) -> torch.Tensor:
            image = super().image(index)
            if index >= 2:  # the red square is green
                image[:2, 8:24, 4:20] = image[:2, 8:24, 4:20].flip(0)
            return image

    found = dataset_parts(Changing(), features, source="masks", K=2, names=("one", "two"))
    codes = found.codes[:, 1].tolist()
    assert codes[0] == codes[1] != codes[2] == codes[3]
    assert found.dictionary.names == ("background", "one", "two")


def test_classes_are_concepts_that_fill_their_images(features):
    found = dataset_parts(Squares(), features, source="classes", K=3)
    assert found.dictionary.names == ("background", "cat", "dog")
    assert found.codes.tolist() == [[ABSENT, 0, ABSENT], [ABSENT, ABSENT, 0]] * 2
    assert [m.tolist() for m in found.label_maps[:2]] == [[[1]], [[2]]]


def test_messages():
    source = Squares()
    check_dataset_parts(source, parts_settings(M=2, source="masks"))
    with pytest.raises(UserError, match=r"parts\.M=5, but parts\.source=masks gives 2: red, blue\. Set parts\.M=2"):
        check_dataset_parts(source, parts_settings(M=5, source="masks"))
    with pytest.raises(UserError, match=r"parts\.names has 1 names for parts\.M=2"):
        check_dataset_parts(source, parts_settings(M=2, source="masks", names=["one"]))

    class Small(Squares):
        def truth(self, index: int) -> GroundTruth:
            truth = super().truth(index)
            return replace(truth, label_map=truth.label_map[::2, ::2]) if index == 3 else truth

    with pytest.raises(UserError, match=r"The mask of 3\.png is 24 x 16 pixels, its image 48 x 32: make the mask as"):
        check_dataset_parts(Small(), parts_settings(M=2, source="masks"))

    class Unknown(Squares):
        def truth(self, index: int) -> GroundTruth:
            truth = super().truth(index)
            return replace(truth, label_map=truth.label_map * 2)

    with pytest.raises(UserError, match=r"The mask of 0\.png has the value 4, and no part has it"):
        check_dataset_parts(Unknown(), parts_settings(M=2, source="masks"))

    class Plain:
        class_names = ()

        def __len__(self) -> int:
            return 1

    with pytest.raises(UserError, match=r"needs a data set with masks, and this one has none"):
        check_dataset_parts(Plain(), parts_settings(M=2, source="masks"))
    with pytest.raises(UserError, match=r"this data set has no classes: put the images of each concept into a folder"):
        check_dataset_parts(Plain(), parts_settings(M=2, source="classes"))


def test_a_part_that_no_image_shows_is_noted(features):
    class Named(Squares):
        part_names = ("red", "blue", "green")

        def truth(self, index: int) -> GroundTruth:
            return GroundTruth(self.label_map(index), (0, 0, ABSENT), self.part_names)

    source = Named()
    found = dataset_parts(source, features, source="masks", K=2)
    assert "No image shows green." in found.report.notes
    assert found.report.parts[3] == {"name": "green", "images": 0, "share": 0.0, "codes": 1, "similarity": None}
    assert found.codes[:, 3].tolist() == [ABSENT] * 4
    assert found.report.lowered_codes["green"] == 1
    json.loads(json.dumps(found.report.as_dict(), allow_nan=False))
    quality = score_parts(source, found.label_maps, found.codes)
    assert quality.part_iou == {"red": 1.0, "blue": 1.0, "green": 0.0}
