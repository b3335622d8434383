"""Memory-mapped weights: disk offloading of a network that is rarely used."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from partcraft_lit.core.allocation import give_freed_memory_back
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import make_folder


class MappedWeights:
    """Moves a network's weights into an unnamed file that is mapped into memory.

    The system may drop pages whenever it needs memory, and does at ``release``. The file disappears with the process.
    In-place changes of weights are lost at the next ``release``, so this is for frozen networks.

    Args:
        network: on the CPU; its parameters and buffers stay the same objects.
        folder: of the file; None for the system's temporary folder, which may itself be in memory.

    Raises:
        UserError: if the file cannot be written; the weights then stay in memory.
    """

    def __init__(self, network: nn.Module, folder: Path | None = None) -> None:
        tensors = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.numel()]
        try:
            self._map, starts = _write(tensors, folder)
        except OSError as error:
            raise UserError(
                f"Weights cannot rest in {folder or tempfile.gettempdir()}: {error}. Make room there, or take the "
                "network out of hardware.offload."
            ) from error
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        for start, tensor in zip(starts, tensors, strict=True):
            size = tensor.numel() * tensor.element_size()
            tensor.data = whole[start : start + size].view(tensor.dtype).view(tensor.shape)
        give_freed_memory_back()
        self.release()

    def release(self) -> None:
        """Drops the pages that were read; they are read again on use."""
        if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere the system decides
            self._map.madvise(mmap.MADV_DONTNEED)


def _write(tensors: list[Tensor], folder: Path | None) -> tuple[mmap.mmap, list[int]]:
    """The mapped file, and the offset of each tensor."""
    if folder is not None:
        make_folder(folder)
    starts = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for tensor in tensors:
            starts.append(file.seek(-file.tell() % 64, 1))  # aligned for every dtype
            file.write(_bytes(tensor).numpy().data)
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), starts


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
