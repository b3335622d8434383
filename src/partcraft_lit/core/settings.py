"""Settings that several rooms share, and the types of numbers and paths in settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

#: Where part vectors enter: "before" the text encoder, as token embeddings, or "after" it, as hidden states.
Inject = Literal["before", "after"]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
#: Below 2**53, above which a browser rounds integers.
Seed = Annotated[int, Field(ge=0, lt=2**53)]


def expand_user(path: Path) -> Path:
    """``path`` with the home folder in place of "~".

    Raises:
        ValueError: for "~name" without such a user, where pathlib raises a RuntimeError.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user '{path.parts[0].removeprefix('~')}'; write the path in full") from None


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("wanted a path")
    return value


#: A path that a person gives: never empty, "~" expanded.
UserPath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(expand_user)]


@dataclass(frozen=True)
class PathSettings:
    """Where things are written.

    Attributes:
        logs: root of run folders.
        data: where published data sets are fetched to.
        store: root of what is computed once.
    """

    logs: UserPath
    data: UserPath
    store: UserPath
