"""Plain values from a configuration, checked against type annotations: nothing is guessed, everything wrong is named.

YAML and the command line give strings, numbers, lists and mappings. ``build`` makes a dataclass of them and ``bind``
checks the arguments of any callable. "false" for a bool, 3.5 for an int or an unknown name is a ``UserError``.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from partcraft_lit.core.errors import UserError, did_you_mean, nearest_names
from partcraft_lit.core.ranges import Range

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from a mapping.

    Args:
        cls: the dataclass; its fields may be plain types, ``Literal``, ``Annotated[..., Range]``, ``tuple[X, ...]``,
            optional types and further dataclasses.
        values: key -> value.
        where: the key of ``values`` in the configuration, for messages; "" at the top.

    Raises:
        UserError: for an unknown or missing key, or a value of another type or out of range.
    """
    if not isinstance(values, Mapping):
        raise UserError(
            f"{where}={values!r}: wanted a group of keys ({_names(f.name for f in fields(_dataclass(cls)))})."
        )
    known = {f.name: f for f in fields(_dataclass(cls))}
    hints = get_type_hints(cls, include_extras=True)
    for key in values:
        if key not in known:
            raise UserError(f"Unknown key '{join(where, str(key))}'. {did_you_mean(str(key), known)}")
    arguments = {}
    for name, field in known.items():
        if name in values:
            arguments[name] = coerce(values[name], hints[name], join(where, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(
                f"The key '{join(where, name)}' is missing; give it on the command line or in the YAML file."
            )
    return cls(**arguments)


def bind(
    target: Callable[..., Any], arguments: Mapping[str, Any], where: str, later: Sequence[str] | None = ()
) -> dict[str, Any]:
    """Arguments of a callable, checked and converted as far as its annotations are plain types.

    Args:
        target: class or function.
        arguments: keyword arguments of the configuration.
        where: key of the node in the configuration, for messages.
        later: parameters that arrive at run time; None if any may.

    Raises:
        UserError: for a name that the callable does not take, a required one that is missing, a value of another type.
    """
    signature = inspect.signature(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    named = {n: p for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    hints = _hints(target)
    bound = {}
    for key, value in arguments.items():
        if key not in named and not takes_any:
            raise UserError(f"Unknown key '{join(where, key)}'. {did_you_mean(key, named)}")
        bound[key] = coerce(value, hints.get(key, Any), join(where, key))
    if later is not None:
        required = [n for n, p in named.items() if p.default is p.empty]
        missing = [n for n in required if n not in bound and n not in later]
        if missing:
            raise UserError(f"The key '{join(where, missing[0])}' is missing; give it on the command line or in YAML.")
    return bound


def coerce(value: Any, hint: Any, where: str) -> Any:
    """``value`` as ``hint`` asks, where that loses nothing (int to float, list to tuple, text to path).

    Raises:
        UserError: naming ``where``, the value and what is wanted.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = coerce(value, arguments[0], where)
        for limit in arguments[1:]:
            if isinstance(limit, Range) and value is not None and value not in limit:
                raise _wrong(value, f"a number {limit}", where)
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments, where)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        hint_text = f" {nearest_names(value, [str(a) for a in arguments])}".rstrip() if isinstance(value, str) else ""
        raise UserError(f"{where}={value!r}: wanted one of {_names(arguments)}.{hint_text}")
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if origin in (tuple, list, Sequence):
        return _coerce_sequence(value, origin, arguments, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(value, "a group of keys", where)
        return {str(key): coerce(item, arguments[1], join(where, str(key))) for key, item in value.items()}
    return _coerce_plain(value, hint, where)


def join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _coerce_union(value: Any, choices: Sequence[Any], where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    choices = [choice for choice in choices if choice is not type(None)]
    if len(choices) == 1:
        return coerce(value, choices[0], where)
    for choice in sorted(choices, key=lambda c: c is not type(value)):  # the value's own type first: 1 stays an int
        try:
            return coerce(value, choice, where)
        except UserError:
            continue
    raise _wrong(value, " or ".join(_describe(choice) for choice in choices), where)


def _coerce_sequence(value: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong(value, f"a list, such as [{value}]" if isinstance(value, str) else "a list, such as [1,2]", where)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _wrong(value, f"a list of {len(arguments)} values", where)
        return tuple(coerce(item, hint, f"{where}[{i}]") for i, (item, hint) in enumerate(zip(value, arguments)))
    inner = arguments[0] if arguments else Any
    items = [coerce(item, inner, f"{where}[{i}]") for i, item in enumerate(value)]
    return items if origin is list else tuple(items)


def _coerce_plain(value: Any, hint: Any, where: str) -> Any:
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong(value, "true or false", where)
    elif hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(value, "a whole number", where)
    elif hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _wrong(value, "a finite number", where)
        return float(value)
    elif hint is str:
        if not isinstance(value, str):
            raise _wrong(value, "text", where)
    elif hint is Path:
        if not isinstance(value, str | Path) or not str(value):
            raise _wrong(value, "a path", where)
        return Path(value).expanduser()
    return value


def _wrong(value: Any, wanted: str, where: str) -> UserError:
    return UserError(f"{where}={value!r}: wanted {wanted}.")


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return _names(get_args(hint))
    if get_origin(hint) is Annotated:
        return _describe(get_args(hint)[0])
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", Path: "a path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _names(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    if isinstance(target, type) and is_dataclass(target):
        function = target
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # annotations of other packages that only a type checker can resolve
        return {}


def _dataclass(cls: Any) -> Any:
    if not is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass.")
    return cls
