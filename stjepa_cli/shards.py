"""The bytes of a Zarr v3 shard whose chunks are rows: written and read directly, checksummed. The one user of crc32c.

```text
row 0, crc32c | row 1, crc32c | ...  | (offset, length) of each place as uint64 | crc32c of that index
```
A row that does not exist takes no room; its place in the index holds 2^64 - 1 twice. zarr writes the very same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

ABSENT = 2**64 - 1
CRC_BYTES = 4

Latents = npt.NDArray[np.float16]


def checksum(data: bytes | npt.NDArray[Any]) -> int:
    """crc32c of bytes or of an array's bytes."""
    return int(google_crc32c.value(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()))


@dataclass(frozen=True)
class ShardLayout:
    """How rows lie in a shard.

    Attributes:
        num_places: rows that a full shard has.
        row_shape: (N, D) of a float16 row.
    """

    num_places: int
    row_shape: tuple[int, int]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row without its checksum."""
        return self.row_shape[0] * self.row_shape[1] * 2

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a row with its checksum."""
        return self.row_bytes + CRC_BYTES

    def index(self, held: Sequence[bool]) -> bytes:
        """The index, with its checksum, of a shard in which the places that are true in `held` follow each other."""
        table = np.full((self.num_places, 2), ABSENT, "<u8")
        for number, place in enumerate(place for place, here in enumerate(held) if here):
            table[place] = number * self.chunk_bytes, self.chunk_bytes
        return table.tobytes() + checksum(table).to_bytes(CRC_BYTES, "little")

    def pack(self, rows: Sequence[Latents | None]) -> tuple[bytes, list[int]]:
        """A whole shard and the checksum of each row (0 for one that does not exist)."""
        parts: list[bytes] = []
        crcs = [0] * len(rows)
        for place, row in enumerate(rows):
            if row is None:
                continue
            if row.shape != self.row_shape or row.dtype != np.float16:
                raise ValueError(f"a row is float16 {self.row_shape}, got {row.dtype} {row.shape}")
            data = row.tobytes()
            crcs[place] = checksum(data)
            parts += [data, crcs[place].to_bytes(CRC_BYTES, "little")]
        return b"".join([*parts, self.index([row is not None for row in rows])]), crcs

    def has_index(self, path: Path, held: Sequence[bool]) -> bool:
        """Whether a file has exactly the size and the index of a shard that holds these places."""
        expected = self.index(held)
        if path.stat().st_size != sum(held) * self.chunk_bytes + len(expected):
            return False
        with path.open("rb") as file:
            file.seek(-len(expected), os.SEEK_END)
            return file.read() == expected

    def read_row(self, descriptor: int, number: int, crc: int, into: Latents) -> str | None:
        """Fill `into` with the `number`-th row that a shard holds.

        Args:
            descriptor: of the open shard file.
            number: place among the rows that exist.
            crc: the checksum that the row must have.
            into: C-contiguous float16 (N, D).

        Returns:
            None, or what is wrong as a clause.
        """
        stored = bytearray(CRC_BYTES)
        if os.preadv(descriptor, [into.view(np.uint8).reshape(-1).data, stored], number * self.chunk_bytes) != self.chunk_bytes:
            return "is cut short"
        found = checksum(into)
        if found != int.from_bytes(stored, "little"):
            return "is corrupt: its checksum does not match"
        return None if found == crc else "holds the latents of something else: its mark names another checksum"
