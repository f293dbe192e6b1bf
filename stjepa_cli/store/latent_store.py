"""The latent store: rows of (N, D) float16 in sharded, checksummed Zarr v3, with a header and a manifest per shard.

Any Zarr v3 reader opens the files; `docs/reference/store.md` describes the layout.

```text
cache/zarr.json                     group; its attribute `stjepa` is the header
cache/clips.jsonl                   one line per clip: its id and its video, as a path below the data root
cache/latents/zarr.json, c/<s>/0/0  R x N x D, chunk = one row, shard = 64 rows, crc32c on chunks and index, fill NaN
cache/scales, cache/frames          the same, with --dtype int8 and --frames
cache/projection/                   the fitted map, as Zarr arrays
cache/marks/<s>.json                the manifest of shard s, written after the shard is safe
cache/failures.jsonl                the clips that could not be used, for people
cache/work/                         locks and unfinished shards; gone when the cache is finished
```
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor

from stjepa_cli.core.errors import CacheError, storage_errors
from stjepa_cli.core.files import leftovers, sync, write_atomic
from stjepa_cli.core.locations import Location, driver_errors, is_local, location
from stjepa_cli.core.types import ClipRef, CropBox
from stjepa_cli.store.arrays import read_projection
from stjepa_cli.store.errors import rebuild, unreadable
from stjepa_cli.store.folder import cache_exists, create_cache, read_clips, read_header, work_folder
from stjepa_cli.store.locks import CREATION, WRITING, holding
from stjepa_cli.store.manifests import Manifests
from stjepa_cli.store.projection import Projection
from stjepa_cli.store.reader import THREADS, Place, RowReader, empty_clips
from stjepa_cli.store.records import CacheHeader, ClipRow, FailedClip, RowRecord, ShardManifest
from stjepa_cli.store.shard_format import Latents, roomy
from stjepa_cli.store.shard_writer import ShardWriter

__all__ = ["FailedClip", "LatentStore"]


class LatentStore:
    """A cache. Opening it reads the header and the clip list; rows are read on demand.

    Reading is safe in threads and in forked or spawned processes, because nothing stays open; a cache can be opened any
    number of times.

    Attributes:
        path: The folder or URL of the cache.
        header: Its header.
        clips: Its clip list.
        manifests: The manifests of its finished shards.
        reader: Reads the bytes of its rows.
    """

    def __init__(self, path: Location, header: CacheHeader, clips: tuple[ClipRow, ...]) -> None:
        self.path, self.header, self.clips = path, header, clips
        self.manifests = Manifests(path, header, clips)
        self.reader = RowReader(path, header)

    # ---- opening and creating -----------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Location) -> LatentStore:
        """Open a cache.

        Raises:
            CacheError: There is none, it is something else, or its parts do not agree.
        """
        header = read_header(path)
        return cls(path, header, read_clips(path, header))

    @classmethod
    def create(cls, path: Location, header: CacheHeader, clips: Sequence[ClipRow], projection: Projection) -> LatentStore:
        """Create an empty cache in a folder that does not exist yet or holds nothing but `work`.

        Raises:
            CacheError: The folder holds something else.
            StjepaError: It cannot be written.
        """
        create_cache(path, header, clips, projection)
        return cls(path, header, tuple(clips))

    @staticmethod
    def exists(path: Location) -> bool:
        """Return whether there is a cache, intact or not, or something that claims to be one."""
        return cache_exists(path)

    def projection(self) -> Projection:
        """Read the fitted map from the teacher's tokens to latents.

        Raises:
            CacheError: It is damaged, or not the one that the header names.
        """
        try:
            projection = read_projection(self.path)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise CacheError(f"the projection of the cache {self.path} is damaged", got=str(error), fix=rebuild(self.path)) from error
        except OSError as error:
            raise unreadable(f"the projection of the cache {self.path}", error) from error
        if projection.digest != self.header.projection.get("digest"):
            raise CacheError(f"the projection in {self.path} is not the one that its header names", fix=rebuild(self.path))
        return projection

    # ---- rows and shards ----------------------------------------------------------------------------------------

    @property
    def clips_digest(self) -> str:
        """Digest of the clip list: two caches with the same one have the same videos in the same order."""
        return self.header.clips_digest

    def rows_of(self, shard: int) -> range:
        """Return the rows in a shard."""
        return self.header.rows_of(shard)

    def clip_of(self, row: int) -> tuple[ClipRow, int]:
        """Return the video of a row and the number of its view."""
        clip, view = divmod(row, self.header.num_views)
        return self.clips[clip], view

    def is_done(self, shard: int) -> bool:
        """Return whether a shard is finished."""
        return self.manifests.is_done(shard)

    def done(self) -> set[int]:
        """Return the finished shards."""
        return self.manifests.done()

    def pending(self, shards: range | None = None) -> list[int]:
        """Return the unfinished shards, of the whole cache or of a range."""
        done = self.done()
        return [shard for shard in (range(self.header.num_shards) if shards is None else shards) if shard not in done]

    def manifest(self, shard: int) -> ShardManifest:
        """Return the manifest of a finished shard.

        Raises:
            CacheError: The shard is not finished, or its manifest cannot be read, is damaged or belongs to something else.
        """
        return self.manifests.get(shard)

    def record(self, row: int) -> RowRecord:
        """Return the origin of a row."""
        shard, number = divmod(row, self.header.rows_per_shard)
        return self.manifest(shard).rows[number]

    def usable_rows(self) -> list[int]:
        """Return the rows that hold latents: those of finished shards that did not fail."""
        rows = (row for shard in sorted(self.done()) for row in self.rows_of(shard))
        return [row for row in rows if self.record(row).error is None]

    def failures(self) -> list[FailedClip]:
        """Return the rows whose videos could not be used."""
        rows = ((row, self.record(row)) for shard in sorted(self.done()) for row in self.rows_of(shard))
        return [FailedClip(record.id, record.view, row, record.error) for row, record in rows if record.error is not None]

    def num_bytes(self) -> int:
        """Return the size of all finished shards, according to their manifests."""
        return sum(self.manifest(shard).num_bytes(self.header) for shard in self.done())

    def ref(self, row: int, data_root: Location) -> ClipRef:
        """Return what is needed to decode the pixels of a row again."""
        record, video = self.record(row), self.clip_of(row)[0].video
        path = location(video) if video.startswith("/") or "://" in video else data_root / video
        return ClipRef(path, record.frame_indices, CropBox(*record.crop), self.header.teacher.clip.size_px)

    # ---- reading ------------------------------------------------------------------------------------------------

    def read(self, rows: Sequence[int], out: Latents | None = None, threads: int = THREADS) -> Latents:
        """Read the latents of rows; each is compared with its checksum and its manifest.

        Args:
            rows: Any rows, in any order.
            out: Array to fill, contiguous float16 (len(rows), N, D), best made by `buffer`; a new one if None.
            threads: Reading threads; rows that are not in memory yet arrive faster with several.

        Returns:
            `out`, float16 (len(rows), N, D).

        Raises:
            CacheError: A row is not written, is recorded as failed, or its bytes are damaged.
        """
        out = self.buffer(len(rows)) if out is None else out
        shape = (len(rows), self.header.num_tokens, self.header.latent_dim)
        if out.shape != shape or out.dtype != np.float16 or not out.flags.c_contiguous:
            raise ValueError(f"{len(rows)} rows are read into contiguous float16 {shape}, got {out.dtype} {out.shape}")
        self.reader.latents([self.place(row) for row in rows], out, threads)
        return out

    def buffer(self, count: int) -> Latents:
        """Return an uninitialised array for `read` that can be reused: float16 (count, N, D)."""
        return roomy((count, self.header.num_tokens, self.header.latent_dim), np.float16)

    def read_frames(self, rows: Sequence[int], out: Tensor | None = None, threads: int = THREADS) -> Tensor:
        """Read the kept frames of rows, uint8 (len(rows), T, 3, S, S); each is checked.

        Raises:
            CacheError: The cache keeps no frames, or as for `read`.
        """
        if not self.header.frames:
            raise CacheError(f"the cache {self.path} keeps no frames", fix="Build one that does: `stjepa cache build --frames`.")
        out = empty_clips(len(rows), self.header) if out is None else out
        self.reader.pixels([self.place(row) for row in rows], out, threads)
        return out

    def place(self, row: int) -> Place:
        """Return where a row is stored.

        Raises:
            CacheError: The row is not written or is recorded as failed.
        """
        shard, number = divmod(row, self.header.rows_per_shard)
        place = Place(row, shard, number, self.manifest(shard))
        error = place.manifest.rows[number].error
        if error is not None:
            raise self.reader.fault(place, f"has no latents: {error}")
        return place

    # ---- writing ------------------------------------------------------------------------------------------------

    @property
    def work(self) -> Path:
        """Folder of unfinished shards and locks: in the cache or, for a remote cache, on this machine."""
        return work_folder(self.path)

    @contextmanager
    def writing(self, shard: int, *, wait_s: float = 60.0) -> Iterator[ShardWriter]:
        """Open a writer that resumes where an earlier one stopped; no other process writes the shard in the meantime."""
        columns = [column.name for column in self.header.columns]
        published = {name: self.reader.shard_path(name, shard) for name in columns}
        local = {name: path for name, path in published.items() if is_local(path)}
        with holding(self.work / "lock", range(WRITING + shard, WRITING + shard + 1), f"shard {shard}", wait_s=wait_s):
            writer = ShardWriter(self.work / str(shard), self.header.digest, shard, columns, local if not self.is_done(shard) else None)
            try:
                yield writer
            finally:
                writer.close()

    def publish(self, writer: ShardWriter) -> None:
        """Move a shard that has all of its rows to its place, then write its manifest."""
        shard = writer.shard
        if len(writer.rows) != len(self.rows_of(shard)):
            raise ValueError(f"shard {shard} has {len(self.rows_of(shard))} rows, got {len(writer.rows)}")
        manifest, files = writer.finish(self.header.rows_per_shard)
        self.manifests.discard(shard)
        for name, file in files.items():
            target = self.reader.shard_path(name, shard)
            with storage_errors(target):
                if is_local(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(target)
                    for folder in (target.parent, target.parent.parent, target.parent.parent.parent, self.path / name):
                        sync(Path(str(folder)))
                else:
                    write_atomic(target, file.read_bytes())
        self.manifests.write(manifest)
        writer.drop()

    def write_failures(self) -> None:
        """Write `failures.jsonl` from the manifests, or remove it if nothing failed."""
        file = self.path / "failures.jsonl"
        lines = "".join(json.dumps(asdict(failure)) + "\n" for failure in self.failures())
        if lines:
            write_atomic(file, lines.encode())
            return
        with storage_errors(file), driver_errors():
            file.unlink(missing_ok=True)

    def sweep(self, shards: Sequence[int] | range, todo: Sequence[int]) -> None:
        """Remove what stopped builds left of shards that this process holds: partial manifests, and work on finished shards."""
        for shard in {*shards} & self.done() - {*todo}:
            shutil.rmtree(self.work / str(shard), ignore_errors=True)
        if is_local(self.path):
            for file in leftovers(self.path / "marks"):
                if file.name.split(".")[1] in map(str, shards):
                    file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Tidy a finished cache if nobody is working on it: list its failures and remove what stopped builds left."""
        if not self.work.exists() or self.pending():
            return
        with suppress(CacheError), holding(self.work / "lock", range(CREATION), "the cache"):
            self.write_failures()
            for file in leftovers(self.path) if is_local(self.path) else ():
                file.unlink(missing_ok=True)
            shutil.rmtree(self.work, ignore_errors=True)
