"""The folder of a cache: whether one may be made there, where work on it lies, and its header."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from stjepa_cli.core.config import from_dict
from stjepa_cli.core.errors import CacheError, ConfigError
from stjepa_cli.core.files import is_leftover
from stjepa_cli.core.locations import Location, driver_errors, is_folder, is_local, names
from stjepa_cli.store.arrays import HEADER, HEADER_DIGEST, rebuild
from stjepa_cli.store.records import CacheHeader

LISTS = ("clips.jsonl", "failures.jsonl")


def work_folder(path: Location) -> Path:
    """Where the work on a cache lies: `work` in it, for a remote one a folder of this machine that is named by its URL."""
    if is_local(path):
        return path / "work"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "stjepa" / "work" / hashlib.sha256(str(path).encode()).hexdigest()[:16]


def refuse_foreign_folder(path: Location) -> None:
    """Refuse to build in a folder that holds something else than the beginnings of a cache.

    Raises:
        CacheError: it does.
    """
    known = {"work", "marks", "latents", "scales", "frames", "projection", *LISTS}
    try:
        with driver_errors():
            there = path.exists()
        if not there:
            return
        foreign = not is_folder(path) or any(name not in known and not is_leftover(name) for name in names(path))
        if foreign or (is_folder(path / "marks") and any(names(path / "marks"))):
            raise CacheError(f"{path} exists and is no cache of stjepa", fix="Choose another --cache, or empty that folder yourself.")
    except OSError as error:
        raise CacheError(f"the folder {path} cannot be read", got=error) from error


def read_header(path: Location) -> CacheHeader:
    """The header of a cache.

    Raises:
        CacheError: there is none, it is not one, or its header is damaged or was edited.
    """
    where = f"the header of the cache {path}"
    try:
        with driver_errors():
            attributes = json.loads((path / "zarr.json").read_bytes()).get("attributes", {})
        header = from_dict(CacheHeader, attributes[HEADER], where=where)
        known = attributes[HEADER_DIGEST]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheError(f"there is no cache at {path}", fix="Type `stjepa cache build`, or name it with --cache.") from error
    except (OSError, ValueError, KeyError, AttributeError, ConfigError) as error:
        raise CacheError(f"{path} is no cache of stjepa, or {where} is damaged", got=str(error), fix=rebuild(path)) from error
    if header.digest != known:
        what = f"{where} was edited: it no longer has the digest that was written with it"
        raise CacheError(what, got=header.digest[:12], expected=str(known)[:12], fix="Put the file back, or build the cache again.")
    return header
