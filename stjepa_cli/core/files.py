"""Files that are either there, whole and durable, or not there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stjepa_cli.core.errors import StjepaError, storage_errors
from stjepa_cli.core.locations import Location, RemoteFile, driver_errors, is_local


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; when the block ends well, sync it and rename it to `path`.

    Raises:
        StjepaError: the disk is full, read-only or forbidden.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            sync(part)
            part.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # never hide what went wrong above
            part.unlink(missing_ok=True)


def is_leftover(name: str) -> bool:
    """Whether `replacing` gives temporary files such names."""
    return re.fullmatch(r"\..+\.\d+", name) is not None


def leftovers(folder: Path) -> list[Path]:
    """Temporary files in a folder and below: of writers that are at work, or were killed."""
    return [path for path in folder.rglob(".*") if is_leftover(path.name) and path.is_file()]


def write_atomic(path: Location, data: bytes) -> None:
    """Write a whole file at once; to a URL in one put, which object stores make whole or not at all.

    Raises:
        StjepaError: the disk is full, read-only or forbidden; there is no such bucket, or its server refuses.
    """
    if is_local(path):
        with replacing(path) as part:
            part.write_bytes(data)
        return
    try:
        with driver_errors():
            path.write_bytes(data)  # its folders are not made: they need not be, and drivers would make a misspelt bucket
    except OSError as error:
        raise StjepaError(f"cannot write {path}", got=error, fix="Check the address and the credentials of its server.") from error


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Location) -> str:
    """sha256 of a file, 64 hex digits."""
    with path.open("rb") if is_local(path) else RemoteFile(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
