"""Atomic and durable files: a file is written whole, or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stjepa_cli.core.errors import CheckpointError, ConfigError, StjepaError, UnreadableError, storage_errors
from stjepa_cli.core.locations import Location, RemoteFile, driver_errors, is_local

_UNLOCKED_GRACE_SECONDS = 24 * 3600


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; if the block succeeds, sync that file and rename it to `path`.

    The file gets the permissions that the umask asks for, whatever the writer in the block gives it. Its writer holds a lock on it, so
    that `remove_leftovers` can tell a file in use from one whose writer was killed.

    Raises:
        StjepaError: The disk is full, read-only or forbidden.
    """
    part = _temporary(path)
    descriptor = None
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            mode = os.fstat(descriptor).st_mode & 0o777
            _lock(descriptor)
            yield part
            part.chmod(mode)
            sync(part)
            part.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # do not hide an error of the block
            part.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; if the block succeeds, it becomes `path`, otherwise it is removed.

    Raises:
        ConfigError: `path` exists and is not an empty folder.
        StjepaError: The disk is full, read-only or forbidden.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"{path} already exists", expected="an empty folder, or none", fix="Choose another one, or remove it yourself.")
    target = path.absolute()
    part = _temporary(target)
    descriptor = None
    try:
        with storage_errors(path):
            part.mkdir(parents=True)
            descriptor = os.open(part, os.O_RDONLY)
            _lock(descriptor)
            yield part
            for entry in [*part.iterdir(), part]:
                sync(entry)
            part.replace(target)
            sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def is_leftover(name: str) -> bool:
    """Return True if `replacing` and `new_folder` give temporary files such a name, or did so in earlier versions."""
    return re.fullmatch(r"\..+\.(\d+|stjepa-[0-9a-f]{8})", name) is not None


def leftovers(folder: Path) -> list[Path]:
    """List temporary files in a folder and below it, of writers that are still at work or were killed."""
    return [path for path in folder.rglob(".*") if is_leftover(path.name) and path.is_file()]


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files and folders directly in `folder` whose writers were killed; returns those that were removed.

    Files of writers that are still at work hold a lock and stay. Files of earlier versions, which took no lock, stay for a day.
    """
    removed = []
    with suppress(OSError):  # cleaning up is no reason to fail
        for path in [path for path in folder.iterdir() if is_leftover(path.name)]:
            if _is_abandoned(path):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _temporary(path: Path) -> Path:
    """Return an unused hidden name beside `path`; random, since processes in containers share process ids and host names."""
    stem = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{stem}.stjepa-{secrets.token_hex(4)}")


def _lock(descriptor: int) -> bool:
    """Take an exclusive lock that the kernel releases when the process ends; False if it is taken or the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_abandoned(path: Path) -> bool:
    if path.name.rpartition(".")[2].isdecimal() and time.time() - path.lstat().st_mtime < _UNLOCKED_GRACE_SECONDS:
        return False
    try:
        descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Location, data: bytes) -> None:
    """Write a file, whole or not at all; to a URL as a single put, which object stores make atomic.

    Raises:
        StjepaError: The disk is full, read-only or forbidden; the bucket does not exist, or its server refuses.
    """
    if is_local(path):
        with replacing(path) as part:
            part.write_bytes(data)
        return
    try:
        with driver_errors():
            path.write_bytes(data)  # no folders are created: object stores need none, and drivers would create a misspelt bucket
    except OSError as error:
        raise StjepaError(f"cannot write {path}", got=error, fix="Check the address and the credentials of its server.") from error


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Location) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") if is_local(path) else RemoteFile(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------- checksums

SUMS = "SHA256SUMS"
_EXPORT_AGAIN = "Export it again, or copy it again."


def write_sums(folder: Path) -> None:
    """Write the sha256 of every file in a folder to `SHA256SUMS`, in the form that `sha256sum --check` reads.

    Raises:
        StjepaError: The disk is full, read-only or forbidden.
    """
    lines = [f"{file_digest(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS]
    write_atomic(folder / SUMS, "".join(lines).encode())


def check_sums(folder: Path) -> None:
    """Check the files in a folder against its `SHA256SUMS`; a folder without one, of an earlier version, is not checked.

    Raises:
        CheckpointError: A file is missing or damaged, or the list is.
        UnreadableError: A file cannot be read.
    """
    try:
        for line in (folder / SUMS).read_text().splitlines():
            known, _, name = line.partition("  ")
            if not re.fullmatch(r"[0-9a-f]{64}", known) or "/" in name or not (folder / name).is_file():
                raise CheckpointError(f"{folder / SUMS} is damaged, or a file is missing", got=line[:200], fix=_EXPORT_AGAIN)
            if file_digest(folder / name) != known:
                raise CheckpointError(f"{folder / name} is damaged: it is not the file that was written", fix=_EXPORT_AGAIN)
    except FileNotFoundError:
        return
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / SUMS} is damaged", got=error, fix=_EXPORT_AGAIN) from error
    except OSError as error:
        raise UnreadableError(f"{folder} cannot be checked", got=error, fix="Check its permissions and its disk.") from error
