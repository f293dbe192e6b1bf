"""The folder of a cache: creating it, reading its header and clip list, refusing and replacing what lies in its place."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stjepa_cli.core.errors import CacheError, ConfigError, storage_errors
from stjepa_cli.core.files import is_leftover, sync, write_atomic
from stjepa_cli.core.locations import Location, driver_errors, is_folder, is_local, names
from stjepa_cli.core.places import caches_in
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.store.arrays import HEADER, HEADER_DIGEST, create_arrays
from stjepa_cli.store.errors import rebuild, unreadable
from stjepa_cli.store.projection import Projection
from stjepa_cli.store.records import SCHEMA, CacheHeader, ClipRow, clips_digest

LISTS = ("clips.jsonl", "failures.jsonl")
_PART_OF_A_CACHE = re.compile(
    r"zarr\.json|clips\.jsonl|failures\.jsonl"
    r"|(latents|scales|frames)/(zarr\.json|c(/\d+)+)"
    r"|marks/\d+\.json(\.bad)?"
    r"|projection/(zarr\.json|(mean|matrix)/(zarr\.json|c(/\d+)+))"
    r"|work/(lock|\d+/(latents|scales|frames|journal))"
)


def work_folder(path: Location) -> Path:
    """Return the folder for unfinished shards and locks: `work` in the cache; for a remote cache a folder on this machine."""
    if is_local(path):
        return path / "work"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "stjepa" / "work" / hashlib.sha256(str(path).encode()).hexdigest()[:16]


def cache_exists(path: Location) -> bool:
    """Return whether there is a cache, intact or not, or something that claims to be one.

    Raises:
        UnreadableError: The system does not say.
    """
    try:
        with driver_errors():
            return (path / "zarr.json").is_file()
    except OSError as error:
        raise unreadable(path, error) from error


def refuse_foreign_folder(path: Location) -> None:
    """Refuse to build in a folder that holds anything but the beginnings of a cache.

    Raises:
        CacheError: It does.
        UnreadableError: It cannot be read.
    """
    known = {"work", "marks", "latents", "scales", "frames", "projection", *LISTS}
    try:
        with driver_errors():
            there = path.exists()
        if not there:
            return
        foreign = not is_folder(path) or any(name not in known and not is_leftover(name) for name in names(path))
        if foreign or (is_folder(path / "marks") and any(names(path / "marks"))):
            raise CacheError(f"{path} exists and is not a cache of stjepa", fix="Choose another --cache, or empty that folder yourself.")
    except OSError as error:
        raise unreadable(f"the folder {path}", error) from error


def create_cache(path: Location, header: CacheHeader, clips: Sequence[ClipRow], projection: Projection) -> None:
    """Create an empty cache in a folder that does not exist yet or holds nothing but `work`.

    Raises:
        CacheError: The folder holds something else.
        StjepaError: It cannot be written.
    """
    refuse_foreign_folder(path)
    with storage_errors(path), tempfile.TemporaryDirectory(prefix="stjepa") as folder:
        draft = Path(folder)
        create_arrays(draft, to_dict(header), header, projection)
        (draft / "clips.jsonl").write_text("".join(json.dumps(asdict(clip)) + "\n" for clip in clips))
        files = sorted(file for file in draft.rglob("*") if file.is_file())
        for file in files:
            if file != draft / "zarr.json":
                write_atomic(path / file.relative_to(draft).as_posix(), file.read_bytes())
        if is_local(path):
            (path / "marks").mkdir(exist_ok=True)
            for below in {parent for file in files for parent in file.relative_to(draft).parents}:
                sync(path / below)
            sync(path.parent)
        # the file of the group comes last: without it there is no cache yet
        write_atomic(path / "zarr.json", (draft / "zarr.json").read_bytes())


def read_header(path: Location) -> CacheHeader:
    """Read the header of a cache.

    Raises:
        CacheError: There is no cache, it is something else, its header is damaged or was edited, or a newer stjepa wrote it.
        UnreadableError: The header cannot be read.
    """
    where = f"the header of the cache {path}"
    try:
        with driver_errors():
            data = (path / "zarr.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        beside = ", ".join(caches_in(path.parent))
        fix = f"Beside it there is {beside}: name one with --cache." if beside else "Type `stjepa cache build`, or name it with --cache."
        raise CacheError(f"there is no cache at {path}", fix=fix) from error
    except OSError as error:
        raise unreadable(where, error) from error
    try:
        attributes = json.loads(data)["attributes"]
        written, known = attributes[HEADER], attributes[HEADER_DIGEST]
        if not isinstance(written, dict):
            raise TypeError(f"a header is a JSON object, not {json.dumps(written)[:40]}")
        schema = written.get("schema", SCHEMA)
        if isinstance(schema, int) and schema > SCHEMA:
            fix = "Upgrade: `pip install --upgrade stjepa`."
            raise CacheError(f"the cache {path} was written by a newer stjepa", got=f"schema {schema}", expected=SCHEMA, fix=fix)
        header = from_dict(CacheHeader, written, where=where)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ConfigError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CacheError(f"{path} is not a cache of stjepa, or its header is damaged", got=got, fix=rebuild(path)) from error
    if header.digest != known:
        what = f"{where} was edited: it no longer has the digest that was written with it"
        raise CacheError(what, got=header.digest[:12], expected=str(known)[:12], fix="Put the file back, or build the cache again.")
    return header


def read_clips(path: Location, header: CacheHeader) -> tuple[ClipRow, ...]:
    """Read the clip list of a cache.

    Raises:
        CacheError: The list is missing, damaged, or not the one that the header names.
        UnreadableError: It cannot be read.
    """
    what = f"the clip list of the cache {path}"
    try:
        with driver_errors():
            data = (path / "clips.jsonl").read_bytes()
    except FileNotFoundError as error:
        raise CacheError(f"{what} is missing", fix=rebuild(path)) from error
    except OSError as error:
        raise unreadable(what, error) from error
    try:
        clips = tuple(ClipRow(**json.loads(line)) for line in data.decode().splitlines())
    except (ValueError, TypeError, RecursionError) as error:
        raise CacheError(f"{what} is damaged", got=str(error), fix=rebuild(path)) from error
    if clips_digest(clips) != header.clips_digest:
        raise CacheError(f"{path}/clips.jsonl is not the list that the header of the cache names", fix=rebuild(path))
    return clips


# --------------------------------------------------------------------------------------------------------- replacing


def foreign_files(path: Path) -> list[str]:
    """Return the files in the folder of a local cache that are no part of any cache, as paths below it, sorted."""
    found = ((Path(folder).relative_to(path) / name).as_posix() for folder, _, files in os.walk(path) for name in files)
    return sorted(name for name in found if not _PART_OF_A_CACHE.fullmatch(name) and not is_leftover(name.rpartition("/")[2]))


def replace_cache(old: Path, new: Path) -> str | None:
    """Put a finished cache in the place of another and remove that one; a kill at any time loses neither, and calling again resumes.

    Args:
        old: The cache to replace, a real folder (no symbolic link); it is gone if a kill stopped an earlier call.
        new: The cache that takes its place, on the same file system.

    Returns:
        None, or a clause that says which folder could not be removed entirely and why.

    Raises:
        StjepaError: The folders cannot be renamed; both are as they were.
    """
    with storage_errors(old):
        gone = Path(tempfile.mkdtemp(prefix=f".{old.name}.replaced.", dir=old.parent))
        if old.exists():
            old.rename(gone)  # a folder may take the name of an empty one
        try:
            new.rename(old)
        except OSError:
            gone.rename(old)
            raise
        sync(old.parent)
    for place in sorted(old.parent.glob(f".{glob.escape(old.name)}.replaced.*")):  # of this call, and of one that was killed
        try:
            if not foreign_files(place):
                shutil.rmtree(place)
        except OSError as error:
            return f"the old cache is in {place} and could not be removed entirely ({error.strerror})"
    return None


def remove_remote_cache(path: Location) -> None:
    """Delete a cache in an object store, after making sure that it is one; its header goes first.

    Raises:
        CacheError: There is no cache.
        StjepaError: The server refuses.
    """
    read_header(path)
    if is_local(path):
        raise ValueError(f"{path} is not remote: replace it instead")
    with storage_errors(path), driver_errors():
        (path / "zarr.json").unlink()
        path.fs.rm(path.path, recursive=True)
