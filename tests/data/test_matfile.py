"""MATLAB files, from another writer and from our own one in true bytes."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from miniatures import write_mat_list
from partcraft_lit.core.errors import UserError
from partcraft_lit.data.matfile import read_mat

#: scipy 1.17.1: savemat(do_compression=True) of file_list (3 x 1 cells), labels [[1.], [1.], [2.]], small uint8 [[7]]
#: and s = "ab", in this order.
BY_SCIPY = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFNhdCBOb3YgMjEgMTM6NTA6NTUgMjAyNgAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAjwAAAHic42NgYEhgZGBgA9IcQAxkggErlM8MFQNhTiBOy8xJjc/J"
    "LC6BquMD4ggGhH4WNP0gfepI5gpA+XkGRgYWpmZGBrrOGZkZpYlApA8Xizc0MDA30csqSCfKfGU085UJmw82G+b+BALma6GZrwU339zCSNcrsSAxL7U4"
    "Nb4YSGem5ujDpeKN4NYwAAC/DCipDwAAADMAAAB4nONjYGAIAGI2IOaA0iDACuUzAzEjFIPkchKTUnOKGRg4gWwJBhj4YI9KMzgAAKrnBb0PAAAAKg"
    "AAAHic42NgYLAAYjYg5gBiTgYIYIXyGZEwSKw4NzEnB0gzAUXYgTQANb8Clg8AAAAqAAAAeJzjY2BgMABiNiDmAGIWBghghfIZgZgJTDMyFANpASAv"
    "MYmBAQAaoAGr"
)


def test_a_file_of_another_writer(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(BY_SCIPY)
    found = read_mat(tmp_path / "x.mat")
    assert list(found) == ["file_list", "labels", "small", "s"]
    assert found["file_list"] == [
        "n02085620-Chihuahua/n02085620_10074.jpg",
        "n02085620-Chihuahua/n02085620_1.jpg",
        "n02085782-Japanese_spaniel/n02085782_2.jpg",
    ]
    assert found["labels"].tolist() == [[1.0], [1.0], [2.0]] and found["small"].tolist() == [[7]] and found["s"] == "ab"


@pytest.mark.parametrize("compressed", [True, False])
def test_lists_come_back(tmp_path: Path, compressed: bool) -> None:
    files = ["a/b.jpg", "ab.x", "n02085620-Chihuahua/n02085620_10074.jpg", "x" * 1000 + ".jpg"]
    write_mat_list(tmp_path / "x.mat", files, [3, 1, 120, 2], compressed)
    found = read_mat(tmp_path / "x.mat")
    assert found["file_list"] == files and found["annotation_list"] == [file[:-4] for file in files]
    assert np.array_equal(found["labels"], [[3], [1], [120], [2]])


def test_damage_and_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    for content, message in (
        (b"", "is no MATLAB file"),
        (b"<html>" + bytes(500), "is no MATLAB file"),
        (b"MATLAB 7.3 MAT-file".ljust(600), "is a MATLAB 7.3 file, which is not read"),
        (BY_SCIPY[:-20], "is truncated or damaged"),
        (BY_SCIPY[:200], "is truncated or damaged"),
        (BY_SCIPY[:150] + b"\0" + BY_SCIPY[151:], "is truncated or damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_mat(path)
