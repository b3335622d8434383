from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from partcraft_lit.parts.isolated import isolate, isolated_feature
from partcraft_lit.parts.segmenter import Segmenter

SEGMENTER = Segmenter(torch.zeros(3), torch.eye(3), torch.tensor([False, True, True]), torch.eye(3)[1:])


class Blurred:
    """Features of 4 x 4 patches that see their neighbours: the mean colours of 12 x 12 pixels around each."""

    def __call__(self, images):
        return [F.avg_pool2d(image[None].float(), 12, 4, padding=4)[0].movedim(0, -1) for image in images]


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def label_map():
    cells = torch.zeros(8, 12, dtype=torch.uint8)
    cells[2:4, 3:6], cells[4:6, 3:6] = 1, 2
    return cells


def test_everything_but_the_part_is_grey(image, label_map):
    alone = isolate(image, label_map, 1)
    assert alone.dtype == torch.uint8
    assert torch.equal(alone[:, 8:16, 12:24], image[:, 8:16, 12:24])
    alone[:, 8:16, 12:24] = 128
    assert (alone == 128).all()


def test_a_part_alone_does_not_depend_on_its_neighbours(image, label_map):
    other = torch.where(isolate(image, label_map, 1) == image, image, 255 - image)  # another background, another part 2
    features = Blurred()
    own = [features([one])[0][label_map == 1].mean(dim=0) for one in (image, other)]
    assert not torch.allclose(*own)  # as the predictor reads it
    assert torch.equal(*(isolated_feature(SEGMENTER, features, (one, label_map), 1) for one in (image, other)))


def test_it_is_the_mean_of_unit_features(image, label_map):
    grid = Blurred()([isolate(image, label_map, 2)])[0]
    expected = torch.stack([vector / vector.norm() for vector in grid[4:6, 3:6].reshape(-1, 3)]).mean(dim=0)
    torch.testing.assert_close(isolated_feature(SEGMENTER, Blurred(), (image, label_map), 2), expected)


def test_label_maps_of_another_grid(image, label_map):
    fine = label_map.repeat_interleave(2, 0).repeat_interleave(2, 1)
    expected = isolated_feature(SEGMENTER, Blurred(), (image, label_map), 1)
    assert torch.equal(isolated_feature(SEGMENTER, Blurred(), (image, fine), 1), expected)


def test_a_part_that_is_absent_has_none(image, label_map):
    assert isolated_feature(SEGMENTER, Blurred(), (image, label_map), 3) is None
