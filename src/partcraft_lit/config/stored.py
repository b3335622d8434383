"""A stored configuration, which may come from anyone: it is read without calling what it names."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, YAMLError, scan

from partcraft_lit.config.compose import plain
from partcraft_lit.config.mistakes import first_line
from partcraft_lit.config.sources import conf_dir
from partcraft_lit.config.validation import join
from partcraft_lit.core.errors import UserError

#: What a stored configuration may refer to beside its own keys.
_RESOLVERS = frozenset(
    {"user_cache", "precision_here", "steps_here", "names_for", "names_of_drawn", "half", "one_of_each"}
)
_TRUST = (
    "Loading it would run code of whoever wrote that file, with your rights; if it is yours, or you have read it, add "
    "trust=true."
)


def load(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """A stored configuration. A run folder may come from anyone: it can call and read nothing of its own choice.

    Args:
        path: of the YAML file.
        trust: whether any ``_target_`` and resolver may be in it.

    Raises:
        UserError: if it cannot be read, or names something to call that neither ``conf/`` names nor Lightning has.
    """
    try:
        if any(isinstance(token, AliasToken) for token in scan(path.read_text(encoding="utf-8"))):
            raise UserError(
                f"{path}: a stored configuration has no aliases (*name); a few lines of them fill the memory."
            )
        stored = OmegaConf.load(path)
        if not isinstance(stored, DictConfig):
            raise UserError(f"{path}: wanted a group of keys.")
        if not trust:
            _check_stored(OmegaConf.to_container(stored), path)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a configuration: {first_line(error)}") from error
    return plain(stored)


def _check_stored(values: Any, path: Path) -> None:
    for key, value in _leaves(values, ""):
        if key.rpartition(".")[2] == "_target_" and value not in known_targets() and not _is_lightnings(value):
            raise UserError(f"{path}: {key}={value} is a class of somebody's own. {_TRUST}")
        # What follows each "${" must be a key, or one of our resolvers by its plain name.
        for name, sign in re.findall(r"\$\{\s*([^\s:{}$]*)\s*(.?)", value if isinstance(value, str) else ""):
            if sign != "}" and not (sign == ":" and name in _RESOLVERS):
                raise UserError(f"{path}: {key}={value} asks for more than a key of the configuration. {_TRUST}")


@functools.cache
def known_targets() -> frozenset[str]:
    """Every ``_target_`` of the YAML files here."""
    texts = (path.read_text(encoding="utf-8") for path in conf_dir().rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"_target_:\s*([\w.]+)", text))


def _is_lightnings(target: Any) -> bool:
    return bool(re.fullmatch(r"lightning(\.pytorch)?\.Trainer|lightning\.pytorch\.loggers\.[A-Z]\w*", str(target)))


def _leaves(values: Any, where: str) -> Iterator[tuple[str, Any]]:
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if isinstance(value, Mapping | list):
            yield from _leaves(value, join(where, str(key)))
        else:
            yield join(where, str(key)), value
