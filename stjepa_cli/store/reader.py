"""Reads and checks rows of a cache: directly from shards on a local disk, through zarr from anywhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stjepa_cli.core.errors import CacheError
from stjepa_cli.core.locations import Location, is_local
from stjepa_cli.store import frames
from stjepa_cli.store.arrays import has_own_layout, open_array
from stjepa_cli.store.errors import check_closely, unreadable
from stjepa_cli.store.quantization import decode_int8
from stjepa_cli.store.records import CacheHeader, Chunk, ShardManifest
from stjepa_cli.store.shard_format import FOREIGN, Bytes, Latents, checksum, read_chunk

THREADS = 8
"""More than many machines have cores, because data that are not in memory yet arrive sooner when much is requested at once."""


@dataclass(frozen=True)
class Place:
    """The place of a row: its shard, its number there, and the manifest with all other details."""

    row: int
    shard: int
    number: int
    manifest: ShardManifest

    def chunk(self, column: str) -> Chunk:
        """Return the length and the checksum of the stored chunk of a column."""
        return self.manifest.rows[self.number].chunks[column]


class RowReader:
    """Reads rows of one cache; safe in threads and in forked or spawned processes, because no file stays open.

    Args:
        path: The cache.
        header: Its header.

    Attributes:
        direct: Whether shards are read without zarr.

    Raises:
        CacheError: The arrays are not what the header says.
    """

    def __init__(self, path: Location, header: CacheHeader) -> None:
        self.path, self.header = path, header
        own = [has_own_layout(path, header, column) for column in header.columns]
        self.direct = is_local(path) and all(own)
        self._tails = {column.name: "/0" * len(column.row_shape) for column in header.columns}
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pool": None}

    def shard_path(self, column: str, shard: int) -> Location:
        """Return the file of a shard of a column."""
        return self.path / self.shard_name(column, shard)

    def shard_name(self, column: str, shard: int) -> str:
        """Return the path of that file below the cache."""
        return f"{column}/c/{shard}{self._tails[column]}"

    def latents(self, places: Sequence[Place], into: Latents, threads: int) -> None:
        """Fill `into`, float16 (B, N, D), with the latents of rows.

        Raises:
            CacheError: Bytes are missing, damaged or unreadable.
        """
        one = self._read_float16 if self.header.dtype == "float16" else self._read_int8
        self._each(places, into, one, threads)

    def pixels(self, places: Sequence[Place], into: Tensor, threads: int) -> None:
        """Fill `into`, uint8 (B, T, 3, S, S), with the kept frames of rows.

        Raises:
            CacheError: Bytes are missing, damaged or unreadable.
        """
        self._each(places, into, self._read_clip, threads)

    def chunk(self, place: Place, column: str, files: _Files | None = None, into: Bytes | None = None) -> Bytes:
        """Return the checked bytes of the chunk of a row, written into `into` if given.

        Raises:
            CacheError: The bytes are missing, damaged or unreadable.
        """
        known = place.chunk(column)
        if not self.direct:
            return self._through_zarr(place, column, known)
        into = np.empty(known.length, np.uint8) if into is None else into
        if files is None:
            with _Files(self) as own:
                return self.chunk(place, column, own, into)
        try:
            reason = read_chunk(files.descriptor(column, place), place.manifest.offsets[column][place.number], known, into)
        except OSError as error:
            raise unreadable(f"clip {place.manifest.rows[place.number].name} in {self.path}", error) from error
        if reason:
            raise self.fault(place, reason)
        return into

    def fault(self, place: Place, reason: str) -> CacheError:
        """Return the error about a row; `reason` is a clause."""
        return CacheError(f"clip {place.manifest.rows[place.number].name} in {self.path} {reason}", fix=check_closely(self.path))

    # ---- one row ------------------------------------------------------------------------------------------------

    def _read_float16(self, place: Place, files: _Files, into: Latents) -> None:
        flat = into.reshape(-1).view(np.uint8)
        found = self.chunk(place, "latents", files, flat)
        if found is not flat:
            flat[...] = found

    def _read_int8(self, place: Place, files: _Files, into: Latents) -> None:
        numbers = self.chunk(place, "latents", files).view(np.int8).reshape(into.shape)
        decode_int8(numbers, self.chunk(place, "scales", files).view(np.float16), into)

    def _read_clip(self, place: Place, files: _Files, into: Tensor) -> None:
        try:
            frames.decode_clip(self.chunk(place, "frames", files).data, self.header.teacher.clip.size_px, into)
        except ValueError as error:
            raise self.fault(place, f"holds frames that cannot be read: {error}") from error

    def _through_zarr(self, place: Place, column: str, known: Chunk) -> Bytes:
        try:
            found = open_array(self.path, column)[place.row]
            data = frames.chunk_of(list(found)) if column == "frames" else np.ascontiguousarray(found).tobytes()  # type: ignore[arg-type]
        except MemoryError:
            raise
        except Exception as error:  # zarr trusts the JSON that it reads
            raise self.fault(place, f"is corrupt: zarr cannot read it ({error})") from error
        if checksum(data) != known.crc:
            raise self.fault(place, FOREIGN)
        return np.frombuffer(data, np.uint8)

    # ---- many rows ----------------------------------------------------------------------------------------------

    def _each(self, places: Sequence[Place], into: Any, one: Callable[[Place, _Files, Any], None], threads: int) -> None:
        """Read rows shard by shard, so that each thread opens each shard once."""
        order = sorted(range(len(places)), key=lambda i: (places[i].shard, places[i].number))
        threads = max(1, min(threads, len(order)))
        parts = [order[i * len(order) // threads : (i + 1) * len(order) // threads] for i in range(threads)]

        def read(part: Sequence[int]) -> None:
            with _Files(self) as files:
                for i in part:
                    one(places[i], files, into[i])

        if threads == 1:
            read(order)
            return
        for done in [self._threads().submit(read, part) for part in parts]:
            done.result()

    def _threads(self) -> ThreadPoolExecutor:
        """Return the thread pool of this process: a forked process has no threads of its parent."""
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = (os.getpid(), ThreadPoolExecutor(THREADS, thread_name_prefix="stjepa-read"))
        return self._pool[1]


class _Files:
    """The open shard files of one call, at most one per column at a time."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        self._open: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for _shard, descriptor in self._open.values():
            os.close(descriptor)

    def descriptor(self, column: str, place: Place) -> int:
        """Return the descriptor of the shard of a row.

        Raises:
            CacheError: The shard is gone.
            OSError: It cannot be opened for another reason.
        """
        shard, descriptor = self._open.get(column, (-1, -1))
        if shard == place.shard:
            return descriptor
        if shard >= 0:
            os.close(self._open.pop(column)[1])
        try:
            descriptor = os.open(f"{self.reader.path}/{self.reader.shard_name(column, place.shard)}", os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.reader.fault(place, f"is missing: its shard {place.shard} of {column} is gone") from error
        self._open[column] = place.shard, descriptor
        return descriptor


def empty_clips(count: int, header: CacheHeader) -> Tensor:
    """Return a buffer for `RowReader.pixels`: uint8 (count, T, 3, S, S)."""
    clip = header.teacher.clip
    return torch.empty((count, clip.num_frames, 3, clip.size_px, clip.size_px), dtype=torch.uint8)
