"""Hash of model weights, independent of how they are stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor, nn


def weights_hash(modules: Iterable[nn.Module], *settings: float) -> str:
    """SHA-256 over all tensors and the given settings.

    Over tensors, not files, so a model has one hash as a folder, a single file and from the hub. Tensors are hashed in
    parallel; hashlib releases the GIL.
    """
    named = sorted((key, tensor) for index, module in enumerate(modules) for key, tensor in _named(index, module))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = list(pool.map(lambda item: _tensor_digest(*item), named))
    total = hashlib.sha256(repr(tuple(float(value) for value in settings)).encode())
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def _named(index: int, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in module.state_dict().items():
        # transformers 5.6 dropped this level of CLIPTextModel; the weights are the same
        yield f"{index}/{key.removeprefix('text_model.')}", tensor


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    """Digest of name, shape and float32 values."""
    values = tensor.detach().float().contiguous().cpu()
    digest = hashlib.sha256(f"{name}{tuple(values.shape)}".encode())
    digest.update(values.numpy())  # type: ignore[arg-type]
    return digest.digest()
