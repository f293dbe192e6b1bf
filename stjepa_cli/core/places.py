"""Where things lie by default: a flag, else an environment variable, else a fixed path."""

from __future__ import annotations

import os
import re
from pathlib import Path

from stjepa_cli.core.config import DEFAULT_TEACHER, LATENT_DIM
from stjepa_cli.core.locations import Location, driver_errors, location, names

DEFAULT_CACHE = f"cache_videomae_huge_{LATENT_DIM}"
"""Default name of the cache of the default teacher; until 0.1 that of every teacher."""


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
    """Return the latent cache of `data_root` to read: the flag, else the environment variable, else the cache that is there.

    Where there are several, it is that of the default teacher; the others have to be named.
    """
    if flag is not None or os.environ.get("STJEPA_CACHE"):
        return place(flag, "STJEPA_CACHE", "")
    found = caches_in(data_root)
    return data_root / (found[0] if len(found) == 1 else DEFAULT_CACHE)


def caches_in(folder: Location) -> list[str]:
    """Return the names of the caches with default names in a folder, sorted; none if the folder cannot be listed."""
    try:
        with driver_errors():
            candidates = sorted(name for name in names(folder) if name.startswith("cache_"))
            return [name for name in candidates if (folder / name / "zarr.json").exists()]
    except OSError:
        return []


def cache_name(teacher: str, latent_dim: int) -> str:
    """Return the default name of the cache of a teacher: `cache_hog_384`.

    Args:
        teacher: Hugging Face id, path or built-in name; its last part is used, without an ending.
        latent_dim: Stored channels.
    """
    if teacher == DEFAULT_TEACHER:
        return f"cache_videomae_huge_{latent_dim}"
    last = teacher.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
    slug = re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_")[:100]
    return f"cache_{slug or 'teacher'}_{latent_dim}"


def checkpoints_dir(flag: Path | None = None) -> Path:
    """Return the folder where checkpoints are written and looked for."""
    return flag if flag is not None else Path(os.environ.get("STJEPA_CHECKPOINTS") or "checkpoints")


def features_dir(flag: Path | None = None) -> Path:
    """Return the folder where features of data sets are kept."""
    return flag if flag is not None else Path(os.environ.get("STJEPA_FEATURES") or Path.home() / ".cache" / "stjepa" / "features")
