"""What an error of composing means to the person who typed the command."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from hydra import compose as hydra_compose
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from partcraft_lit.config.sources import conf_dir, groups_of, hydra_started, primary
from partcraft_lit.config.validation import join
from partcraft_lit.core.errors import UserError, did_you_mean, nearest_names


def explain(error: Exception, verb: str, overrides: Sequence[str] = ()) -> UserError:
    """What an error of composing with these overrides means to the person who typed the command."""
    text = str(error) or str(error.__cause__ or "")
    if isinstance(error, OverrideParseException):
        return unreadable(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = list(error.options or [])
        return UserError(
            f"{group}={option}: no such option. {nearest_names(option, options)}Options: {', '.join(options)}."
        )
    if isinstance(error, UserWarning) and (found := re.search(r"path=(.*) is not available", text)):
        return UserError(f"hydra.searchpath: there is no folder {found[1]}.")
    if found := re.search(r"Sweep parameters '(.+?)' requires --multirun", text, re.DOTALL):
        return UserError(f"'{found[1]}' has several values. For a sweep add -m.")
    if found := re.search(r"(\S+) appears more than once in the final defaults list", text):
        return UserError(f"{found[1]} is chosen twice. A choice stands without +, {found[1]}=NAME, and once.")
    if found := re.search(r"Could not override '([^'@]+)@([^']+)'", text):
        return UserError(
            f"{found[1]}@{found[2]}: nothing is there to override; a further one is +{found[1]}@{found[2]}=NAME."
        )
    if found := re.search(r"(?:Could not override|config group|Could not delete from config\.) '([^']+)'", text):
        return UserError(f"Unknown key '{found[1]}'. {_nearest_key(found[1], verb, overrides)}")
    if found := re.search(r"You must specify '([^']+)'", text):
        group = found[1]
        options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        return UserError(f"{group} has to be given: {group}=NAME. Options: {', '.join(options)}.")
    if "Config group override must be" in text or isinstance(error, TypeError):
        chosen = [given for given in overrides if given.lstrip("+").partition("=")[0] in groups_of(verb)]
        return UserError(f"{' '.join(chosen)}: give the name of an option, as partcraft {verb} --help lists them.")
    if "Ambiguous value for argument" in text:
        given = re.search(r"argument '(.+?)'\n", text)
        return UserError(
            f"'{given[1] if given else '...'}' has several values. For a sweep add -m; for a list write [a,b]; "
            "for text with a comma put it in quotes inside the quotes."
        )
    if found := re.search(r"Key '([^']+)' (?:is not in struct|not in)", text + str(error.__cause__ or "")):
        return UserError(f"Unknown key '{found[1]}'. {_nearest_key(found[1], verb, overrides)}")
    return UserError(f"The configuration cannot be composed: {first_line(error.__cause__ or error)}")


def unreadable(error: OverrideParseException) -> UserError:
    if "=" not in error.override and not error.override.startswith("~"):
        return UserError(f"'{error.override}' is not an override: wanted key=value, for instance parts.M=5.")
    key, _, value = error.override.partition("=")
    return UserError(
        f"The value of '{key}' cannot be read: {value!r}. Put text with special signs in quotes inside the quotes: "
        f"'{key}=\"...\"'."
    )


def is_unresolvable(error: Exception) -> bool:
    """Whether an error is OmegaConf's, about an interpolation that names nothing."""
    return isinstance(error, InterpolationResolutionError)


def group_needed(group: str, verb: str) -> UserError:
    options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    return UserError(f"{group}: {verb} needs one, {group}=NAME. Options: {', '.join(options)}.")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def keys_of(values: Any, where: str = "") -> Iterator[str]:
    """All dotted keys of nested mappings, groups included."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield join(where, str(key))
            yield from keys_of(value, join(where, str(key)))


def _nearest_key(given: str, verb: str, overrides: Sequence[str]) -> str:
    """Sentences: which option of the group has the key, else where one of its name is, else the nearest spelling."""
    group, _, rest = given.partition(".")
    if group == "hydra":
        known = [f"hydra.{key}" for key in keys_of(_hydra_node(verb))]
        return f"{nearest_names(given, known)}All keys: partcraft {verb} --cfg hydra."
    if having := _options_with(group, rest):
        options = " and ".join(f"{group}={option}" for option in having)
        return f"It is a key of {options}. All keys: partcraft {verb} --help."
    known = _known_keys(verb, _choices(overrides))
    elsewhere = [key for key in known if key.rpartition(".")[2].lower() == given.rpartition(".")[2].lower()]
    inner = [key for key in known if key.startswith(f"{group}.")]
    if elsewhere:
        nearest = sorted(elsewhere, key=lambda key: -SequenceMatcher(None, given, key).ratio())
        own = dict.fromkeys(key.split(".")[1] for key in inner if not key.split(".")[1].startswith("_"))
        listed = f" Keys of {group}: {', '.join(own)}." if own else ""
        return f"Did you mean {' or '.join(repr(key) for key in nearest[:3])}?{listed}"
    # In the group itself first. The list of all known keys would be long.
    near = nearest_names(given, inner).rstrip() or nearest_names(given, known).rstrip()
    near = near or did_you_mean(given, inner or [key for key in known if "." not in key])
    return f"{near} All keys: partcraft {verb} --help."


def _hydra_node(verb: str) -> Any:
    with hydra_started(verb):
        cfg = hydra_compose(primary(verb), return_hydra_config=True)
    return OmegaConf.to_container(cfg.hydra, resolve=False)


def _known_keys(verb: str, choices: Sequence[str]) -> list[str]:
    """Keys of the configuration with these choices, or without them if they do not compose together."""
    with hydra_started(verb):
        try:
            cfg = hydra_compose(primary(verb), list(choices))
        except (HydraException, OmegaConfBaseException):
            cfg = hydra_compose(primary(verb))
    return list(keys_of(OmegaConf.to_container(cfg, resolve=False)))


def _choices(overrides: Sequence[str]) -> list[str]:
    """Those overrides that choose an option that exists, so that its keys are known."""
    pairs = [override.partition("=")[::2] for override in overrides]
    return [f"{group}={option}" for group, option in pairs if (conf_dir() / group / f"{option}.yaml").is_file()]


def _options_with(group: str, key: str) -> list[str]:
    """Options of a group whose own YAML has a key."""
    files = sorted((conf_dir() / group).glob("*.yaml")) if key else []
    return [file.stem for file in files if key in keys_of(OmegaConf.to_container(OmegaConf.load(file)))]
