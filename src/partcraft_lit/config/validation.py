"""Plain values from YAML and the command line, checked by pydantic against type annotations.

Validation is strict: "false" for a bool, 3.5 for an int or an unknown name is a ``UserError`` that names the key, the
value and what is wanted. Values are handed to pydantic as JSON, its mode in which a list is a tuple and text is a path,
and nothing else is converted.
"""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo

from partcraft_lit.core.errors import UserError, did_you_mean, nearest_names
from partcraft_lit.core.settings import UserPath

_NUMBERS = {int: "a whole number", float: "a number"}
_PLAIN = {bool: "true or false", float: "a finite number", int: "a whole number", str: "text", Path: "a path"}
_UNIONS = (Union, types.UnionType)


def validate(value: Any, hint: Any, where: str) -> Any:
    """``value`` as ``hint`` asks, where that loses nothing (int to float, list to tuple, text to path).

    Args:
        value: plain value; a mapping for a dataclass.
        hint: type annotation. One that pydantic has no schema for, such as a class of another package, checks nothing.
        where: key in the configuration, for messages; "" at the top.

    Raises:
        UserError: for an unknown or missing key, or a value of another type or out of range.
    """
    try:
        adapter = TypeAdapter({Path: UserPath, Path | None: UserPath | None}.get(hint, hint))
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return value
    try:
        return adapter.validate_json(json.dumps(_jsonable(value)), strict=True, extra="forbid")
    except ValidationError as error:
        raise _explained(error, value, hint, where) from None


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
            raise unknown(join(where, key), key, named)
        bound[key] = validate(value, hints.get(key, Any), join(where, key))
    if later is not None:
        for name, parameter in named.items():
            if parameter.default is parameter.empty and name not in bound and name not in later:
                raise missing(join(where, name))
    return bound


def join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def unknown(key: str, name: str, known: Iterable[str]) -> UserError:
    return UserError(f"Unknown key '{key}'. {did_you_mean(name, known)}")


def missing(key: str) -> UserError:
    return UserError(f"The key '{key}' is missing; give it on the command line or in the YAML file.")


def _jsonable(value: Any) -> Any:
    """A copy that JSON can hold; "nan" and "inf" are text there, so that no number is one of them."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    is_plain = value is None or isinstance(value, str | int | float)
    return value if is_plain and not (isinstance(value, float) and not math.isfinite(value)) else str(value)


def _explained(error: ValidationError, value: Any, hint: Any, where: str) -> UserError:
    """The first mistake in our words; an unknown key before the missing one that it may have been meant for."""
    found = error.errors(include_url=False)
    first = min(found, key=lambda one: one["type"] != "unexpected_keyword_argument")
    kind, path = first["type"], list(first["loc"])
    if kind == "json_invalid":
        return UserError(f"{where}: {value!r} holds bytes that are not text; wanted UTF-8.")
    if kind in ("unexpected_keyword_argument", "missing"):
        name = path.pop()
        inner, given, key = _at(path, value, hint, where)
        if is_dataclass(_bare(inner)):
            if kind == "missing":
                return missing(join(key, str(name)))
            return unknown(join(key, str(name)), str(name), _field_names(_bare(inner)))
        return _wrong(given, inner, key)  # a list that is too short
    inner, given, key = _at(path, value, hint, where)
    if kind == "value_error":
        return UserError(f"{key}={given!r}: {first['ctx']['error']}.")
    return _wrong(given, inner, key)


def _at(path: Sequence[str | int], value: Any, hint: Any, where: str) -> tuple[Any, Any, str]:
    """Annotation, value and key at the end of one of pydantic's paths, or at the union that it leads into."""
    for step in path:
        bare = _bare(hint)
        if is_dataclass(bare) and step in _field_names(bare):
            hint, where = get_type_hints(bare, include_extras=True)[str(step)], join(where, str(step))
        elif isinstance(step, int):
            inner = get_args(bare)
            fixed = get_origin(bare) is tuple and inner[-1] is not Ellipsis
            hint, where = inner[step] if fixed else inner[0], f"{where}[{step}]"
        elif get_origin(bare) in (dict, Mapping) and isinstance(value, Mapping) and step in value:
            hint, where = get_args(bare)[1], join(where, str(step))
        else:
            break
        value = value[step]
    return hint, value, where


def _wrong(value: Any, hint: Any, where: str) -> UserError:
    bare = _bare(hint)
    near = ""
    if get_origin(bare) is Literal and isinstance(value, str):
        near = f" {nearest_names(value, [str(choice) for choice in get_args(bare)])}".rstrip()
    wanted = _describe(hint)
    if get_origin(bare) in (tuple, list, Sequence) and isinstance(value, str):
        wanted = f"a list, such as [{value}]"
    return UserError(f"{where}={value!r}: wanted {wanted}.{near}")


def _describe(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        base, *extras = get_args(hint)
        limits = [limit for extra in extras if isinstance(extra, FieldInfo) for limit in extra.metadata]
        return f"{_NUMBERS[base]} {_range(limits)}" if limits and base in _NUMBERS else _describe(base)
    if get_origin(hint) in _UNIONS:
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        texts = [_describe(choice).removeprefix("one of " if len(choices) > 1 else "") for choice in choices]
        return " or ".join([*texts, "null"] if type(None) in get_args(hint) else texts)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (tuple, list, Sequence):
        inner = get_args(hint)
        if get_origin(hint) is tuple and inner and inner[-1] is not Ellipsis:
            return f"a list of {len(inner)} values"
        return "a list, such as [a,b]" if inner and _bare(inner[0]) is str else "a list, such as [1,2]"
    if is_dataclass(hint):
        return f"a group of keys ({', '.join(_field_names(hint))})"
    if get_origin(hint) in (dict, Mapping):
        return "a group of keys"
    return _PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def _range(limits: Iterable[Any]) -> str:
    """The numbers that pydantic's constraints leave, in words."""
    found = {name: getattr(limit, name) for limit in limits for name in ("ge", "gt", "le") if hasattr(limit, name)}
    if "le" not in found:
        return f"above {found['gt']:g}" if "gt" in found else f"of at least {found['ge']:g}"
    return (
        f"above {found['gt']:g} up to {found['le']:g}" if "gt" in found else f"from {found['ge']:g} to {found['le']:g}"
    )


def _bare(hint: Any) -> Any:
    """Without ``Annotated`` and None."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in _UNIONS:
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        return _bare(choices[0]) if len(choices) == 1 else hint
    return hint


def _field_names(cls: Any) -> list[str]:
    return [field.name for field in fields(cls)]


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if isinstance(target, type) and not is_dataclass(target) else target  # type: ignore[misc]
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # annotations of other packages that only a type checker can resolve
        return {}
