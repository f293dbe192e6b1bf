"""Plug-in folders: every module in such a folder is a plug-in with the module's name, found without being listed anywhere.

A plug-in module exposes its class as `plugin`. `base` and modules whose names start with an underscore are not plug-ins.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from stjepa_cli.core.errors import ConfigError


def names(folder: str) -> list[str]:
    """Return the names of the plug-ins in a folder (`"teachers"`, `"data.datasets"`), sorted, without importing any."""
    package = importlib.import_module(f"stjepa_cli.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base" and not m.name.startswith("_"))


def load(folder: str, name: str) -> Any:
    """Return the class that the plug-in `name` of `folder` exposes.

    Raises:
        ConfigError: There is no such plug-in; the message lists those that exist.
    """
    if name not in names(folder):
        raise ConfigError(f"unknown {folder.rpartition('.')[2].rstrip('s')}", got=repr(name), expected="one of " + ", ".join(names(folder)))
    return importlib.import_module(f"stjepa_cli.{folder}.{name}").plugin
