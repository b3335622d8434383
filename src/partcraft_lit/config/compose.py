"""From overrides to plain, checked values."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import platformdirs
from hydra import compose as hydra_compose
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from partcraft_lit.config import machine
from partcraft_lit.config.cmdline import LIST_KEYS, PATH_KEYS, is_null_group
from partcraft_lit.config.mistakes import explain, first_line, group_needed, keys_of
from partcraft_lit.config.sources import conf_dir, groups_of, hydra_started, primary
from partcraft_lit.config.validation import join
from partcraft_lit.core import environment
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.rundir import settings_hash

#: Names of the parts that are found in drawn creatures, from the top of the image down, as their atlas shows.
DRAWN_NAMES = {("bird", 5): ["head", "wing", "body", "tail", "legs"]}

OmegaConf.register_new_resolver(
    "user_cache", lambda name: str(platformdirs.user_cache_path("partcraft_lit") / name), replace=True
)
# What a data set is trained with, and what depends on the machine.
OmegaConf.register_new_resolver("recipe_for", machine.recipe_for, replace=True)
OmegaConf.register_new_resolver("backbone_for", machine.backbone_for, replace=True)
OmegaConf.register_new_resolver("miniature_for", machine.miniature_for, replace=True)
OmegaConf.register_new_resolver("features_for", machine.features_for, replace=True)
OmegaConf.register_new_resolver("hardware_for", machine.hardware_for, replace=True)
OmegaConf.register_new_resolver("precision_here", machine.precision_here, replace=True)
OmegaConf.register_new_resolver("steps_here", machine.steps_here, replace=True)
# Names of a data set's parts, unless another number of parts is asked for; --resolve takes no plain list.
OmegaConf.register_new_resolver(
    "names_for",
    lambda number, *names: OmegaConf.create(list(names) if len(names) == number else []),
    replace=True,
)
OmegaConf.register_new_resolver(
    "names_of_drawn", lambda family, number: OmegaConf.create(DRAWN_NAMES.get((family, number), [])), replace=True
)
# The first of two phases of equal length.
OmegaConf.register_new_resolver("half", lambda number: max(1, int(number) // 2), replace=True)
# What an image of several concepts shows: "a cat and a dog".
OmegaConf.register_new_resolver("one_of_each", lambda names: " and ".join(f"a {name}" for name in names), replace=True)
OmegaConf.register_new_resolver(
    "short_hash", lambda text: settings_hash({"overrides": sorted(str(text).split(","))}, ()), replace=True
)


def compose(verb: str, overrides: Sequence[str] = (), loader: ConfigLoader | None = None) -> DictConfig:
    """The configuration of a verb.

    Args:
        verb: of the command.
        overrides: of one job.
        loader: that is kept for several configurations; None for one of this configuration alone.

    Raises:
        UserError: for an unknown key, group or option, with the nearest known ones, a value that cannot be read, or one
            that the experiment leaves open, ``???``, and nobody gives.
    """
    cfg = composed(verb, overrides, loader=loader)
    for group, default in groups_of(verb).items():
        if default is not None and not isinstance(OmegaConf.select(cfg, group), DictConfig):
            raise group_needed(group, verb)
    for experiment in _experiments(overrides):
        for key in _left_open(experiment):
            if OmegaConf.select(cfg, key) in (None, "", []):
                raise UserError(f"experiment={experiment} leaves {key} to you, and it has to be given: {key}=VALUE.")
    return cfg


def composed(
    verb: str, overrides: Sequence[str], with_hydra: bool = False, loader: ConfigLoader | None = None
) -> DictConfig:
    """As ``compose``, with values and groups that may still be missing.

    Args:
        verb: of the command.
        overrides: of one job.
        with_hydra: whether Hydra's own configuration is part of it.
        loader: see ``compose``.

    Raises:
        UserError: see ``compose``.
    """
    with hydra_started(verb) as hydra, warnings.catch_warnings():
        hydra.config_loader = loader or hydra.config_loader
        # Of a folder in hydra.searchpath that is not there.
        warnings.filterwarnings("error", message="provider=.* is not available")
        given = [text for text in overrides if not is_null_group(text, verb)]
        try:
            return hydra_compose(primary(verb), given, return_hydra_config=with_hydra)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, UserWarning) as error:
            # ValueError and TypeError are those of group=true and group=[[x]].
            raise explain(error, verb, overrides) from error


def hydra_values(verb: str, overrides: Sequence[str], key: str, resolve: bool = True) -> Any:
    """A value of Hydra's own configuration, plain.

    Args:
        verb: of the command.
        overrides: of one job.
        key: such as "sweep.dir".
        resolve: whether interpolations become what they refer to.
    """
    cfg = composed(verb, overrides, with_hydra=True)
    if not resolve:
        group, _, name = key.rpartition(".")
        values: Any = OmegaConf.to_container(OmegaConf.select(cfg, f"hydra.{group}"), resolve=False)
        return values[name]
    node = OmegaConf.select(cfg, f"hydra.{key}")
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def plain(cfg: Any) -> dict[str, Any]:
    """Dicts, lists and scalars, interpolations resolved.

    Raises:
        UserError: for a value that has to be given and was not, or an interpolation that leads nowhere.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        form = "PATH" if key in PATH_KEYS else "[A,B]" if key in LIST_KEYS else "VALUE"
        raise UserError(f"{key} has to be given: {key}={form}.") from error
    except OmegaConfBaseException as error:
        raise UserError(f"The configuration cannot be resolved at '{error.full_key}': {first_line(error)}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def to_yaml(values: Mapping[str, Any]) -> str:
    """A configuration as ``load`` reads it."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def check_hydra_settings(overrides: Sequence[str]) -> None:
    """Raises a UserError for settings of Hydra with which a run folder could not be read again."""
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key == "hydra.job.chdir" and value.lower() == "true":
            raise UserError(
                f"{text}: relative paths are those of the folder in which a command is given. Leave it out."
            )
        # Lightning gives it to the further processes of a run that it starts: the first one writes for them.
        if key == "hydra.output_subdir" and value != ".hydra" and environment.is_first_process():
            raise UserError(f"{text}: the configuration of a run is read from .hydra in its folder. Leave it out.")


def check_package(verb: str, overrides: Sequence[str], kind: str, package: str) -> None:
    """Raises a UserError if ``--cfg KIND --package NAME`` would show nothing."""
    cfg = composed(verb, [*overrides], with_hydra=kind != "job")
    if OmegaConf.select(cfg, package) is None:
        known = list(keys_of(OmegaConf.to_container(cfg, resolve=False)))
        raise UserError(f"--package {package}: the configuration has no such key. {did_you_mean(package, known)}")


def _experiments(overrides: Sequence[str]) -> list[str]:
    """Names of the experiments that are chosen."""
    chosen = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("experiment=")]
    return [name for names in chosen for name in re.findall(r"[\w/-]+", names) if name != "null"]


def _left_open(experiment: str) -> list[str]:
    """Keys that are ``???`` in an experiment, or in those that it begins with.

    OmegaConf lets a missing value pass where the group's own file has one, even an empty one.
    """
    path = conf_dir() / "experiment" / f"{experiment}.yaml"
    if not path.is_file():
        return []
    values: Any = OmegaConf.to_container(OmegaConf.load(path))
    nested = [name for name in values.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    return [*(key for name in nested for key in _left_open(name)), *_missing(values, "")]


def _missing(values: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _missing(value, join(where, key))
        elif value == "???":
            yield join(where, key)
