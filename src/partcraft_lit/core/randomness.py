"""Stateless randomness: every draw is a function of (seed, purpose, sample).

So a run resumes with the same next batch for any number of workers, and runs that differ in one setting share noise,
crops and captions.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit seed from a base seed and keys, by BLAKE2b; equal on every machine and Python."""
    text = "\x1f".join([str(seed), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def image_seed(seed: int, *keys: int | str) -> int:
    """A seed for people to read and to type again: 53 bits, which a browser keeps."""
    return derive_seed(seed, *keys) >> 10


def torch_generator(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator for the given purpose; draw on the CPU and move, for equal values on all devices."""
    return torch.Generator().manual_seed(derive_seed(seed, *keys))


def numpy_generator(seed: int, *keys: int | str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, *keys))


def epoch_index(seed: int, sample_id: int, length: int) -> int:
    """Item of sample ``sample_id`` among ``length``: a new permutation each epoch, without state."""
    epoch, position = divmod(sample_id, length)
    order = _permutation(seed, epoch, length)
    return int(order[position])


_last: tuple[tuple[int, int, int], np.ndarray] | None = None


def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    global _last  # memoised for an epoch; the value depends on the key alone
    key = (seed, epoch, length)
    if _last is None or _last[0] != key:
        _last = (key, numpy_generator(seed, "epoch", epoch, length).permutation(length))
    return _last[1]
