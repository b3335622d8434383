"""Hugging Face's imagefolder format."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from partcraft_lit.core.errors import UserError
from partcraft_lit.data.metadata_folder import MetadataFolder


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), "red").save(path)


def table(path: Path, *rows: dict[str, object]) -> None:
    for row in rows:
        if isinstance(row.get("file_name"), str):
            picture(path.parent / str(row["file_name"]))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_images_captions_and_labels_are_those_of_the_table(tmp_path: Path) -> None:
    table(
        tmp_path / "metadata.jsonl",
        {"file_name": "b.png", "text": "a red bird", "label": "wren"},
        {"file_name": "in/a.jpg", "text": 'größer, "quoted"', "label": "auk", "source": "x"},
    )
    source = MetadataFolder(tmp_path, class_noun="bird")
    assert [source.name(index) for index in range(2)] == ["b.png", "in/a.jpg"]
    assert [source.text_of(index) for index in range(2)] == ["a red bird", 'größer, "quoted"']
    assert source.class_names == ["auk", "wren"] and [source.label(index) for index in range(2)] == [1, 0]
    assert source.image(0).shape == (3, 10, 12)


def test_numbers_are_labels_in_their_order(tmp_path: Path) -> None:
    table(tmp_path / "metadata.jsonl", *({"file_name": f"{n}.png", "label": n} for n in (10, 9, 0)))
    source = MetadataFolder(tmp_path)
    assert source.class_names == ["0", "9", "10"] and [source.label(index) for index in range(3)] == [2, 1, 0]


def test_csv_other_columns_and_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text('﻿file_name,caption\na.png,"red, plain"\n', encoding="utf-8")
    source = MetadataFolder(tmp_path, text="caption")
    assert source.text_of(0) == "red, plain" and source.class_names == [] and source.label(0) is None


def test_names_in_both_spellings_are_one_name(tmp_path: Path) -> None:
    """A table from Linux (NFC) over files from a Mac's archive (NFD), and the other way round."""
    for on_disk, in_table in (("NFD", "NFC"), ("NFC", "NFD")):
        folder = tmp_path / on_disk
        picture(folder / unicodedata.normalize(on_disk, "\u00e9t\u00e9.png"))
        row = {"file_name": unicodedata.normalize(in_table, "\u00e9t\u00e9.png"), "text": "summer"}
        (folder / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
        source = MetadataFolder(folder)
        assert len(source) == 1 and source.text_of(0) == "summer"


def test_tables_of_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        table(tmp_path / "data" / split / "metadata.jsonl", {"file_name": "a.png", "text": split})
    assert len(MetadataFolder(tmp_path)) == 2
    source = MetadataFolder(tmp_path, split="train")
    assert [source.name(0), source.text_of(0)] == ["data/train/a.png", "train"] and len(source) == 1
    with pytest.raises(UserError, match=r"split=tran: .* Did you mean 'train'"):
        MetadataFolder(tmp_path, split="tran")
    picture(tmp_path / "forgotten.png")
    with caplog.at_level(logging.WARNING):
        MetadataFolder(tmp_path)
    assert "1 images" in caplog.text and "named by no table" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"file_name": "a.png"}\n{"file_name": "gone.png"}', r"row 2: there is no image .*gone\.png"),
        ('{"file": "a.png"}', r"row 1 has no file_name; its columns are file"),
        ('{"file_name": "../a.png"}', r"'\.\./a\.png' leads out of the folder"),
        ('{"file_name": "a.png"', r"row 1 is not JSON"),
        ("[1]", r"row 1: wanted an object"),
        ('{"file_name": "a.png"}\n{"file_name": "a.png"}', r"name a\.png 2 times"),
        (
            '{"file_name": "a.png", "label": 1}\n{"file_name": "b.png"}',
            r"1 of 2 images have no label, for instance b\.png",
        ),
        ("\n", "name no images"),
    ],
)
def test_mistakes_in_tables(tmp_path: Path, lines: str, message: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(UserError, match=message):
        MetadataFolder(tmp_path)


def test_a_folder_without_a_table_is_another_data_set(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"no metadata\.jsonl or metadata\.csv in .* dataset=folder"):
        MetadataFolder(tmp_path)
