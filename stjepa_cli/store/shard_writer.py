"""Writes one shard so that nothing reported as written is ever lost: append, sync, journal, publish, manifest.

```text
work/<s>/latents      chunk, crc32c, chunk, crc32c, ...          synced after every batch
work/<s>/journal      the records of their rows, one line a batch  synced after the data
   when all rows are there: index, sync, rename to the shard's place, sync of the folder, manifest, work/<s> removed
```
A line of the journal is a JSON list of row records, a tab, and its crc32c. A writer that finds a journal keeps the batches
whose line and data are intact and cuts off the rest, so that a kill or a power cut at any instant loses at most the batch in
progress. The journal is removed last: after a kill between two renames, or before the manifest, nothing has to be redone.
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
from stjepa_cli.store.records import CRC_BYTES, Chunk, RowRecord, ShardManifest, row_from_json, row_to_json
from stjepa_cli.store.shard_format import checksum, index_bytes, sealed

JOURNAL = "journal"


@dataclass(frozen=True)
class NewRow:
    """A row to be written: its record without chunks, and its bytes by column (none if the record has an error)."""

    record: RowRecord
    data: dict[str, bytes]


class ShardWriter:
    """An unfinished shard in a folder of its own; opening it resumes where an earlier writer stopped.

    Args:
        folder: The folder `work/<s>`.
        cache: Digest of the header of the cache; a journal of another cache is dropped.
        shard: Number of the shard.
        columns: Names of the arrays.
        published: Final places of the files of the columns, to find those that were moved already; None if the shard is
            finished and is being written again.

    Attributes:
        rows: The records that are safe, in order.
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
            StjepaError: The disk is full; rows that were safe before are still safe, and rows can be added again.
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
        """Add the indexes and sync; return the manifest and the finished file of each column."""
        manifest = ShardManifest(self.cache, self.shard, tuple(self.rows))
        with storage_errors(self.folder):
            for name in self.columns:
                os.ftruncate(self._files[name], self._sizes[name])
                os.lseek(self._files[name], 0, os.SEEK_END)
                _append(self._files[name], [index_bytes(manifest.lengths(name), places)])
                os.fsync(self._files[name])
        self.close()
        return manifest, {name: self.folder / name for name in self.columns}

    def drop(self) -> None:
        """Remove the folder, once the manifest is safe or the work is not wanted."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Close the files; rows that are safe stay."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def _take(self, records: Sequence[RowRecord], journal: int) -> None:
        """Count records as safe; `journal` is the length of their line in bytes."""
        self.rows += records
        self._sizes[JOURNAL] += journal
        for record in records:
            for name, chunk in record.chunks.items():
                self._sizes[name] += chunk.length + CRC_BYTES

    def _take_back(self, published: dict[str, Path]) -> None:
        """Bring back files that were published before the manifest was written."""
        if not (self.folder / JOURNAL).is_file():
            return
        for name, path in published.items():
            if path.is_file() and not (self.folder / name).exists():
                path.replace(self.folder / name)

    def _resume(self) -> None:
        """Take in the batches that are intact."""
        journal = (self.folder / JOURNAL).read_bytes()
        for line in journal.splitlines(keepends=True):
            batch = _batch(line, self.cache, self.shard)
            if batch is None or not all(self._holds(name, batch) for name in self.columns):
                break
            self._take(batch, len(line))

    def _holds(self, name: str, batch: Sequence[RowRecord]) -> bool:
        """Return whether the data of a batch are intact and in their place."""
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
        """Drop everything after the last safe row."""
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
    """Return the records in a line of the journal, or None if it is torn or belongs to another cache or shard."""
    text, _, crc = line.rpartition(b"\t")
    if crc != f"{checksum(text):08x}\n".encode():
        return None
    found = json.loads(text)
    return [row_from_json(row) for row in found[2]] if found[:2] == [cache, shard] else None
