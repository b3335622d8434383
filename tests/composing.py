"""Configurations of tests, composed once per choice of groups.

A command composes its configuration three times, at 0.2 seconds each, and the tests give more than a thousand of them.
So they take copies, as the jobs of a sweep do; ``tests/config/test_loader.py`` compares these with what Hydra composes.
"""

from __future__ import annotations

import copy
import os
from collections import ChainMap
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, TextIO

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import file_config_source, importlib_resources_config_source
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from partcraft_lit.config import sources
from partcraft_lit.config.loader import SharedLoader

#: What a command adds to its overrides: another folder for each.
_FOLDERS = ("hydra.run.dir=", "hydra.sweep.dir=")


#: Primary configuration, and the overrides that choose groups.
_Choice = tuple[str | None, tuple[str, ...]]


class ComposedOnce(SharedLoader):
    """Whatever the folder of a run and the folder that a command is given in; anew for other answers of the machine."""

    def __init__(self, loader: ConfigLoader) -> None:
        super().__init__(loader)
        self._each: dict[tuple[str | None, ...], MutableMapping[_Choice, DictConfig]] = {}

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *args: Any, **kwargs: Any
    ) -> DictConfig:
        answers = (os.environ.get("PARTCRAFT_HARDWARE"), os.environ.get("PARTCRAFT_FEATURES"))
        self._composed = self._each.setdefault(answers, {})
        if run_mode == RunMode.MULTIRUN:  # composes what a single run does, and what one may not leave open
            self._composed = self._each.setdefault(("sweep", *answers), ChainMap({}, self._composed))
        folders = [text for text in overrides if text.startswith(_FOLDERS)]
        others = [text for text in overrides if text not in folders]
        if run_mode == RunMode.MULTIRUN and any("," in text or "(" in text for text in others):  # may be a sweep
            if (config_name, tuple(others)) not in self._composed:
                whole = ConfigLoaderImpl.load_configuration(self, config_name, others, run_mode, *args, **kwargs)
                self._composed[config_name, tuple(others)] = whole
            cfg = copy.deepcopy(self._composed[config_name, tuple(others)])
        else:
            cfg = super().load_configuration(config_name, others, run_mode, *args, **kwargs)
        self._apply_overrides_to_config(OverridesParser.create().parse_overrides(folders), cfg)
        cfg.hydra.overrides.hydra.extend(folders)
        cfg.hydra.runtime.cwd = str(Path.cwd())
        return cfg


class ParsedOnce:
    """``OmegaConf.load`` of what Hydra reads; equal texts are parsed once."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def load(self, file: TextIO) -> Any:
        text = file.read()
        if text not in self._known:
            file.seek(0)  # parsed as a file, whose name is in the message of an error
            self._known[text] = OmegaConf.load(file)
        return copy.deepcopy(self._known[text])


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Gives Hydra such a loader wherever it reads our own folder alone: what a test writes elsewhere may change."""
    own = {"pkg://hydra.conf", str(sources.conf_dir()), f"file://{sources.conf_dir()}", "structured://"}
    known: dict[tuple[str | None, ...], ConfigLoader] = {}

    def loader(config_search_path: ConfigSearchPath) -> ConfigLoader:
        places = tuple(element.path for element in config_search_path.get_path())
        if not own.issuperset(places):
            return ConfigLoaderImpl(config_search_path)
        return known.setdefault(places, ComposedOnce(ConfigLoaderImpl(config_search_path)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydra._internal.hydra.ConfigLoaderImpl", loader)
        for source in (file_config_source, importlib_resources_config_source):
            patch.setattr(source, "OmegaConf", ParsedOnce())
        yield
