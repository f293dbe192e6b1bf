"""How to install an optional dependency into the environment that this program runs in."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path


def install_command(*requirements: str, extra: str | None = None, prefix: Path | None = None) -> str:
    """Return the command that installs packages beside this program.

    Args:
        requirements: Packages, as pip names them.
        extra: Extra of stjepa to install.
        prefix: Environment of the program; this one if None.
    """
    if (Path(sys.prefix if prefix is None else prefix) / "pipx_metadata.json").is_file():
        packages = [*requirements, *(_requirements(extra) if extra else ())]
        return shlex.join(["pipx", "inject", "stjepa", *packages])
    return shlex.join(["pip", "install", *requirements, *([f"stjepa[{extra}]"] if extra else [])])


def how_to_install(*requirements: str, extra: str | None = None) -> str:
    """Return the sentence for an error message that says how to install packages or an extra of stjepa."""
    return f"Type `{install_command(*requirements, extra=extra)}`."


def _requirements(extra: str) -> Iterator[str]:
    """Yield the packages of an extra: pipx injects packages, not extras."""
    try:
        declared = importlib.metadata.requires("stjepa") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    for line in declared:
        requirement, _, marker = line.partition(";")
        if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", marker):
            yield requirement.strip()
