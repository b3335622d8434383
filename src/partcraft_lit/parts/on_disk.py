"""Results of a pass over all images in temporary files: memory does not grow with the number of images."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, Self, cast, overload

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError


class FeatureCache:
    """Tensors by index in a temporary file. What exceeds the budget is dropped and has to be computed again.

    Args:
        budget_bytes: most bytes written; 0 keeps nothing.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._left, self._end = budget_bytes, 0
        self._file = tempfile.TemporaryFile(prefix="partcraft-features-")  # noqa: SIM115 closed by __exit__
        self._places: dict[int, tuple[int, torch.Size, torch.dtype]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, index: int) -> bool:
        return index in self._places

    def put(self, index: int, features: Tensor) -> None:
        """Keeps features as they are: those in half precision take half the room."""
        data = _bytes_of(features)
        if len(data) > self._left:
            return
        try:
            write_at(self._file.fileno(), data, self._end)
        except OSError:  # the disk is full: computing twice is slower, but right
            self._left = 0
            return
        self._places[index] = (self._end, features.shape, features.dtype)
        self._left, self._end = self._left - len(data), self._end + len(data)

    def get(self, index: int) -> Tensor | None:
        if index not in self._places:
            return None
        offset, shape, dtype = self._places[index]
        data = bytearray(os.pread(self._file.fileno(), dtype.itemsize * shape.numel(), offset))
        return torch.frombuffer(data, dtype=dtype).view(shape)


class LabelMaps(Sequence[Tensor]):
    """One (grid height, grid width) uint8 map per image, read from a temporary file on access.

    In memory an image takes 16 bytes. Workers that are forked read the same file; one that is started anew gets the
    maps as one block.

    Args:
        number: of images. Each map is to be put once, in any order, before it is read.
    """

    def __init__(self, number: int) -> None:
        self._file: BinaryIO | None = _temporary_file(self, "partcraft-maps-")
        self._block: Tensor | None = None
        self._end = 0
        self._starts = torch.zeros(number, dtype=torch.long)
        self._sizes = torch.zeros(number, 2, dtype=torch.int32)

    @classmethod
    def in_memory(cls, label_maps: Iterable[Tensor]) -> LabelMaps:
        """The same as one block in memory, for maps that are there already."""
        kept = list(label_maps)
        maps = cls(0)
        cast(BinaryIO, maps._file).close()
        maps._file = None
        maps._sizes = torch.tensor([label_map.shape for label_map in kept], dtype=torch.int32).view(-1, 2)
        lengths = maps._sizes.long().prod(dim=1)
        maps._starts = lengths.cumsum(0) - lengths
        maps._block = torch.cat([label_map.reshape(-1).to(torch.uint8) for label_map in kept])
        return maps

    def put(self, index: int, label_map: Tensor) -> None:
        assert self._file is not None
        data = _bytes_of(label_map.to(torch.uint8))
        with _disk_space_or_error(len(data)):
            write_at(self._file.fileno(), data, self._end)
        self._starts[index], self._end = self._end, self._end + len(data)
        self._sizes[index] = torch.tensor(label_map.shape)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} label maps, and none has number {index}.")
        height, width = self._sizes[index].tolist()
        return self._read(int(self._starts[index]), height * width).view(height, width)

    def _read(self, start: int, length: int) -> Tensor:
        if self._file is None:
            assert self._block is not None
            return self._block[start : start + length]
        # By offset: forked workers share the file's place.
        return torch.frombuffer(bytearray(os.pread(self._file.fileno(), length, start)), dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        block = self._block if self._file is None else self._read(0, self._end)
        return {**self.__dict__, "_file": None, "_block": block}


class MappedRows:
    """A memory-mapped tensor of one row per image, in a temporary file.

    Args:
        shape: of all of it, images first.
        dtype: half precision where float32 is not needed.

    Raises:
        UserError: if the temporary folder has no room for it.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._row_bytes = dtype.itemsize * torch.Size(shape[1:]).numel()
        size = shape[0] * self._row_bytes
        self._file = _temporary_file(self, "partcraft-rows-")
        with _disk_space_or_error(size):
            # Room is taken now: a mapped file that cannot grow later ends the process without a message.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)
        self._mapped = mmap.mmap(self._file.fileno(), size)
        self.rows = torch.frombuffer(self._mapped, dtype=dtype).view(*shape)

    def put(self, index: int, row: Tensor) -> None:
        """Writes past the mapping, so that the row does not count as this process's memory."""
        with _disk_space_or_error(self._row_bytes):
            write_at(self._file.fileno(), _bytes_of(row.to(self.rows.dtype)), index * self._row_bytes)

    def release(self) -> None:
        """Frees the resident pages of ``rows``; the values stay in the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def _temporary_file(owner: object, prefix: str) -> BinaryIO:
    """A file that is closed when its owner is collected, without Python's warning of an unclosed file."""
    file = cast(BinaryIO, tempfile.TemporaryFile(prefix=prefix))  # noqa: SIM115
    weakref.finalize(owner, file.close)
    return file


@contextmanager
def _disk_space_or_error(size: int) -> Iterator[None]:
    """Raises a UserError where the disk is full."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The parts of all images need {size / 1e9:.2f} GB more in {tempfile.gettempdir()}, which cannot be "
            f"written there ({error.strerror}). Make room, or set TMPDIR to a folder on a larger disk."
        ) from error


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Writes all of it: on a nearly full disk the system writes a piece first and reports the error only then.

    Raises:
        OSError: if the disk is full.
    """
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's own memory, or that of a copy if it does not lie in one piece."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data
