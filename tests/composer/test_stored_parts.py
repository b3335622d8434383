"""Ten thousand images are listed and searched without opening the data set."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.composer.reader import PartReader
from partcraft_lit.composer.stored_parts import StoredParts, select_images
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.segmenter import Segmenter

NUMBER = 10_000


@pytest.fixture
def many(tmp_path):
    segmenter = Segmenter(torch.zeros(2), torch.eye(2), torch.tensor([False, True]), torch.eye(2))
    tables = tuple(torch.eye(2) for _ in range(3))
    dictionary = PartDictionary(("background", "head", "wing"), segmenter, tables, "color", "hash")
    lines = [f"class {i % 7}/{i}.jpg,0,{i % 2},{'' if i % 10 == 0 else 1}" for i in range(NUMBER)]
    (tmp_path / "codes.csv").write_text("\n".join(["image,background,head,wing", *lines]) + "\n")

    def never():
        raise AssertionError("the data set was opened")

    reader = PartReader(dictionary, never)
    return StoredParts(tmp_path, reader, never, Store(tmp_path / "store"))


def test_pages_of_many_images(many):
    everything = select_images(many, None, None, None, None)
    assert len(everything) == NUMBER and many.counts == ((NUMBER, 0), (NUMBER // 2, NUMBER // 2), (0, 9000))
    page = everything[9_990:10_100]
    assert len(page) == 10 and page.indices[-1] == NUMBER - 1
    both = select_images(many, None, 1, [1], "CLASS 3/")
    assert len(both) == sum(i % 2 == 1 and i % 7 == 3 for i in range(NUMBER))
    assert len(select_images(many, None, 2, None, None)) == 9000


def test_a_data_set_is_opened_once_and_its_absence_remembered(many):
    opened = []

    def missing():
        opened.append(1)
        raise UserError("there is no folder x.")

    many._open_source = missing
    for _ in range(3):
        assert not many.has_images and many.class_names == ()
        with pytest.raises(UserError, match="there is no folder x"):
            many.pixels(0)
    assert opened == [1] and select_images(many, None, None, None, None)[0].class_name is None
