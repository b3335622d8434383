"""Errors that a user can mend. They end a command with a message and exit code 2, never with a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What was given, what is wanted, and what to do, in one message."""


def did_you_mean(given: str, known: Iterable[str], most: int = 3) -> str:
    """A sentence with the nearest known names, for the end of an error message; with all of them if none is near."""
    names = sorted(set(known))
    if near := nearest_names(given, names, most):
        return near.rstrip()
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"Known: {shown}." if names else ""


def nearest_names(given: str, known: Iterable[str], most: int = 3) -> str:
    """ "Did you mean ...? " with a space behind it, for messages that list what is known anyway; "" if none is near."""
    near = difflib.get_close_matches(given, sorted(set(known)), n=most, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
