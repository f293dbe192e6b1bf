"""Locations of data: local paths and fsspec URLs (`s3://bucket/folder`, `memory://`). The only module that uses upath.

A local location is a `pathlib.Path`; a remote one is a `UPath`, which has the methods of a `Path` without being one. Pass text to
`location` and not to `Path`: `Path("s3://bucket")` is `s3:/bucket`.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stjepa_cli.core.errors import ConfigError, NotReadyError, how_to_install

if TYPE_CHECKING:
    from typing import TypeAlias

    from _typeshed import WriteableBuffer
    from typing_extensions import TypeIs
    from upath import UPath

    Location: TypeAlias = Path | UPath
else:

    class Location:
        """`Path | UPath` for type checkers; at run time only the name that annotations resolve to."""


_URL = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)
_LOCAL_URL = re.compile(r"(file|local)://", re.IGNORECASE)
_DRIVERS = {
    **dict.fromkeys(("gs", "gcs"), ("gcsfs",)),
    **dict.fromkeys(("http", "https"), ("aiohttp", "requests")),
    **dict.fromkeys(("az", "abfs", "abfss"), ("adlfs",)),
}
_EXTRAS = {"s3": "s3", "s3a": "s3"}


def location(place: str | Location) -> Location:
    """Turn text into a location: a `Path` for text without a protocol and `file://` URLs, a `UPath` for other URLs.

    Raises:
        ConfigError: The protocol is unknown.
        NotReadyError: The driver of the protocol is not installed, or its server does not answer.
    """
    if not isinstance(place, str):
        return place
    if prefix := _LOCAL_URL.match(place):
        return Path(place[prefix.end() :])
    return _remote(place) if _URL.match(place) else Path(place)


def _remote(url: str) -> UPath:
    from upath import UPath

    protocol = url.partition(":")[0].lower()
    try:
        place = UPath(url)
        with driver_errors():
            _ = place.fs  # this imports the driver
    except ImportError as error:
        fix = f"Install the package that gives fsspec the protocol {protocol}."
        if protocol in _DRIVERS or protocol in _EXTRAS:
            fix = how_to_install(*_DRIVERS.get(protocol, ()), extra=_EXTRAS.get(protocol))
        raise NotReadyError(f"no driver for {protocol}:// is installed, which {url} needs", fix=fix) from error
    except ValueError as error:
        expected = "a path, or a URL with a protocol of fsspec, such as s3://bucket/folder"
        raise ConfigError("unknown protocol", got=url, expected=expected) from error
    except OSError as error:
        raise NotReadyError(f"{url} cannot be reached", got=error) from error
    return place


def is_local(place: Location) -> TypeIs[Path]:
    """Return True if a location is a path on this machine and not a URL."""
    return isinstance(place, Path)


def is_location(value: object) -> TypeIs[Location]:
    """Return True if a value is a `Path` or a `UPath`, and not text."""
    upath = sys.modules.get("upath")  # if it is not imported, there is no UPath
    return isinstance(value, Path) or (upath is not None and isinstance(value, upath.UPath))


def absolute(place: Location) -> Location:
    """Return the location as an absolute path; URLs stay as they are."""
    return place.absolute() if is_local(place) else place


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn a driver's own exceptions, for missing credentials or a lost connection, into an `OSError`."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


# ----------------------------------------------------------------------------------------------------------- folders


def is_folder(place: Location) -> bool:
    """Return True if a folder exists; False if a parent folder forbids looking.

    Raises:
        OSError: The server does not answer.
    """
    if is_local(place):
        return os.path.isdir(place)
    with driver_errors():
        return place.is_dir()


def names(folder: Location) -> Iterator[str]:
    """Yield the names of the entries of a folder, in no particular order.

    Raises:
        OSError: The folder does not exist or cannot be read.
    """
    if is_local(folder):
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    else:
        yield from (name for name, _ in _listing(folder))


def file_sizes(folder: Location, wanted: Container[str]) -> Iterator[tuple[str, int]]:
    """Yield name and size in bytes of the `wanted` files in a folder, with a single request to a remote one.

    Raises:
        OSError: The folder does not exist or cannot be read.
    """
    if is_local(folder):
        with os.scandir(folder) as entries:
            yield from ((entry.name, entry.stat().st_size) for entry in entries if entry.name in wanted and entry.is_file())
        return
    for name, entry in _listing(folder):
        if entry["type"] == "file" and name in wanted:
            with driver_errors():  # web servers list names without sizes
                yield name, folder.fs.size(entry["name"]) if entry["size"] is None else entry["size"]


def remote_version(place: UPath) -> str:
    """Return what a server says of a file that changes when the file does: its size, and its tag or time of writing.

    Raises:
        OSError: The file does not exist, or the server does not answer.
    """
    with driver_errors():
        found = place.fs.info(place.path)
    tags = ("ETag", "etag", "md5Hash", "md5", "crc32c", "content_settings", "LastModified", "last_modified", "updated", "mtime", "created")
    return " ".join(str(found[name]) for name in ("size", *tags) if found.get(name) is not None)


def total_bytes(place: Location) -> int:
    """Return the total size in bytes of all files below a folder, 0 if it does not exist.

    Raises:
        OSError: The folder cannot be read.
    """
    if is_local(place):
        return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    with driver_errors():
        return int(place.fs.du(place.path)) if place.exists() else 0


def _listing(folder: UPath) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and fsspec record of each entry of a remote folder."""
    with driver_errors():
        entries = folder.fs.ls(folder.path, detail=True)
    for entry in entries:
        if entry["name"].strip("/") != folder.path.strip("/"):
            yield entry["name"].rstrip("/").rpartition("/")[2], entry
        elif entry["type"] == "file" and not entry["name"].endswith("/"):  # object stores mark a folder by such a name
            raise NotADirectoryError(f"{folder} is a file")


# ------------------------------------------------------------------------------------------------------------- files


class RemoteFile(io.RawIOBase):
    """A remote file that can be read and seeked without a local copy.

    Args:
        place: Location of the file.
        block_bytes: Bytes per request, or None for the driver's own number.

    Raises:
        OSError: The file does not exist or cannot be read, on opening or at any later call.
    """

    def __init__(self, place: UPath, block_bytes: int | None = None) -> None:
        options: dict[str, Any] = {"block_size": block_bytes} if block_bytes else {}
        with driver_errors():
            self._file: Any = place.open("rb", **options)

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        with driver_errors():
            data: bytes = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with driver_errors():
            position: int = self._file.seek(offset, whence)
        return position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()
