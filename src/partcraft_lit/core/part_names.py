"""The one rule for names of parts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from partcraft_lit.core.errors import UserError

_NAME = re.compile(r"[^\W\d][\w-]*")


def check_part_names(names: Sequence[str]) -> None:
    """Rejects names of foreground parts that a prompt could not use.

    Raises:
        UserError: for a name that is not a single word, occurs twice, or is "background".
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} cannot name a part: a name begins with a letter and goes on with letters, digits, '_' or "
                "'-', so that <name:3> can be read in a prompt."
            )
    taken = ["background", *(name.casefold() for name in names)]
    double = sorted({name for name in taken if taken.count(name) > 1})
    if double:
        raise UserError(f"Names of parts must differ, also from 'background'; {double[0]!r} is taken twice.")
