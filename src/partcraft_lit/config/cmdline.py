"""Overrides as they are typed on a command line: quotes, paths, lists of names, sweeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException

from partcraft_lit.config import machine
from partcraft_lit.config.mistakes import group_needed, unreadable
from partcraft_lit.config.sources import groups_of, loader
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.settings import expand_user

#: Free text: always taken as it is, with commas, brackets and all.
TEXT_KEYS = ("prompt", "sample.negative_prompt", "overrides")
#: Text that is taken as it is, except in a sweep, where a comma separates values.
WORD_KEYS = (
    "prior.prompt",
    "dataset.class_noun",
    "data_license",
    "logger.wandb.project",
    "logger.wandb.entity",
    "logger.wandb.group",
)
#: Lists of text: "1e-1" is a name there, and "wing (left)" needs no quotes.
LIST_KEYS = ("rows", "runs", "chosen", "parts.names", "dataset.classes", "dataset.pairs", "logger.wandb.tags")
#: Paths: taken as they are, except in a sweep, where a comma separates values.
PATH_KEYS = (
    "dataset.dir",
    "dataset.masks",
    "parts.corrections",
    "archive",
    "paths.data",
    "prior.dir",
    "backbone.source",
    "backbone.vae",
    "backbone.config",
    "run",
    "ckpt_path",
    "output_dir",
    "prompts_file",
    "captions_file",
    "paths.logs",
    "paths.store",
)
#: Per verb: what a user may write -> the key. These are groups of other verbs: Hydra would look for an option of them.
ALIASES = {"export": {"parts": "chosen"}, "table": {"backbone": "base"}}


def renamed(override: str, verb: str) -> str:
    """An override with the key that a verb's configuration has for it."""
    key, equals, value = override.partition("=")
    return f"{ALIASES.get(verb, {}).get(key, key)}{equals}{value}"


def as_written(override: str, multirun: bool) -> str:
    """Quotes a value that stands for itself, so that ``prompt=a photo of a <head:3> bird`` needs no second quotes."""
    key, equals, value = override.partition("=")
    if not equals or not value or _is_quoted(value):
        return override
    bare = key.lstrip("+")
    if override == "hardware=auto":
        return f"hardware={machine.hardware_here()}"
    if override == "trainer.precision=auto":
        return quoted(key, "${precision_here:${trainer.accelerator}}")
    if bare in TEXT_KEYS or (bare in WORD_KEYS and not multirun and value != "null"):
        return quoted(key, value)
    if bare in LIST_KEYS and (items := _items(value)) is not None:
        return f"{key}=[{','.join(items)}]"
    if bare in PATH_KEYS and not multirun and value not in ("null", "auto"):
        return quoted(key, str(_expanded(bare, value).resolve()) if _is_path(bare, value) else value)
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        simple = "," not in value and not value.startswith(("[", "{", "$"))
        return quoted(key, value) if simple and re.fullmatch(r"\+{0,2}[\w.@/:-]+", key) else override
    return override


def quoted(key: str, value: str) -> str:
    return f"{key}={QuotedString(text=value, quote=Quote.single).with_quotes()}"


def is_null_group(override: str, verb: str) -> bool:
    """Whether an override says what holds anyway, that an optional group is left out; Hydra cannot read it.

    Raises:
        UserError: for a group that cannot be left out.
    """
    group, _, option = override.partition("=")
    if option != "null" or group not in groups_of(verb):
        return False
    if groups_of(verb)[group] is not None:
        raise group_needed(group, verb)
    return True


def with_empty_groups(override: str, verb: str) -> str:
    """A sweep over an optional group: Hydra reads "no option" as ``[]`` alone, where people write ``null``."""
    group, equals, options = override.partition("=")
    optional = group in groups_of(verb) and groups_of(verb)[group] is None
    return f"{group}={re.sub(r'(?<![^,( ])null(?![^,) ])', '[]', options)}" if optional and equals else override


def sweep_points(verb: str, overrides: Sequence[str]) -> Iterator[list[str]]:
    """Overrides of enough jobs of a sweep that each value of each swept key occurs once.

    Not every combination: the check of a sweep of 1,000 jobs must not take longer than its first job.
    """
    parser = OverridesParser.create(config_loader=loader(verb))
    parsed = [parse(text, parser) for text in overrides]
    swept = [i for i, override in enumerate(parsed) if override.is_sweep_override()]
    choices = {i: _sweep_values(parsed[i]) for i in swept}
    first = [choices[i][0] if i in choices else text for i, text in enumerate(overrides)]
    yield first
    for i in swept:
        for value in choices[i][1:]:
            yield [*first[:i], value, *first[i + 1 :]]


def parse(text: str, parser: OverridesParser) -> Override:
    """One override.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return parser.parse_overrides([text])[0]
    except OverrideParseException as error:
        raise unreadable(error) from error


def _sweep_values(override: Override) -> list[str]:
    key = override.get_key_element()
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise UserError(f"{override.input_line}: nothing of this name is there to choose from.")
    return values


def _items(value: str) -> list[str] | None:
    """The items of one list, each in quotes; None for what is no such list, or a list of more than text."""
    if not re.fullmatch(r"\[[^][]*\]", value) or "${" in value:
        return None
    items = re.findall(r"\s*('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,]+)\s*(?:,|$)", value[1:-1])
    return [item if _is_quoted(item) else quoted("", item.strip())[1:] for item in items]


def _is_path(key: str, value: str) -> bool:
    """Made absolute, so that a run can be read from any folder; a hub id or the name of a run is none."""
    may_exist = key.startswith("backbone.") or key == "ckpt_path"
    return key in ("dataset.dir", "dataset.masks", "prior.dir", "archive", "paths.data") or (
        may_exist and _expanded(key, value).exists()
    )


def _expanded(key: str, value: str) -> Path:
    try:
        return expand_user(Path(value))
    except ValueError as error:
        raise UserError(f"{key}={value}: {error}.") from None


def _is_quoted(value: str) -> bool:
    return len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
