"""Writing one shard so that nothing reported as written is ever lost: append, sync, journal, publish, mark.

```text
work/<s>/latents      chunk, crc32c, chunk, crc32c, ...          synced after every batch
work/<s>/journal      what is in them, one line a batch           synced after the data
   when all rows are there: index, sync, rename to the shard's place, sync of the folder, mark, work/<s> removed
```
A line of the journal is a JSON list of row records, a tab, and its crc32c. A writer that finds a journal keeps the batches
whose line and data are whole and cuts off the rest, so that a kill or a power cut at any instant loses at most the batch
under way. The journal goes last: whoever is killed between two renames, or before the mark, finds all of it again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stjepa_cli.core.errors import storage_errors
from stjepa_cli.core.files import sync
from stjepa_cli.store.records import RowRecord, ShardManifest, row_from_json, row_to_json
from stjepa_cli.store.shard_format import CRC_BYTES, Chunk, checksum, sealed

JOURNAL = "journal"


@dataclass(frozen=True)
class NewRow:
    """A row to be written: its record without chunks, and its bytes by column (none where the record has an error)."""

    record: RowRecord
    data: dict[str, bytes]


class ShardWriter:
    """One shard on its way, in a folder of its own; opening it goes on where an earlier writer stopped.

    Args:
        folder: `work/<s>`.
        cache: digest of the cache's header: a journal of another cache is dropped.
        shard: its number.
        columns: names of the arrays.
        published: where the files of the columns go, for finding those that were moved there already; None where they are
            not moved (an object store).

    Attributes:
        rows: the records that are safe, in order.
    """

    def __init__(self, folder: Path, cache: str, shard: int, columns: Sequence[str], published: dict[str, Path] | None) -> None:
        self.folder, self.cache, self.shard, self.columns = folder, cache, shard, tuple(columns)
        self.rows: list[RowRecord] = []
        self._sizes = dict.fromkeys((*self.columns, JOURNAL), 0)
        self._files: dict[str, int] = {}
        with storage_errors(folder):
            self._take_back(published or {})
            folder.mkdir(parents=True, exist_ok=True)
            try:
                for name in self._sizes:
                    self._files[name] = _open(folder / name)
                self._resume()
                self._cut()
                os.fdatasync(self._files[JOURNAL])  # a line that was read may not have reached the disk before a kill
                sync(folder)
                sync(folder.parent)
            except BaseException:
                self.close()
                raise

    def append(self, batch: Sequence[NewRow]) -> None:
        """Add rows; when this returns they survive a kill and a power cut.

        Raises:
            StjepaError: the disk is full; what was safe before is still safe, and rows can be added again.
        """
        done: list[RowRecord] = []
        for row in batch:
            chunks = {name: Chunk(len(row.data[name]), checksum(row.data[name])) for name in row.data}
            done.append(replace(row.record, chunks=chunks))
        line = _line(self.cache, self.shard, done)
        with storage_errors(self.folder):
            try:
                for name in self.columns:
                    _append(self._files[name], (sealed(row.data[name]) for row in batch if name in row.data))
                for name in self.columns:
                    os.fdatasync(self._files[name])
                _append(self._files[JOURNAL], [line])
                os.fdatasync(self._files[JOURNAL])
            except BaseException:
                self._cut()
                raise
        self._take(done, len(line))

    def finish(self, places: int) -> tuple[ShardManifest, dict[str, Path]]:
        """Add the indexes and sync; returns the mark and the finished file of each column."""
        mark = ShardManifest(self.cache, self.shard, tuple(self.rows))
        with storage_errors(self.folder):
            for name in self.columns:
                os.ftruncate(self._files[name], self._sizes[name])
                os.lseek(self._files[name], 0, os.SEEK_END)
                _append(self._files[name], [mark.index(name, places)])
                os.fsync(self._files[name])
        self.close()
        return mark, {name: self.folder / name for name in self.columns}

    def drop(self) -> None:
        """Remove the folder, when the mark is safe or nothing of it is wanted."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Close the files; what is safe stays."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def _take(self, records: Sequence[RowRecord], journal: int) -> None:
        """Count records as safe, whose line of the journal has so many bytes."""
        self.rows += records
        self._sizes[JOURNAL] += journal
        for record in records:
            for name, chunk in record.chunks.items():
                self._sizes[name] += chunk.length + CRC_BYTES

    def _take_back(self, published: dict[str, Path]) -> None:
        """Bring back files that were published before the mark was written."""
        if not (self.folder / JOURNAL).is_file():
            return
        for name, path in published.items():
            if path.is_file() and not (self.folder / name).exists():
                path.replace(self.folder / name)

    def _resume(self) -> None:
        """Take in the batches that are whole."""
        journal = (self.folder / JOURNAL).read_bytes()
        for line in journal.splitlines(keepends=True):
            batch = _batch(line, self.cache, self.shard)
            if batch is None or not all(self._holds(name, batch) for name in self.columns):
                break
            self._take(batch, len(line))

    def _holds(self, name: str, batch: Sequence[RowRecord]) -> bool:
        """Whether the data of a batch lie whole where they should."""
        offset = self._sizes[name]
        for record in batch:
            chunk = record.chunks.get(name)
            if chunk is None:
                continue
            found = os.pread(self._files[name], chunk.length + CRC_BYTES, offset)
            if found[chunk.length :] != chunk.crc.to_bytes(CRC_BYTES, "little") or checksum(found[: chunk.length]) != chunk.crc:
                return False
            offset += chunk.length + CRC_BYTES
        return True

    def _cut(self) -> None:
        """Drop everything behind what is safe."""
        for name, size in self._sizes.items():
            os.ftruncate(self._files[name], size)
            os.lseek(self._files[name], 0, os.SEEK_END)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _append(descriptor: int, parts: Iterable[bytes]) -> None:
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


def _line(cache: str, shard: int, records: Sequence[RowRecord]) -> bytes:
    text = json.dumps([cache, shard, [row_to_json(record) for record in records]], separators=(",", ":")).encode()
    return text + f"\t{checksum(text):08x}\n".encode()


def _batch(line: bytes, cache: str, shard: int) -> list[RowRecord] | None:
    """The records in a line of the journal; None if it is torn, or of another cache or shard."""
    text, _, crc = line.rpartition(b"\t")
    if crc != f"{checksum(text):08x}\n".encode():
        return None
    found = json.loads(text)
    return [row_from_json(row) for row in found[2]] if found[:2] == [cache, shard] else None
