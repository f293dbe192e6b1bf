"""Where things lie by default: a flag, else an environment variable, else a fixed path."""

from __future__ import annotations

import os
from pathlib import Path

from stjepa_cli.core.locations import Location, location


def place(flag: Location | str | None, variable: str, default: Location | str) -> Location:
    """Return a folder or URL: the flag if given, else the environment variable, else the default.

    Raises:
        ConfigError: A URL of an unknown protocol.
        NotReadyError: A URL whose driver is not installed.
    """
    return location(flag if flag is not None else os.environ.get(variable) or default)


def dataset_root(name: str, flag: Location | str | None = None) -> Location:
    """Return the root of a data set: `STJEPA_<NAME>`, or a folder below /mnt."""
    return place(flag, f"STJEPA_{name.upper()}", f"/mnt/{name}")


def ssv2_root(flag: Location | str | None = None) -> Location:
    """Return the root of Something-Something v2."""
    return place(flag, "STJEPA_SSV2", "/mnt/ssv2")


def ucf101_root(flag: Location | str | None = None) -> Location:
    """Return the root of UCF-101."""
    return place(flag, "STJEPA_UCF101", "/mnt/ucf101")


def cache_path(flag: Location | str | None, data_root: Location) -> Location:
    """Return the latent cache of `data_root`."""
    return place(flag, "STJEPA_CACHE", data_root / "cache_videomae_huge_384")


def checkpoints_dir(flag: Path | None = None) -> Path:
    """Return the folder where checkpoints are written and looked for."""
    return flag if flag is not None else Path(os.environ.get("STJEPA_CHECKPOINTS") or "checkpoints")


def features_dir(flag: Path | None = None) -> Path:
    """Return the folder where features of data sets are kept."""
    return flag if flag is not None else Path(os.environ.get("STJEPA_FEATURES") or Path.home() / ".cache" / "stjepa" / "features")
