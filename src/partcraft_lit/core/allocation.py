"""How a process gets memory from the system and gives it back."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

#: Names and numbers of ``mallopt`` in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
#: Blocks up to this size come from what was freed before; 32 MiB is the most that glibc takes.
LARGEST_KEPT = 32 << 20
#: So much freed memory stays with the process.
KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Lets freed memory stay with the process, up to 1 GiB, instead of going back to the system at once.

    A training step on a CPU allocates and frees the same blocks again and again. glibc gives those of some megabytes
    back each time, and the system fills each page with zeros when it is touched again: thousands of pages a step. One
    arena serves all threads, so that the backward pass, which has a thread of its own, takes what the forward pass
    freed.

    Returns:
        Whether this system's allocator could be told; others are left as they are.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, LARGEST_KEPT), (_TRIM_THRESHOLD, KEPT), (_ARENA_MAX, 1))
    taken = [mallopt(number, value) == 1 for number, value in settings]
    return all(taken)


def give_freed_memory_back() -> None:
    """Returns what was freed to the system, once: after something large is gone for good."""
    malloc_trim = _of_libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_libc(name: str) -> Any:
    """A function of glibc's; None elsewhere, musl included."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
