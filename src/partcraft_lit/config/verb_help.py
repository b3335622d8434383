"""``partcraft VERB --help``: the groups and keys of a verb, each with the comment that its YAML gives it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from partcraft_lit.config.compose import composed, to_yaml
from partcraft_lit.config.sources import conf_dir, groups_of, loader
from partcraft_lit.config.validation import join

#: Where comments begin, if the line is not longer.
_COLUMN = 32
#: Options that are no files: the command line chooses a file for them.
_CHOSEN_HERE = {"hardware": ["auto"]}
_ENTRY = re.compile(r"^(?P<indent> *)(?P<dash>- )?(?P<key>[A-Za-z0-9_/]+):(?P<value>.*)$")
_TRAILING = re.compile(r"(?:^|\s)# (.*)$")


def verb_help(verb: str, overrides: Sequence[str] = (), resolve: bool = False) -> str:
    """What a verb does, the groups that can be chosen, and its keys with their values and comments.

    Args:
        verb: of the command.
        overrides: applied before the values are shown.
        resolve: whether interpolations become what they refer to.

    Raises:
        UserError: for an override that does not fit.
    """
    values, choices = _values(verb, overrides, resolve)
    sections = [_description(verb)]
    if groups := dict(_options(verb)):
        listed = [f"{group}: {', '.join(options)}" for group, options in groups.items()]
        sections.append("\n".join(["Groups, chosen with GROUP=OPTION:", "", *listed]))
    keys = "\n".join(_commented(values, _comments(verb, choices)))
    sections.append(f"Keys, changed with KEY=VALUE, nested ones as GROUP.KEY=VALUE:\n\n{keys}")
    sections.append("-m KEY=A,B runs a sweep; --hydra-help lists Hydra's own options.")
    return "\n\n".join(sections)


def _values(verb: str, overrides: Sequence[str], resolve: bool) -> tuple[str, Mapping[str, str]]:
    """The configuration as YAML and the chosen options; of a group that has to be chosen, nothing."""
    needed = [group for group, option in groups_of(verb).items() if option == "???"]
    if any(not any(text.startswith(f"{group}=") for text in overrides) for group in needed):
        own: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{verb}.yaml"))
        return to_yaml({key: node for key, node in own.items() if key not in ("defaults", "hydra")}), {}
    cfg = composed(verb, overrides, with_hydra=True)
    choices = {group: option for group, option in cfg.hydra.runtime.choices.items() if isinstance(option, str)}
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return OmegaConf.to_yaml(cfg, resolve=resolve), choices


def _description(verb: str) -> str:
    """The comment at the head of the verb's YAML."""
    lines = []
    for line in (conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def _options(verb: str) -> Iterator[tuple[str, list[str]]]:
    """Groups with a choice, and their options; those of an inner folder as ``folder/option``."""
    known = loader(verb)
    for group in groups_of(verb):
        options = [*_options_of(known, group), *_CHOSEN_HERE.get(group, [])]
        if len(options) > 1:
            yield group, options


def _options_of(known: ConfigLoader, group: str) -> list[str]:
    options = list(known.get_group_options(group, ObjectType.CONFIG))
    for folder in known.get_group_options(group, ObjectType.GROUP):
        options += [f"{folder}/{option}" for option in known.get_group_options(f"{group}/{folder}")]
    return options


def _comments(verb: str, choices: Mapping[str, str]) -> dict[str, list[str]]:
    """Dotted key -> lines above it, then the comment beside it ("" for none)."""
    files = [*_parents(verb), conf_dir() / f"{verb}.yaml"]
    for group, option in choices.items():
        files += [conf_dir() / group / f"{name}.yaml" for name in ("default", option)]
    found: dict[str, list[str]] = {}
    for file in files:
        if file.is_file():
            package = "" if file.parent == conf_dir() else file.parent.relative_to(conf_dir()).as_posix()
            found.update(_comments_in(file.read_text(encoding="utf-8"), package.replace("/", ".")))
    return found


def _parents(verb: str) -> list[Path]:
    """The configurations that a verb's own extends."""
    values: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{verb}.yaml"))
    return [
        conf_dir() / f"{entry}.yaml" for entry in values["defaults"] if isinstance(entry, str) and entry != "_self_"
    ]


def _comments_in(text: str, package: str) -> Iterator[tuple[str, list[str]]]:
    """Keys of one file that have a comment; an entry of its defaults list comments on the group."""
    if text.startswith("# @package _global_"):
        package = ""
    above: list[str] = []
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above += [line.strip()] if "@package" not in line else []
            continue
        entry = _ENTRY.match(line)
        if entry is None:
            above = []
            continue
        indent, key = len(entry["indent"]), entry["key"]
        path = [(depth, name) for depth, name in path if depth < indent]
        beside = _TRAILING.search(entry["value"])
        name = key if entry["dash"] else ".".join([*([package] if package else []), *(name for _, name in path), key])
        if above or beside:
            yield name, [*above, beside[1] if beside else ""]
        above = []
        if not entry["dash"]:
            path.append((indent, key))


def _commented(values: str, comments: Mapping[str, list[str]]) -> Iterator[str]:
    """Lines of YAML with the comments of their keys."""
    path: list[tuple[int, str]] = []
    for line in values.splitlines():
        entry = _ENTRY.match(line)
        if entry is None or entry["dash"]:
            yield line
            continue
        indent = len(entry["indent"])
        path = [(depth, name) for depth, name in path if depth < indent]
        where = ""
        for _, name in path:
            where = join(where, name)
        *above, beside = comments.get(join(where, entry["key"]), [""])
        yield from (f"{entry['indent']}{comment}" for comment in above)
        yield f"{line:<{_COLUMN - 2}}  # {beside}" if beside else line
        path.append((indent, entry["key"]))
