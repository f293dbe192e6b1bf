"""Who writes which shards of a cache: ranges of a lock file, released by the kernel when their holder ends, however it ends.

```text
lock file   | who holds shard 0 | who holds shard 1 | ...      SLOT bytes of text each
```
The range of bytes that belongs to a range of shards is locked (an open-file-description lock: it excludes threads and
processes alike, and works between machines where the file system carries locks). The holder writes its name into the
first slot of its range, so that whoever finds the range taken can say by whom.
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
"""The pseudo-shard whose holder creates the cache."""
WRITING = 2**41
"""Added to a shard's number: whoever holds it appends to that shard now."""

_FLOCK = "hhqqi4x"  # struct flock of Linux on 64-bit machines
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def holding(file: Path, numbers: range, what: str, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold a range of shards while the block runs.

    Args:
        file: the lock file; made if it is not there.
        numbers: shards, or CREATION or WRITING + shard.
        what: what is held, for the error.
        wait_s: wait so long for another holder.

    Yields:
        Whether there is a lock: False where the file system has none.

    Raises:
        CacheError: someone else holds a part of the range; says who.
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
        with suppress(FileNotFoundError):  # whoever finished the cache has just removed the folder
            return os.open(file, flags, 0o666)
    return os.open(file, flags, 0o666)


def _is_same(descriptor: int, file: Path) -> bool:
    """Whether the locked file is still the one that others open: it is removed when a cache is finished."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _range(kind: int, numbers: range) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, numbers.start * SLOT, len(numbers) * SLOT, 0)


def _sign(descriptor: int, numbers: range) -> None:
    """Say who holds a range; what is past every shard stays unsigned, to keep the file small."""
    if numbers.start < CREATION:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        text = f"process {os.getpid()} on {socket.gethostname()[:60]}, since {now}"
        _write(descriptor, text.encode(), numbers)


def _write(descriptor: int, text: bytes, numbers: range) -> None:
    with suppress(OSError):  # on a full disk the lock holds without a name
        os.pwrite(descriptor, text[:SLOT].ljust(SLOT, b"\0"), numbers.start * SLOT)


def _holder(descriptor: int, numbers: range) -> str:
    """Who holds a part of a range, as far as it can be told."""
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, numbers))
    kind, _, start, _, _ = struct.unpack(_FLOCK, found)
    if kind == fcntl.F_UNLCK or start >= CREATION * SLOT:
        return "a process that is at work now"
    text = os.pread(descriptor, SLOT, start).rstrip(b"\0").decode(errors="replace")
    return text or "a process that is at work now"
