"""The bytes of a Zarr v3 shard whose chunks are rows: written and read directly, checksummed. The one user of crc32c.

```text
chunk, crc32c | chunk, crc32c | ...  | (offset, length) of each place as uint64 | crc32c of that index
```
A row that does not exist takes no room; its place in the index holds 2^64 - 1 twice. zarr writes the very same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import crc32c
import numpy as np
import numpy.typing as npt

ABSENT = 2**64 - 1
CRC_BYTES = 4
PAGE = 4096

Latents = npt.NDArray[np.float16]
Bytes = npt.NDArray[np.uint8]


class Chunk(NamedTuple):
    """One stored chunk: its bytes without the checksum that follows them, and that checksum."""

    length: int
    crc: int


def checksum(data: bytes | memoryview | npt.NDArray[Any], start: int = 0) -> int:
    """crc32c of bytes or of a contiguous array's bytes, going on from `start`; other threads run meanwhile."""
    view = data if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return int(crc32c.crc32c(view, start))


def sealed(data: bytes) -> bytes:
    """A chunk as it is stored: its bytes and their checksum."""
    return data + checksum(data).to_bytes(CRC_BYTES, "little")


def index_bytes(lengths: Sequence[int | None], num_places: int) -> bytes:
    """The index, with its checksum, of a shard whose chunks follow each other.

    Args:
        lengths: of each place's chunk without its checksum, None where there is none.
        num_places: chunks that a full shard has.
    """
    table = np.full((num_places, 2), ABSENT, "<u8")
    offset = 0
    for place, length in enumerate(lengths):
        if length is not None:
            table[place] = offset, length + CRC_BYTES
            offset += length + CRC_BYTES
    return sealed(table.tobytes())


def shape_fault(path: Path, lengths: Sequence[int | None], num_places: int) -> str | None:
    """What is wrong with the size or the index of a file that should be a shard of these chunks, as a clause."""
    expected = index_bytes(lengths, num_places)
    size, found = sum(length + CRC_BYTES for length in lengths if length is not None) + len(expected), path.stat().st_size
    if found != size:
        return f"is {'cut short' if found < size else 'too long'}: {found:,} bytes, its mark says {size:,}"
    with path.open("rb") as file:
        file.seek(-len(expected), os.SEEK_END)
        return None if file.read() == expected else "has a damaged index"


def is_whole(path: Path, num_places: int) -> bool:
    """Whether a file is a shard of some `num_places` rows: its index is intact and tells its size."""
    tail = 16 * num_places + CRC_BYTES
    size = path.stat().st_size
    if size < tail:
        return False
    with path.open("rb") as file:
        file.seek(-tail, os.SEEK_END)
        data = file.read()
    if sealed(data[:-CRC_BYTES]) != data:
        return False
    table = np.frombuffer(data[:-CRC_BYTES], "<u8").reshape(-1, 2)
    return int(table[table[:, 1] != ABSENT, 1].sum()) + tail == size


def stored_crc(descriptor: int, offset: int, chunk: Chunk) -> int | None:
    """The checksum that a shard holds for a chunk at `offset`; None if the file ends before it."""
    found = os.pread(descriptor, CRC_BYTES, offset + chunk.length)
    return int.from_bytes(found, "little") if len(found) == CRC_BYTES else None


def read_chunk(descriptor: int, offset: int, chunk: Chunk, into: Bytes) -> str | None:
    """Fill `into` with a chunk and check it.

    One thread reads all of it: two threads that share a row of 1.2 MB were slower (measured), waking one takes too long.

    Args:
        descriptor: of the open shard file.
        offset: of the chunk in it.
        chunk: what must be there.
        into: uint8 (chunk.length,), contiguous.

    Returns:
        None, or what is wrong as a clause.
    """
    stored = bytearray(CRC_BYTES)
    if not _fill(descriptor, offset, [into.data, memoryview(stored)]):
        return "is cut short"
    found = checksum(into)
    if found != int.from_bytes(stored, "little"):
        return "is corrupt: its checksum does not match"
    return None if found == chunk.crc else FOREIGN


FOREIGN = "holds something else: its checksum is right but not the one that its mark names"


def _fill(descriptor: int, offset: int, parts: list[memoryview]) -> bool:
    """Fill buffers one after the other from a file; False if it ends before."""
    while parts:
        count = os.preadv(descriptor, parts, offset)
        if count == 0:
            return False
        offset += count
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if count:
            parts[0] = parts[0][count:]
    return True


def roomy(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An empty array that starts in the middle of a page.

    Where the kernel copies with REP MOVSB, a target that lies 1 to 63 bytes behind its source modulo the page size is
    filled four times slower on some processors (measured; glibc bug 30994). Large arrays begin 16 or 64 bytes into a page
    and chunks at its start, so plain `np.empty` often meets it.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 2 * PAGE, np.uint8)
    start = (PAGE // 2 - raw.ctypes.data) % PAGE
    return raw[start : start + size].view(dtype).reshape(shape)
