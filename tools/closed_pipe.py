"""For tools whose output goes into a pipe: ``python tools/stats.py | head`` ends without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def until_the_reader_leaves() -> Iterator[None]:
    """Ends the process with 128 + SIGPIPE, as shells report it, when nobody reads its output any more."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so at exit
        sys.exit(141)
