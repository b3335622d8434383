"""Hydra's loader for many configurations that differ in a few values: YAML is composed once per choice of groups."""

from __future__ import annotations

import copy

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig


class SharedLoader(ConfigLoaderImpl):
    """Composes what Hydra's own loader composes, from the same overrides.

    Of a configuration nearly all time goes into finding, reading and merging some forty YAML files, which overrides of
    plain values do not change. So the groups are composed once for each choice of them, and values are set in a copy.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        super().__init__(loader.get_search_path())
        self._composed: dict[tuple[str | None, tuple[str, ...]], DictConfig] = {}

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        parsed = OverridesParser.create().parse_overrides(overrides)
        values = [override for override in parsed if self._is_value(override)]
        rest = [str(override.input_line) for override in parsed if override not in values]

        def whole(given: list[str]) -> DictConfig:
            return super(SharedLoader, self).load_configuration(
                config_name, given, run_mode, from_shell, validate_sweep_overrides
            )

        if any(override.is_sweep_override() for override in parsed):
            return whole(overrides)
        key = (config_name, tuple(rest))
        if key not in self._composed:
            self._composed[key] = whole(rest)
        if self._composed[key].hydra.searchpath:  # there may be groups that are values here
            return whole(overrides)
        cfg = copy.deepcopy(self._composed[key])
        self._apply_overrides_to_config(values, cfg)
        task = [override for override in parsed if not override.is_hydra_override()]
        cfg.hydra.overrides.task = [override.input_line for override in task]
        shown = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            overrides=task, kv_sep=shown.kv_sep, item_sep=shown.item_sep, exclude_keys=shown.exclude_keys
        )
        return cfg

    def _is_value(self, override: Override) -> bool:
        """Whether an override leaves the choice of groups as it is; Hydra's own settings do not count as values."""
        if override.is_hydra_override() or override.is_sweep_override():
            return False
        return isinstance(override.value(), dict) or not self.repository.group_exists(override.key_or_group)
