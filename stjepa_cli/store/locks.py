"""Locks on shards of a cache: ranges of a lock file that the kernel releases when their holder ends, however it ends.

```text
lock file   | holder of shard 0 | holder of shard 1 | ...      SLOT bytes of text each
```
A range of shards is held by locking its range of bytes with an open-file-description lock, which excludes threads and
processes alike, and other machines where the file system supports it. The holder writes its name into the first slot of its
range, so that an error can say who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from stjepa_cli.core.errors import CacheError, storage_errors

SLOT = 128
CREATION = 2**40
"""Number of a pseudo-shard; its holder creates the cache."""
WRITING = 2**41
"""Offset of a second lock per shard, held while rows are appended to it."""

_FLOCK = "hhqqi4x"  # struct flock of Linux on 64-bit machines
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def holding(file: Path, numbers: range, what: str, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold a range of shards while the block runs.

    Args:
        file: The lock file, created if it does not exist.
        numbers: Shards, or CREATION, or WRITING + shard.
        what: Name of what is held, for the error message.
        wait_s: Seconds to wait for another holder.

    Yields:
        True, or False where the file system has no locks.

    Raises:
        CacheError: Another process or thread holds a part of the range; the message says which.
    """
    if not numbers:
        yield True
        return
    descriptor, locked = _acquire(file, numbers, what, wait_s)
    try:
        if locked:
            _sign(descriptor, numbers)
        yield locked
    finally:
        if locked and numbers.start < CREATION:
            _write(descriptor, b"", numbers)
        os.close(descriptor)


def is_held(file: Path, numbers: range) -> bool:
    """Return whether a part of a range of shards is held; where the file system has no locks, whether the file is there."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, numbers))
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _acquire(file: Path, numbers: range, what: str, wait_s: float) -> tuple[int, bool]:
    deadline = time.monotonic() + wait_s
    while True:
        with storage_errors(file):
            descriptor = _open(file)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK, numbers))
            if _is_same(descriptor, file):
                return descriptor, True
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor, False
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                raise
            if time.monotonic() >= deadline:
                holder = _holder(descriptor, numbers)
                os.close(descriptor)
                fix = "Wait for it, or give each process its own --part."
                raise CacheError(f"another build holds {what}", got=holder, fix=fix) from None
            time.sleep(0.1)
        os.close(descriptor)


def _open(file: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT
    for _ in range(3):
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a process that finished the cache may have just removed the folder
            return os.open(file, flags, 0o666)
    return os.open(file, flags, 0o666)


def _is_same(descriptor: int, file: Path) -> bool:
    """Return whether the locked file is still the one that others open: finishing a cache removes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _range(kind: int, numbers: range) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, numbers.start * SLOT, len(numbers) * SLOT, 0)


def _sign(descriptor: int, numbers: range) -> None:
    """Write the holder of a range into the file; numbers past all shards stay unsigned, to keep the file small."""
    if numbers.start < CREATION:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        text = f"process {os.getpid()} on {socket.gethostname()[:60]}, since {now}"
        _write(descriptor, text.encode(), numbers)


def _write(descriptor: int, text: bytes, numbers: range) -> None:
    with suppress(OSError):  # on a full disk the lock works without a name
        os.pwrite(descriptor, text[:SLOT].ljust(SLOT, b"\0"), numbers.start * SLOT)


def _holder(descriptor: int, numbers: range) -> str:
    """Return who holds a part of a range, as far as is known."""
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, numbers))
    kind, _, start, _, _ = struct.unpack(_FLOCK, found)
    if kind == fcntl.F_UNLCK or start >= CREATION * SLOT:
        return "a process that is running now"
    text = os.pread(descriptor, SLOT, start).rstrip(b"\0").decode(errors="replace")
    return text or "a process that is running now"
