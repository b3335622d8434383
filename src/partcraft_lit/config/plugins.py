"""Our launchers and sweepers as Hydra's plugins."""

from __future__ import annotations

import sys
from types import ModuleType

from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin

#: Hydra takes plugins from below ``hydra_plugins`` alone, and scans a folder of that name in every checkout; ours have
#: their names in a module that is made here, for our command alone.
PACKAGE = "hydra_plugins.partcraft_lit"


def register(*plugins: type[Plugin]) -> None:
    """Makes plugins known to Hydra; their ``__module__`` is ``PACKAGE``."""
    known = Plugins.instance()  # before the module is there: it scans a package of that name when it is made
    parent = sys.modules.setdefault(PACKAGE.partition(".")[0], ModuleType(PACKAGE.partition(".")[0]))
    module = sys.modules.setdefault(PACKAGE, ModuleType(PACKAGE))
    setattr(parent, PACKAGE.partition(".")[2], module)
    for plugin in plugins:
        setattr(module, plugin.__name__, plugin)
        known.register(plugin)
