"""The bytes of a Zarr v3 shard whose chunks are rows, written and read directly and checksummed. The one user of crc32c.

```text
chunk, crc32c | chunk, crc32c | ...  | (offset, length) of each place as uint64 | crc32c of that index
```
A missing row takes no room; its place in the index holds 2^64 - 1 twice. zarr writes the very same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt

from stjepa_cli.store.records import CRC_BYTES, Chunk, index_size

ABSENT = 2**64 - 1
PAGE = 4096

Latents = npt.NDArray[np.float16]
Bytes = npt.NDArray[np.uint8]


def checksum(data: bytes | memoryview | npt.NDArray[Any], start: int = 0) -> int:
    """Return the crc32c of bytes or of the bytes of a contiguous array, continuing from `start`; other threads run meanwhile."""
    view = data if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return int(crc32c.crc32c(view, start))


def sealed(data: bytes) -> bytes:
    """Return a chunk as it is stored: its bytes followed by their checksum."""
    return data + checksum(data).to_bytes(CRC_BYTES, "little")


def index_bytes(lengths: Sequence[int | None], num_places: int) -> bytes:
    """Return the index, with its checksum, of a shard whose chunks follow each other.

    Args:
        lengths: Length of the chunk at each place without its checksum, None where there is no chunk.
        num_places: Number of chunks in a full shard.
    """
    table = np.full((num_places, 2), ABSENT, "<u8")
    offset = 0
    for place, length in enumerate(lengths):
        if length is not None:
            table[place] = offset, length + CRC_BYTES
            offset += length + CRC_BYTES
    return sealed(table.tobytes())


def shape_fault(path: Path, lengths: Sequence[int | None], num_places: int) -> str | None:
    """Compare the size and the index of a file with those of a shard of these chunks; return what is wrong as a clause, or None."""
    expected = index_bytes(lengths, num_places)
    size, found = sum(length + CRC_BYTES for length in lengths if length is not None) + len(expected), path.stat().st_size
    if found != size:
        return f"is {'cut short' if found < size else 'too long'}: {found:,} bytes, its manifest says {size:,}"
    with path.open("rb") as file:
        file.seek(-len(expected), os.SEEK_END)
        return None if file.read() == expected else "has a damaged index"


def is_whole(path: Path, num_places: int) -> bool:
    """Return whether a file is a shard of some `num_places` rows: its index is intact and agrees with its size."""
    tail = index_size(num_places)
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
    """Return the checksum that a shard holds for a chunk at `offset`, or None if the file ends before it."""
    found = os.pread(descriptor, CRC_BYTES, offset + chunk.length)
    return int.from_bytes(found, "little") if len(found) == CRC_BYTES else None


def read_chunk(descriptor: int, offset: int, chunk: Chunk, into: Bytes) -> str | None:
    """Fill `into` with a chunk and check it.

    One thread reads all of it: two threads that share a row of 1.2 MB were slower (measured), because waking one takes too
    long.

    Args:
        descriptor: Descriptor of the open shard file.
        offset: Offset of the chunk in the file.
        chunk: Length and checksum that the chunk must have.
        into: Buffer to fill, contiguous uint8 (chunk.length,).

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


FOREIGN = "holds something else: its checksum is right but not the one that its manifest names"


def _fill(descriptor: int, offset: int, parts: list[memoryview]) -> bool:
    """Fill buffers one after the other from a file; return False if the file ends too early."""
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
    """Return an uninitialised array that starts in the middle of a page.

    Where the kernel copies with REP MOVSB, a target that lies 1 to 63 bytes behind its source modulo the page size is
    filled four times slower on some processors (measured; glibc bug 30994). Large arrays begin 16 or 64 bytes into a page
    and chunks at its start, so plain `np.empty` often runs into this.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 2 * PAGE, np.uint8)
    start = (PAGE // 2 - raw.ctypes.data) % PAGE
    return raw[start : start + size].view(dtype).reshape(shape)
