"""MATLAB's .mat files of version 5 to 7, as far as lists of files and labels need them.

A reader of 100 lines instead of scipy, which nothing else here needs: numbers, text and cell arrays of them. Source:
the MAT-File Level 5 format as MathWorks describes it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partcraft_lit.core.errors import UserError

#: Types of data elements -> NumPy's, without byte order.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHAR = 1, 4
#: Classes of arrays of plain numbers.
_NUMERIC = range(6, 16)
_HEADER = 128
#: A list of a million names has less; a file that unpacks to more is not one.
_MOST = 1 << 28


@dataclass(frozen=True)
class _Element:
    kind: int
    data: bytes


def read_mat(path: Path) -> dict[str, Any]:
    """Variables of a .mat file.

    Returns:
        Name -> a NumPy array of numbers, a text, or a list for a cell array (column by column). Other kinds of
        variables (structures, sparse matrices) are left out.

    Raises:
        UserError: if the file is damaged or of another version.
    """
    content = path.read_bytes()
    if content.startswith(b"MATLAB 7.3"):
        raise UserError(f"{path} is a MATLAB 7.3 file, which is not read; save it with -v7.")
    if len(content) < _HEADER or content[126:128] not in (b"IM", b"MI"):
        raise UserError(f"{path} is no MATLAB file of version 5 to 7. Unpack the archive again.")
    order = "<" if content[126:128] == b"IM" else ">"
    try:
        variables = [_matrix(element.data, order) for element in _elements(content[_HEADER:], order)]
    except (struct.error, zlib.error, ValueError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}). Unpack the archive again.") from error
    return {name: value for name, value in variables if value is not None}


def _elements(data: bytes, order: str) -> Iterator[_Element]:
    """Data elements one after the other; compressed ones are opened."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:  # a small element: its size is in the upper half, its data in the place of the size
            kind, size, start, place = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            padded = size if kind == _COMPRESSED else -(-size // 8) * 8
            place = start + padded
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes, and {len(data) - start} are left")
        piece = data[start : start + size]
        if kind == _COMPRESSED:
            opener = zlib.decompressobj()
            opened = opener.decompress(piece, _MOST)
            if opener.unconsumed_tail or not opener.eof:
                raise ValueError("a compressed element ends early or is too large")
            yield from _elements(opened, order)
        else:
            yield _Element(kind, piece)


def _matrix(data: bytes, order: str) -> tuple[str, Any]:
    """Name and value of an array; None for a kind that is not read."""
    if not data:  # an empty cell
        return "", np.zeros((0, 0))
    parts = list(_elements(data, order))
    array_class = struct.unpack_from(f"{order}I", parts[0].data)[0] & 0xFF
    shape = tuple(_numbers(parts[1], order).tolist())
    name = parts[2].data.decode("latin-1")
    if array_class == _CELL:
        if len(parts) - 3 != math.prod(shape):
            raise ValueError(f"{name} should have {math.prod(shape)} cells, it has {len(parts) - 3}")
        return name, [_matrix(part.data, order)[1] for part in parts[3:]]
    if array_class == _CHAR:
        encoding = _TEXT[parts[3].kind] if len(parts) > 3 else "utf-8"
        suffix = {"<": "-le", ">": "-be"}[order] if encoding in ("utf-16", "utf-32") else ""
        return name, parts[3].data.decode(encoding + suffix) if len(parts) > 3 else ""
    if array_class in _NUMERIC:
        return name, _numbers(parts[3], order).reshape(shape, order="F")
    return name, None


def _numbers(element: _Element, order: str) -> np.ndarray:
    if element.kind not in _NUMBERS:
        raise ValueError(f"numbers of the unknown type {element.kind}")
    return np.frombuffer(element.data, dtype=np.dtype(order + _NUMBERS[element.kind]))
