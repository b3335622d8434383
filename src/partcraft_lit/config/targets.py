"""``_target_`` nodes of the configuration: what they name, called with their keys once these are checked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object

from partcraft_lit.config.mistakes import first_line
from partcraft_lit.config.validation import bind
from partcraft_lit.core.errors import UserError, nearest_names


def make(node: Mapping[str, Any], where: str, **at_run_time: Any) -> Any:
    """Calls the ``_target_`` of a node with its keys, checked against the target's annotations.

    Raises:
        UserError: for an unknown or missing key, or a value of the wrong type.
    """
    target, arguments = _target(node, where)
    return target(**bind(target, arguments, where, later=tuple(at_run_time)), **at_run_time)


def later(node: Mapping[str, Any], where: str) -> Callable[..., Any]:
    """As ``make``, but the call waits for arguments that come at run time; the keys are checked now."""
    target, arguments = _target(node, where)
    return functools.partial(target, **bind(target, arguments, where, later=None))


def target_of(node: Mapping[str, Any], where: str) -> Callable[..., Any]:
    """What the ``_target_`` of a node names."""
    return _target(node, where)[0]


def choose(table: Mapping[str, Any], choice: str, key: str) -> Mapping[str, Any]:
    """The row of a table of ``_target_`` nodes that the value of ``key`` names.

    Raises:
        UserError: if there is no such row.
    """
    if choice not in table:
        raise UserError(f"{key}={choice}: {nearest_names(choice, table)}Known: {', '.join(sorted(table))}.")
    node: Mapping[str, Any] = table[choice]
    return node


def _target(node: Mapping[str, Any], where: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    if not isinstance(node, Mapping):
        raise UserError(f"{where}={node!r}: wanted a group of keys, with a _target_.")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    if not isinstance(node.get("_target_", ""), str):
        raise UserError(f"{where}._target_={node['_target_']!r}: wanted the dotted path of a class or function.")
    try:
        target = get_object(node["_target_"])
    except KeyError:
        raise UserError(f"{where} has no _target_: wanted the dotted path of a class or function.") from None
    except (ImportError, ValueError) as error:
        raise UserError(f"{where}._target_={node['_target_']}: {first_line(error)}") from error
    return target, arguments
