"""glibc malloc settings: keeping freed memory, and returning it."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

#: Names and numbers of ``mallopt`` in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
#: Blocks up to this size come from what was freed before; 32 MiB is the most that glibc takes.
LARGEST_KEPT = 32 << 20
#: Freed memory kept by the process.
KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Keeps up to 1 GiB of freed memory in the process instead of returning it to the system at once.

    A training step on a CPU allocates and frees the same blocks again and again. glibc returns blocks of some megabytes
    each time, and the kernel zeroes every page when it is touched again: thousands of page faults per step. A single
    arena for all threads lets the backward pass, which runs in its own thread, reuse what the forward pass freed.

    Returns:
        Whether the allocator accepts the settings; other allocators are left as they are.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, LARGEST_KEPT), (_TRIM_THRESHOLD, KEPT), (_ARENA_MAX, 1))
    taken = [mallopt(number, value) == 1 for number, value in settings]
    return all(taken)


def give_freed_memory_back() -> None:
    """Returns freed memory to the system once, after something large was released for good."""
    malloc_trim = _of_libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_libc(name: str) -> Any:
    """A function of glibc; None on other systems, musl included."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
