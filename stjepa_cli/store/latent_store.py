"""The latent store: rows of (N, D) float16 in sharded, checksummed Zarr v3, with a header and a done mark per shard.

Any Zarr v3 reader opens the files; the layout is in `docs/reference/store.md`.

```text
cache/zarr.json                     group; its attribute `stjepa` is the header
cache/clips.jsonl                   clip -> id, video path below the data root
cache/latents/zarr.json, c/<s>/0/0  R x N x D, chunk = one row, shard = 64 rows, crc32c on chunks and index, fill NaN
cache/scales, cache/frames          likewise, with --dtype int8 and --frames
cache/projection/                   the fitted map, as Zarr arrays
cache/marks/<s>.json                written after shard s is safe: what each of its rows was made from
cache/failures.jsonl                the clips that could not be used, for people
cache/work/                         locks and unfinished shards; gone when the cache is finished
```
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from stjepa_cli.core.config import to_dict
from stjepa_cli.core.errors import CacheError, storage_errors
from stjepa_cli.core.files import leftovers, sync, write_atomic
from stjepa_cli.core.locations import Location, driver_errors, is_local, names
from stjepa_cli.core.types import ClipRef, CropBox
from stjepa_cli.store.arrays import create_arrays, read_projection, rebuild
from stjepa_cli.store.folder import read_header, refuse_foreign_folder, work_folder
from stjepa_cli.store.locks import CREATION, WRITING, holding
from stjepa_cli.store.projection import Projection
from stjepa_cli.store.reader import THREADS, Place, RowReader, empty_clips
from stjepa_cli.store.records import CacheHeader, ClipRow, RowRecord, ShardManifest, clips_digest
from stjepa_cli.store.shard_format import Latents, roomy
from stjepa_cli.store.shard_writer import ShardWriter


class ForeignManifestError(CacheError):
    """A mark that is whole but of another shard or another cache."""


@dataclass(frozen=True)
class FailedClip:
    """A row that could not be made: its clip, its view, its place and why."""

    id: str
    view: int
    row: int
    error: str


class LatentStore:
    """A cache. Opening reads the header and the clip list; rows are read on demand.

    Reading is safe in threads and in forked or spawned processes: nothing stays open.
    """

    def __init__(self, path: Location, header: CacheHeader, clips: tuple[ClipRow, ...]) -> None:
        self.path, self.header, self.clips = path, header, clips
        self.reader = RowReader(path, header)
        self._marks: dict[int, ShardManifest] = {}

    # ---- opening and creating -----------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Location) -> LatentStore:
        """Open a cache.

        Raises:
            CacheError: there is none, it is not one, or its parts do not agree.
        """
        header = read_header(path)
        try:
            with driver_errors():
                lines = (path / "clips.jsonl").read_bytes().decode().splitlines()
            clips = tuple(ClipRow(**json.loads(line)) for line in lines)
        except (OSError, ValueError, TypeError) as error:
            raise CacheError(f"the clip list of the cache {path} cannot be read", got=str(error), fix=rebuild(path)) from error
        if clips_digest(clips) != header.clips_digest:
            raise CacheError(f"{path}/clips.jsonl is not the list that the cache's header names", fix=rebuild(path))
        return cls(path, header, clips)

    @classmethod
    def create(cls, path: Location, header: CacheHeader, clips: Sequence[ClipRow], projection: Projection) -> LatentStore:
        """Make an empty cache in a folder that does not exist yet, or holds nothing but `work`.

        Raises:
            CacheError: the folder holds something else.
            StjepaError: it cannot be written.
        """
        refuse_foreign_folder(path)
        with storage_errors(path), tempfile.TemporaryDirectory(prefix="stjepa") as folder:
            draft = Path(folder)
            create_arrays(draft, to_dict(header), header, projection)
            (draft / "clips.jsonl").write_text("".join(json.dumps(asdict(clip)) + "\n" for clip in clips))
            files = sorted(file for file in draft.rglob("*") if file.is_file())
            for file in files:
                if file != draft / "zarr.json":
                    write_atomic(path / file.relative_to(draft).as_posix(), file.read_bytes())
            if is_local(path):
                (path / "marks").mkdir(exist_ok=True)
                for below in {parent for file in files for parent in file.relative_to(draft).parents}:
                    sync(path / below)
                sync(path.parent)
            # the group's file comes last: without it there is no cache yet
            write_atomic(path / "zarr.json", (draft / "zarr.json").read_bytes())
        return cls(path, header, tuple(clips))

    @staticmethod
    def exists(path: Location) -> bool:
        """Whether there is a cache, whole or not, or something that says it is one."""
        with driver_errors():
            return (path / "zarr.json").is_file()

    @staticmethod
    def remove(path: Location) -> None:
        """Delete a cache, after making sure that it is one; a kill leaves all of it or what is no cache."""
        read_header(path)
        with storage_errors(path), driver_errors():
            if is_local(path):
                gone = path.with_name(f".{path.name}.removed")
                shutil.rmtree(gone, ignore_errors=True)
                path.rename(gone)
                shutil.rmtree(gone)
            else:
                (path / "zarr.json").unlink()
                path.fs.rm(path.path, recursive=True)

    def projection(self) -> Projection:
        """The fitted map.

        Raises:
            CacheError: damaged, or not the one that the header names.
        """
        try:
            projection = read_projection(self.path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(f"the projection of the cache {self.path} is damaged", got=str(error), fix=rebuild(self.path)) from error
        if projection.digest != self.header.projection["digest"]:
            raise CacheError(f"the projection in {self.path} is not the one that its header names", fix=rebuild(self.path))
        return projection

    # ---- rows and shards ----------------------------------------------------------------------------------------

    def rows_of(self, shard: int) -> range:
        """The rows in a shard."""
        size = self.header.rows_per_shard
        return range(shard * size, min(self.header.num_rows, (shard + 1) * size))

    def clip_of(self, row: int) -> tuple[ClipRow, int]:
        """The video of a row, and which view of it."""
        clip, view = divmod(row, self.header.num_views)
        return self.clips[clip], view

    def is_done(self, shard: int) -> bool:
        """Whether a shard has its mark."""
        with driver_errors():
            return self._mark_path(shard).is_file()

    def done(self) -> set[int]:
        """The shards that have a mark."""
        try:
            found = {name.removesuffix(".json") for name in names(self.path / "marks") if name.endswith(".json")}
        except FileNotFoundError:
            return set()
        return {int(name) for name in found if name.isdecimal() and int(name) < self.header.num_shards}

    def pending(self, shards: range | None = None) -> list[int]:
        """The shards without a mark, of all or of a range."""
        done = self.done()
        return [shard for shard in shards or range(self.header.num_shards) if shard not in done]

    def mark(self, shard: int) -> ShardManifest:
        """What the rows of a done shard were made from.

        Raises:
            CacheError: the shard is not done, or its mark is damaged or of another cache.
        """
        return self._marks.get(shard) or self.read_mark(shard)

    def read_mark(self, shard: int) -> ShardManifest:
        """Likewise, from the disk as it is now.

        Raises:
            CacheError: likewise.
        """
        path = self._mark_path(shard)
        fix = f"Type `stjepa cache verify --level full --cache {self.path}`."
        try:
            with driver_errors():
                mark = ShardManifest.from_json(path.read_bytes())
        except FileNotFoundError as error:
            raise CacheError(f"shard {shard} of {self.path} is not done", fix="Type `stjepa cache build` to go on.") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(f"the mark {path} is damaged", got=str(error), fix=fix) from error
        expected = [(clip.id, view) for clip, view in map(self.clip_of, self.rows_of(shard))]
        columns = {column.name for column in self.header.columns}
        if mark.shard != shard or [(row.id, row.view) for row in mark.rows] != expected:
            raise ForeignManifestError(f"the mark {path} is of another shard", got=f"shard {mark.shard}", fix=fix)
        if mark.cache != self.header.digest:
            raise ForeignManifestError(
                f"the mark {path} is of another cache", got=mark.cache[:12], expected=self.header.digest[:12], fix=fix
            )
        if any(row.error is None and row.chunks.keys() != columns for row in mark.rows):
            raise CacheError(f"the mark {path} is damaged", got="rows without all of " + ", ".join(sorted(columns)), fix=fix)
        self._marks[shard] = mark
        return mark

    def record(self, row: int) -> RowRecord:
        """What a row was made from."""
        shard, number = divmod(row, self.header.rows_per_shard)
        return self.mark(shard).rows[number]

    def usable_rows(self) -> list[int]:
        """The rows that hold latents: of done shards, and not failed."""
        rows = (row for shard in sorted(self.done()) for row in self.rows_of(shard))
        return [row for row in rows if self.record(row).error is None]

    def failures(self) -> list[FailedClip]:
        """The rows whose videos could not be used."""
        rows = ((row, self.record(row)) for shard in sorted(self.done()) for row in self.rows_of(shard))
        return [FailedClip(record.id, record.view, row, record.error) for row, record in rows if record.error is not None]

    def num_bytes(self) -> int:
        """Bytes of all done shards, by their marks."""
        marks = [self.mark(shard) for shard in self.done()]
        places = self.header.rows_per_shard
        return sum(
            sum(n + 4 for n in mark.lengths(column.name) if n is not None) + 16 * places + 4
            for mark in marks
            for column in self.header.columns
        )

    def ref(self, row: int, data_root: Location) -> ClipRef:
        """What decodes the pixels of a row again."""
        record = self.record(row)
        path = data_root / self.clip_of(row)[0].video
        return ClipRef(path, record.frame_indices, CropBox(*record.crop), self.header.teacher.clip.size_px)

    # ---- reading ------------------------------------------------------------------------------------------------

    def read(self, rows: Sequence[int], out: Latents | None = None, threads: int = THREADS) -> Latents:
        """The latents of rows, each checked against its checksum and its mark.

        Args:
            rows: any, in any order.
            out: where to write, float16 (len(rows), N, D) contiguous, best made by `buffer`; new if None.
            threads: that read; what is not in memory yet comes faster with several.

        Returns:
            `out`, float16 (len(rows), N, D).

        Raises:
            CacheError: a row is not written, was recorded as failed, or its bytes are damaged.
        """
        out = self.buffer(len(rows)) if out is None else out
        shape = (len(rows), self.header.num_tokens, self.header.latent_dim)
        if out.shape != shape or out.dtype != np.float16 or not out.flags.c_contiguous:
            raise ValueError(f"{len(rows)} rows are read into contiguous float16 {shape}, got {out.dtype} {out.shape}")
        self.reader.latents([self.place(row) for row in rows], out, threads)
        return out

    def buffer(self, count: int) -> Latents:
        """An empty array for `read`, to be used again and again: float16 (count, N, D)."""
        return roomy((count, self.header.num_tokens, self.header.latent_dim), np.float16)

    def read_frames(self, rows: Sequence[int], out: Tensor | None = None, threads: int = THREADS) -> Tensor:
        """The kept frames of rows, uint8 (len(rows), T, 3, S, S), each checked.

        Raises:
            CacheError: the cache keeps none, or as `read`.
        """
        if not self.header.frames:
            raise CacheError(f"the cache {self.path} keeps no frames", fix="Build one that does: `stjepa cache build --frames`.")
        out = empty_clips(len(rows), self.header) if out is None else out
        self.reader.pixels([self.place(row) for row in rows], out, threads)
        return out

    def place(self, row: int) -> Place:
        """Where a row lies.

        Raises:
            CacheError: it is not written, or was recorded as failed.
        """
        shard, number = divmod(row, self.header.rows_per_shard)
        place = Place(row, shard, number, self.mark(shard))
        error = place.mark.rows[number].error
        if error is not None:
            raise self.reader.fault(place, f"has no latents: {error}")
        return place

    # ---- writing ------------------------------------------------------------------------------------------------

    @property
    def work(self) -> Path:
        """Where unfinished shards and locks are: in the cache or, for a cache elsewhere, in a folder of this machine."""
        return work_folder(self.path)

    @contextmanager
    def writing(self, shard: int, *, wait_s: float = 60.0) -> Iterator[ShardWriter]:
        """A writer of a shard that goes on where an earlier one stopped; no other process writes it meanwhile."""
        published = {column.name: self._shard_path(column.name, shard) for column in self.header.columns}
        local = {name: path for name, path in published.items() if is_local(path)}
        with holding(self.work / "lock", range(WRITING + shard, WRITING + shard + 1), f"shard {shard}", wait_s=wait_s):
            columns = [column.name for column in self.header.columns]
            writer = ShardWriter(self.work / str(shard), self.header.digest, shard, columns, local if not self.is_done(shard) else None)
            try:
                yield writer
            finally:
                writer.close()

    def publish(self, writer: ShardWriter) -> None:
        """Put a shard whose rows are all there in its place, then mark it done."""
        shard = writer.shard
        if len(writer.rows) != len(self.rows_of(shard)):
            raise ValueError(f"shard {shard} has {len(self.rows_of(shard))} rows, got {len(writer.rows)}")
        mark, files = writer.finish(self.header.rows_per_shard)
        self.unmark(shard)
        for name, file in files.items():
            target = self._shard_path(name, shard)
            with storage_errors(target):
                if is_local(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(target)
                    for folder in (target.parent, target.parent.parent, target.parent.parent.parent, self.path / name):
                        sync(Path(str(folder)))
                else:
                    write_atomic(target, file.read_bytes())
        write_atomic(self._mark_path(shard), mark.to_json())
        writer.drop()

    def unmark(self, shard: int) -> None:
        """Declare a shard not done, so that the next build writes it again."""
        self._marks.pop(shard, None)
        with storage_errors(self.path), driver_errors():
            mark = self._mark_path(shard)
            mark.unlink(missing_ok=True)
            if is_local(mark) and mark.parent.is_dir():
                sync(mark.parent)  # or a power cut brings it back beside other rows

    def write_failures(self) -> None:
        """Write `failures.jsonl` from the marks, or remove it if nothing failed."""
        file = self.path / "failures.jsonl"
        lines = "".join(json.dumps(asdict(failure)) + "\n" for failure in self.failures())
        if lines:
            write_atomic(file, lines.encode())
            return
        with storage_errors(file), driver_errors():
            file.unlink(missing_ok=True)

    def sweep(self, shards: Sequence[int] | range, todo: Sequence[int]) -> None:
        """Remove what stopped builds left of shards that this process holds: half-written marks, and work on what is done."""
        for shard in {*shards} & self.done() - {*todo}:
            shutil.rmtree(self.work / str(shard), ignore_errors=True)
        if is_local(self.path):
            for file in leftovers(self.path / "marks"):
                if file.name.split(".")[1] in map(str, shards):
                    file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Put a finished cache in order, if nobody is at work: list its failures, remove what stopped builds left."""
        if not self.work.exists() or self.pending():
            return
        with suppress(CacheError), holding(self.work / "lock", range(CREATION), "the cache"):
            self.write_failures()
            for file in leftovers(self.path) if is_local(self.path) else ():
                file.unlink(missing_ok=True)
            shutil.rmtree(self.work, ignore_errors=True)

    def _shard_path(self, column: str, shard: int) -> Location:
        return self.reader.shard_path(column, shard)

    def _mark_path(self, shard: int) -> Location:
        return self.path / "marks" / f"{shard}.json"
