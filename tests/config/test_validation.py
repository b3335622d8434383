from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from partcraft_lit.config.validation import bind, build, coerce
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.ranges import Range


@dataclass(frozen=True)
class Inner:
    rate: float


@dataclass(frozen=True)
class Outer:
    count: Annotated[int, Range(1)]
    on: bool
    kind: Literal["one", "two"]
    betas: tuple[float, float]
    inner: Inner
    path: Path | None = None


GOOD = {"count": 2, "on": True, "kind": "one", "betas": [0, 0.5], "inner": {"rate": 1}}


def test_builds_nested_dataclasses_of_the_annotated_types():
    built = build(Outer, {**GOOD, "path": "~/x"}, "")
    assert built == Outer(2, True, "one", (0.0, 0.5), Inner(1.0), Path.home() / "x")
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on": "false"}, r"top\.on='false': wanted true or false"),
        ({"on": 1}, r"top\.on=1: wanted true or false"),
        ({"count": True}, r"top\.count=True: wanted a whole number"),
        ({"count": 2.0}, r"top\.count=2\.0: wanted a whole number"),
        ({"count": 0}, r"top\.count=0: wanted a number of at least 1"),
        ({"kind": "twoo"}, r"top\.kind='twoo': wanted one of one, two\. Did you mean 'two'\?"),
        ({"betas": [1, 2, 3]}, r"top\.betas=\[1, 2, 3\]: wanted a list of 2 values"),
        ({"betas": "ab"}, r"wanted a list, such as \[ab\]"),
        ({"betas": 3}, r"wanted a list, such as \[1,2\]"),
        ({"betas": [0.1, "x"]}, r"top\.betas\[1\]='x': wanted a finite number"),
        ({"inner": {"rate": float("nan")}}, r"top\.inner\.rate=nan: wanted a finite number"),
        ({"inner": 3}, r"top\.inner=3: wanted a group of keys \(rate\)"),
        ({"inner": {"rat": 1.0}}, r"Unknown key 'top\.inner\.rat'\. Did you mean 'rate'\?"),
        ({"inner": {}}, r"'top\.inner\.rate' is missing"),
        ({"path": 3}, r"top\.path=3: wanted a path"),
    ],
)
def test_every_mistake_names_its_key(change, message):
    with pytest.raises(UserError, match=message):
        build(Outer, {**GOOD, **change}, "top")


def test_a_value_keeps_its_own_type_in_a_union():
    assert coerce(3, float | int, "x") == 3 and isinstance(coerce(3, float | int, "x"), int)
    assert coerce("auto", Annotated[int, Range(2)] | Literal["auto"], "x") == "auto"
    assert coerce(None, Annotated[float, Range(0, above=True)] | None, "x") is None
    with pytest.raises(UserError, match="wanted a whole number or auto"):
        coerce(1, Annotated[int, Range(2)] | Literal["auto"], "x")
    with pytest.raises(UserError, match="wanted a number above 0"):
        coerce(0, Annotated[float, Range(0, above=True)] | None, "x")


@pytest.mark.parametrize(
    ("limits", "text", "inside", "outside"),
    [
        (Range(1), "of at least 1", 1, 0.9),
        (Range(0, above=True), "above 0", 1e-9, 0),
        (Range(0, 1), "from 0 to 1", 1, 1.1),
    ],
)
def test_ranges(limits, text, inside, outside):
    assert str(limits) == text
    assert inside in limits and outside not in limits


def function(a: int, b: str = "x", *, c: tuple[int, ...] = ()) -> None: ...


def test_bind_checks_names_and_types_of_a_call():
    assert bind(function, {"a": 1, "c": [1, 2]}, "f") == {"a": 1, "c": (1, 2)}
    with pytest.raises(UserError, match=r"Unknown key 'f\.bb'\. Did you mean 'b'"):
        bind(function, {"a": 1, "bb": "y"}, "f")
    with pytest.raises(UserError, match=r"'f\.a' is missing"):
        bind(function, {}, "f")
    with pytest.raises(UserError, match=r"f\.a='1': wanted a whole number"):
        bind(function, {"a": "1"}, "f")


def test_bind_lets_arguments_come_later():
    assert bind(function, {}, "f", later=("a",)) == {}
    assert bind(function, {}, "f", later=None) == {}
