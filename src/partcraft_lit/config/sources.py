"""Whose YAML files a configuration is composed of, and Hydra as the command line starts it, to compose with."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from partcraft_lit.core.errors import UserError, did_you_mean

#: Groups that a user does not choose from.
_UNASKED = ("hydra", "recipe")


def conf_dir() -> Path:
    """The folder of the YAML files: ``conf/`` of a checkout, else the copy inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"The configuration folder is missing: neither {package / 'conf'} nor a checkout's conf/ is there.")


@dataclass(frozen=True)
class Sources:
    """Whose YAML is read beside ours, as Hydra's options on the command line say.

    Attributes:
        verb: of the command.
        name: of the primary configuration instead of the verb's, --config-name.
        folder: is looked into before ours, --config-path.
        extra: is looked into after ours, --config-dir.
    """

    verb: str = ""
    name: str | None = None
    folder: Path | None = None
    extra: Path | None = None


_sources = Sources()


def set_sources(sources: Sources) -> None:
    """From now on configurations are composed from these.

    Raises:
        UserError: for a folder or a primary configuration that is not there.
    """
    global _sources
    _sources = sources
    for option, folder in (("--config-path", sources.folder), ("--config-dir", sources.extra)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{option} {folder}: there is no such folder.")
    if sources.name is not None:
        places = [place for place in (sources.folder, conf_dir(), sources.extra) if place is not None]
        name = sources.name.removesuffix(".yaml")
        if not any((place / f"{name}.yaml").is_file() for place in places):
            known = [path.stem for place in places for path in place.glob("*.yaml")]
            searched = ", ".join(map(str, places))
            raise UserError(f"--config-name {sources.name}: no such file in {searched}. {did_you_mean(name, known)}")


def primary(verb: str) -> str:
    """Name of the primary configuration."""
    return (_sources.name or verb).removesuffix(".yaml") if verb == _sources.verb else verb


def first_folder() -> Path:
    """Where Hydra looks first."""
    return _sources.folder or conf_dir()


class OwnConfigurations(SearchPathPlugin):
    """Our YAML stays within reach where --config-path names another folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if _sources.folder is not None:
            search_path.append("partcraft", str(conf_dir()))


Plugins.instance().register(OwnConfigurations)


@contextmanager
def hydra_started(verb: str) -> Iterator[Hydra]:
    """Hydra as the command line starts it, to compose with; what was initialised before is forgotten."""
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    path = create_config_search_path(str(first_folder()))
    if _sources.extra is not None:
        path.prepend("command-line", f"file://{_sources.extra}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2(verb, path)
    finally:
        GlobalHydra.instance().clear()


def loader(verb: str) -> ConfigLoader:
    """Knows the options of each group."""
    with hydra_started(verb) as hydra:
        return hydra.config_loader


@functools.cache
def groups_of(verb: str) -> dict[str, str | None]:
    """Groups of a verb's configuration, with the option that each begins with; None for those that may be left out."""
    found: dict[str, str | None] = {}
    values: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{verb}.yaml"))
    for entry in values["defaults"]:
        if isinstance(entry, Mapping):
            found |= {group: option for group, option in entry.items() if group.partition("/")[0] not in _UNASKED}
        elif entry != "_self_":
            found |= groups_of(entry)
    return found
