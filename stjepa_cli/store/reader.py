"""Rows of a cache, read and checked: directly from shards on a local disk, through zarr from anywhere else."""

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
from stjepa_cli.store.quantization import decode_int8
from stjepa_cli.store.records import CacheHeader, ShardManifest
from stjepa_cli.store.shard_format import FOREIGN, Bytes, Chunk, Latents, checksum, read_chunk

THREADS = 8
"""More than many machines have cores: what is not in memory yet comes sooner when much of it is asked for at once."""


@dataclass(frozen=True)
class Place:
    """Where a row lies: its shard, its number there, and the mark that tells the rest."""

    row: int
    shard: int
    number: int
    mark: ShardManifest

    def chunk(self, column: str) -> Chunk:
        """What is stored of it."""
        return self.mark.rows[self.number].chunks[column]


class RowReader:
    """Reads rows of one cache. Safe in threads and in forked or spawned processes: no file stays open.

    Args:
        path: the cache.
        header: its header.

    Raises:
        CacheError: the arrays are not what the header says.
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
        """The file of a shard of a column."""
        return self.path / self.shard_name(column, shard)

    def shard_name(self, column: str, shard: int) -> str:
        """Its path below the cache."""
        return f"{column}/c/{shard}{self._tails[column]}"

    def latents(self, places: Sequence[Place], into: Latents, threads: int) -> None:
        """Fill `into`, float16 (B, N, D), with the latents of rows.

        Raises:
            CacheError: missing or damaged bytes.
        """
        one = self._one_latents if self.header.dtype == "float16" else self._one_int8
        self._each(places, into, one, threads)

    def pixels(self, places: Sequence[Place], into: Tensor, threads: int) -> None:
        """Fill `into`, uint8 (B, T, 3, S, S), with the kept frames of rows.

        Raises:
            CacheError: missing or damaged bytes.
        """
        self._each(places, into, self._one_clip, threads)

    def chunk(self, place: Place, column: str, files: _Files | None = None, into: Bytes | None = None) -> Bytes:
        """The checked bytes of a row's chunk, written into `into` if given.

        Raises:
            CacheError: missing or damaged.
        """
        known = place.chunk(column)
        if not self.direct:
            return self._through_zarr(place, column, known)
        into = np.empty(known.length, np.uint8) if into is None else into
        if files is None:
            with _Files(self) as own:
                return self.chunk(place, column, own, into)
        reason = read_chunk(files.descriptor(column, place), place.mark.offsets[column][place.number], known, into)
        if reason:
            raise self.fault(place, reason)
        return into

    def fault(self, place: Place, reason: str) -> CacheError:
        """The error about a row."""
        fix = f"Type `stjepa cache verify --level full --cache {self.path}`."
        return CacheError(f"clip {place.mark.rows[place.number].name} in {self.path} {reason}", fix=fix)

    # ---- one row ------------------------------------------------------------------------------------------------

    def _one_latents(self, place: Place, files: _Files, into: Latents) -> None:
        flat = into.reshape(-1).view(np.uint8)
        found = self.chunk(place, "latents", files, flat)
        if found is not flat:
            flat[...] = found

    def _one_int8(self, place: Place, files: _Files, into: Latents) -> None:
        numbers = self.chunk(place, "latents", files).view(np.int8).reshape(into.shape)
        decode_int8(numbers, self.chunk(place, "scales", files).view(np.float16), into)

    def _one_clip(self, place: Place, files: _Files, into: Tensor) -> None:
        try:
            frames.decode_clip(self.chunk(place, "frames", files).data, self.header.teacher.clip.size_px, into)
        except ValueError as error:
            raise self.fault(place, f"holds frames that cannot be read: {error}") from error

    def _through_zarr(self, place: Place, column: str, known: Chunk) -> Bytes:
        try:
            found = open_array(self.path, column)[place.row]
            data = frames.chunk_of(list(found)) if column == "frames" else np.ascontiguousarray(found).tobytes()  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise self.fault(place, f"is corrupt: zarr cannot read it ({error})") from error
        if checksum(data) != known.crc:
            raise self.fault(place, FOREIGN)
        return np.frombuffer(data, np.uint8)

    # ---- many rows ----------------------------------------------------------------------------------------------

    def _each(self, places: Sequence[Place], into: Any, one: Callable[[Place, _Files, Any], None], threads: int) -> None:
        """Read all rows, shard by shard, each shard opened once a thread."""
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
        """The threads of this process: a forked process has none of its parent's."""
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = (os.getpid(), ThreadPoolExecutor(THREADS, thread_name_prefix="stjepa-read"))
        return self._pool[1]


class _Files:
    """Open shard files of one call: at most one of each column at a time."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        self._open: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for _shard, descriptor in self._open.values():
            os.close(descriptor)

    def descriptor(self, column: str, place: Place) -> int:
        """Of the row's shard."""
        shard, descriptor = self._open.get(column, (-1, -1))
        if shard == place.shard:
            return descriptor
        if shard >= 0:
            os.close(self._open.pop(column)[1])
        try:
            descriptor = os.open(f"{self.reader.path}/{self.reader.shard_name(column, place.shard)}", os.O_RDONLY)
        except OSError as error:
            raise self.reader.fault(place, f"is missing: its shard {place.shard} of {column} is gone ({error.strerror})") from error
        self._open[column] = place.shard, descriptor
        return descriptor


def empty_clips(count: int, header: CacheHeader) -> Tensor:
    """A buffer for `pixels`: uint8 (count, T, 3, S, S)."""
    clip = header.teacher.clip
    return torch.empty((count, clip.num_frames, 3, clip.size_px, clip.size_px), dtype=torch.uint8)
