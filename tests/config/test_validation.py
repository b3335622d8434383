from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from partcraft_lit.config.validation import bind, validate
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.settings import Count, NonNegative, Positive, Rate, Share, UserPath


@dataclass(frozen=True)
class Inner:
    rate: float


@dataclass(frozen=True)
class Outer:
    count: Positive
    on: bool
    kind: Literal["one", "two"]
    betas: tuple[float, float]
    inner: Inner
    path: UserPath | None = None
    table: dict[str, Inner] | None = None


GOOD = {"count": 2, "on": True, "kind": "one", "betas": [0, 0.5], "inner": {"rate": 1}}


def test_builds_nested_dataclasses_of_the_annotated_types():
    built = validate({**GOOD, "path": "~/x", "table": {"a": {"rate": 2}}}, Outer, "")
    assert built == Outer(2, True, "one", (0.0, 0.5), Inner(1.0), Path.home() / "x", {"a": Inner(2.0)})
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on": "false"}, r"top\.on='false': wanted true or false"),
        ({"on": 1}, r"top\.on=1: wanted true or false"),
        ({"count": True}, r"top\.count=True: wanted a whole number of at least 1"),
        ({"count": 2.0}, r"top\.count=2\.0: wanted a whole number of at least 1"),
        ({"count": 0}, r"top\.count=0: wanted a whole number of at least 1"),
        ({"kind": "twoo"}, r"top\.kind='twoo': wanted one of one, two\. Did you mean 'two'\?"),
        ({"betas": [1, 2, 3]}, r"top\.betas=\[1, 2, 3\]: wanted a list of 2 values"),
        ({"betas": [1]}, r"top\.betas=\[1\]: wanted a list of 2 values"),
        ({"betas": "ab"}, r"wanted a list, such as \[ab\]"),
        ({"betas": 3}, r"wanted a list of 2 values"),
        ({"betas": [0.1, "x"]}, r"top\.betas\[1\]='x': wanted a finite number"),
        ({"inner": {"rate": float("nan")}}, r"top\.inner\.rate=nan: wanted a finite number"),
        ({"inner": 3}, r"top\.inner=3: wanted a group of keys \(rate\)"),
        ({"inner": {"rat": 1.0}}, r"Unknown key 'top\.inner\.rat'\. Did you mean 'rate'\?"),
        ({"inner": {}}, r"'top\.inner\.rate' is missing"),
        ({"path": 3}, r"top\.path=3: wanted a path or null"),
        ({"path": ""}, r"top\.path='': wanted a path"),
        ({"path": "~nobody-here/x"}, r"top\.path='~nobody-here/x': there is no user 'nobody-here'"),
        ({"table": {"a": {"rate": "x"}}}, r"top\.table\.a\.rate='x': wanted a finite number"),
        ({"table": {"a": 3}}, r"top\.table\.a=3: wanted a group of keys \(rate\)"),
        ({"kind": "\udcff"}, r"bytes that are not text"),
    ],
)
def test_every_mistake_names_its_key(change, message):
    with pytest.raises(UserError, match=message):
        validate({**GOOD, **change}, Outer, "top")


def test_a_value_keeps_its_own_type_in_a_union():
    assert validate(3, float | int, "x") == 3 and isinstance(validate(3, float | int, "x"), int)
    assert validate("auto", Annotated[int, Field(ge=2)] | Literal["auto"], "x") == "auto"
    assert validate(None, Rate | None, "x") is None
    with pytest.raises(UserError, match=r"x=1: wanted a whole number of at least 2 or auto\.$"):
        validate(1, Annotated[int, Field(ge=2)] | Literal["auto"], "x")
    with pytest.raises(UserError, match=r"x=0: wanted a number above 0 or null\.$"):
        validate(0, Rate | None, "x")


def test_what_was_typed_as_text_and_looks_like_no_number_is_text():
    assert validate(float("nan"), str, "x") == "nan"  # a noun that YAML takes for a number
    with pytest.raises(UserError, match="wanted text"):
        validate(3, str, "x")


@pytest.mark.parametrize(
    ("hint", "text", "inside", "outside"),
    [
        (Positive, "a whole number of at least 1", 1, 0),
        (Count, "a whole number of at least 0", 0, -1),
        (NonNegative, "a number of at least 0", 0, -0.1),
        (Rate, "a number above 0", 1e-9, 0),
        (Share, "a number from 0 to 1", 1, 1.1),
        (Annotated[float, Field(gt=0, le=1)], "a number above 0 up to 1", 1, 0),
    ],
)
def test_ranges(hint, text, inside, outside):
    assert validate(inside, hint, "x") == inside
    with pytest.raises(UserError, match=f"x={outside}: wanted {text}."):
        validate(outside, hint, "x")


class Unchecked:
    """A class that no configuration can name."""


def function(a: int, b: str = "x", *, c: tuple[int, ...] = (), d: Path = Path(), e: Unchecked | None = None) -> Any: ...


def test_bind_checks_names_and_types_of_a_call():
    assert bind(function, {"a": 1, "c": [1, 2], "e": "y"}, "f") == {"a": 1, "c": (1, 2), "e": "y"}
    assert bind(function, {"a": 1, "d": "~/x"}, "f") == {"a": 1, "d": Path.home() / "x"}
    with pytest.raises(UserError, match=r"Unknown key 'f\.bb'\. Did you mean 'b'"):
        bind(function, {"a": 1, "bb": "y"}, "f")
    with pytest.raises(UserError, match=r"'f\.a' is missing"):
        bind(function, {}, "f")
    with pytest.raises(UserError, match=r"f\.a='1': wanted a whole number"):
        bind(function, {"a": "1"}, "f")


def test_bind_lets_arguments_come_later():
    assert bind(function, {}, "f", later=("a",)) == {}
    assert bind(function, {}, "f", later=None) == {}
