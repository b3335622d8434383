"""Errors that a user can mend. They end a command with a message and exit code 2, never with a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What was given, what is wanted, and what to do, in one message."""


def did_you_mean(given: str, known: Iterable[str], most: int = 3) -> str:
    """A sentence with the nearest known names, for the end of an error message."""
    names = sorted(set(known))
    near = difflib.get_close_matches(given, names, n=most, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(name) for name in near)}?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"Known: {shown}." if names else ""
