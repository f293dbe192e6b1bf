"""The latent store: rows of (N, D) float16 in sharded, checksummed Zarr v3, with a header and a done mark per shard.

The one place that knows zarr. Shards are written and read directly (`shards.py`), since their bytes are simple and zarr's own
path is slow for random rows; any Zarr v3 reader opens the same files. The layout is in `docs/reference/store.md`.

```text
cache/zarr.json                     group; its attribute `stjepa` is the header
cache/clips.jsonl                   row -> clip id, video path below the data root
cache/latents/zarr.json, c/<s>/0/0  R x N x D, chunk = one clip, shard = 64 clips, crc32c on chunks and index, fill NaN
cache/projection/                   the fitted map, as Zarr arrays
cache/marks/<s>.json                written after shard s is safe: what each of its rows was made from
```
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from stjepa_cli.config import from_dict, to_dict
from stjepa_cli.errors import CacheError, ConfigError, storage_errors
from stjepa_cli.files import sync, write_atomic
from stjepa_cli.nouns import ClipRef, CropBox
from stjepa_cli.projection import Projection
from stjepa_cli.records import CacheHeader, ClipRow, Fault, RowRecord, clips_digest
from stjepa_cli.shards import Latents


class LatentStore:
    """A cache on a local disk. Opening reads the header and the clip list; rows are read on demand.

    Reading is safe in threads and in forked or spawned processes: nothing stays open.
    """

    def __init__(self, path: Path, header: CacheHeader, clips: tuple[ClipRow, ...]) -> None:
        self.path, self.header, self.clips = path, header, clips
        self._records: dict[int, tuple[RowRecord, ...]] = {}

    # ---- opening and creating -----------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path) -> LatentStore:
        """Open a cache.

        Raises:
            CacheError: there is none, it is not one, or its parts do not agree.
        """
        header = _read_header(path)
        try:
            lines = (path / "clips.jsonl").read_text().splitlines()
            clips = tuple(ClipRow(**json.loads(line)) for line in lines)
        except (OSError, ValueError, TypeError) as error:
            raise CacheError(f"the clip list of the cache {path} cannot be read", got=str(error), fix=_rebuild(path)) from error
        if clips_digest(clips) != header.clips_digest:
            raise CacheError(f"{path}/clips.jsonl is not the list that the cache's header names", fix=_rebuild(path))
        _check_array(path, header)
        return cls(path, header, clips)

    @classmethod
    def create(cls, path: Path, header: CacheHeader, clips: Sequence[ClipRow], projection: Projection) -> LatentStore:
        """Make an empty cache in a folder that does not exist yet or is empty.

        Raises:
            CacheError: the folder holds something else.
            StjepaError: it cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise CacheError(f"{path} exists and is no cache of stjepa", fix="Choose another --cache, or empty that folder yourself.")
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                _create_arrays(draft, header, projection)
                (draft / "marks").mkdir()
                write_atomic(draft / "clips.jsonl", "".join(json.dumps(asdict(clip)) + "\n" for clip in clips).encode())
                if path.exists():
                    path.rmdir()
                draft.rename(path)
                sync(path.parent)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return cls(path, header, tuple(clips))

    @staticmethod
    def remove(path: Path) -> None:
        """Delete a cache, after making sure that it is one."""
        _read_header(path)
        with storage_errors(path):
            shutil.rmtree(path)

    def projection(self) -> Projection:
        """The fitted map.

        Raises:
            CacheError: damaged, or not the one that the header names.
        """
        import zarr

        try:
            group = zarr.open_group(self.path / "projection", mode="r")
            arrays = {name: torch.from_numpy(np.asarray(group[name][...])) for name in ("mean", "matrix")}  # type: ignore[index]
            projection = Projection(mean=arrays["mean"], matrix=arrays["matrix"], **group.attrs.asdict())  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(f"the projection of the cache {self.path} is damaged", got=str(error), fix=_rebuild(self.path)) from error
        if projection.digest != self.header.projection["digest"]:
            raise CacheError(f"the projection in {self.path} is not the one that its header names", fix=_rebuild(self.path))
        return projection

    # ---- shards -------------------------------------------------------------------------------------------------

    def rows_of(self, shard: int) -> range:
        """The rows in a shard."""
        size = self.header.rows_per_shard
        return range(shard * size, min(self.header.num_clips, (shard + 1) * size))

    def is_done(self, shard: int) -> bool:
        """Whether a shard has its mark."""
        return self._mark_path(shard).is_file()

    def pending(self) -> list[int]:
        """The shards without a mark."""
        return [shard for shard in range(self.header.num_shards) if not self.is_done(shard)]

    def write(self, shard: int, records: Sequence[RowRecord], latents: Sequence[Latents | None]) -> None:
        """Write a whole shard, make it durable, then mark it done.

        Args:
            shard: its number.
            records: one for each of its rows, in order; `latents_crc` is filled in here.
            latents: float16 (N, D) for each row, None where the record has an error.
        """
        if len(records) != len(self.rows_of(shard)) or len(latents) != len(records):
            raise ValueError(f"shard {shard} has {len(self.rows_of(shard))} rows, got {len(records)} records, {len(latents)} latents")
        body, crcs = self.header.layout.pack(latents)
        done = [RowRecord(**(asdict(record) | {"latents_crc": crc})) for record, crc in zip(records, crcs, strict=True)]
        mark = {"shard": shard, "bytes": len(body), "rows": [to_dict(record) for record in done]}
        with storage_errors(self.path):
            write_atomic(self._shard_path(shard), body)
            write_atomic(self._mark_path(shard), json.dumps(mark, separators=(",", ":")).encode())

    def unmark(self, shard: int) -> None:
        """Declare a shard not done, so that the next build writes it again."""
        with storage_errors(self.path):
            self._mark_path(shard).unlink(missing_ok=True)

    def records(self, shard: int) -> tuple[RowRecord, ...]:
        """What the rows of a done shard were made from.

        Raises:
            CacheError: the shard is not done, or its mark is damaged.
        """
        if shard not in self._records:
            self._records[shard] = self._read_mark(shard)
        return self._records[shard]

    def record(self, row: int) -> RowRecord:
        """What a row was made from."""
        shard, place = divmod(row, self.header.rows_per_shard)
        return self.records(shard)[place]

    def usable_rows(self) -> list[int]:
        """The rows that hold latents: of done shards, and not failed."""
        return [
            row
            for shard in range(self.header.num_shards)
            if self.is_done(shard)
            for row, record in zip(self.rows_of(shard), self.records(shard), strict=True)
            if record.error is None
        ]

    def failures(self) -> list[RowRecord]:
        """The rows whose videos could not be used."""
        done = [shard for shard in range(self.header.num_shards) if self.is_done(shard)]
        return [record for shard in done for record in self.records(shard) if record.error is not None]

    def num_bytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(path.stat().st_size for path in (self.path / "latents" / "c").glob("*/0/0"))

    def ref(self, row: int, data_root: Path) -> ClipRef:
        """What decodes the pixels of a row again."""
        record = self.record(row)
        path = data_root / self.clips[row].video
        return ClipRef(path, record.frame_indices, CropBox(*record.crop), self.header.teacher.clip.size_px)

    # ---- reading ------------------------------------------------------------------------------------------------

    def read(self, rows: Sequence[int]) -> Latents:
        """The latents of rows, float16 (len(rows), N, D), each checked against its checksum.

        Raises:
            CacheError: a row is not written, was recorded as failed, or its bytes are damaged.
        """
        out = np.empty((len(rows), self.header.num_tokens, self.header.latent_dim), np.float16)
        by_shard: dict[int, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            by_shard[row // self.header.rows_per_shard].append(place)
        for shard, places in by_shard.items():
            self._read_shard(shard, [rows[place] for place in places], [out[place] for place in places])
        return out

    def _read_shard(self, shard: int, rows: Sequence[int], into: Sequence[Latents]) -> None:
        try:
            descriptor = os.open(self._shard_path(shard), os.O_RDONLY)
        except OSError as error:
            raise CacheError(f"shard {shard} of {self.path} is missing", fix=_verify(self.path)) from error
        try:
            for row, target in zip(rows, into, strict=True):
                reason = self._read_row(descriptor, row, target)
                if reason:
                    raise CacheError(f"clip {self.clips[row].id} in {self.path} {reason}", fix=_verify(self.path))
        finally:
            os.close(descriptor)

    def _read_row(self, descriptor: int, row: int, into: Latents) -> str | None:
        """Fill `into`, or say what is wrong with the row."""
        shard, place = divmod(row, self.header.rows_per_shard)
        records = self.records(shard)
        if records[place].error is not None:
            return f"has no latents: {records[place].error}"
        number = sum(record.error is None for record in records[:place])
        return self.header.layout.read_row(descriptor, number, records[place].latents_crc, into)

    # ---- checking -----------------------------------------------------------------------------------------------

    def check(self, shard: int, *, every_byte: bool) -> list[Fault]:
        """What is wrong with a shard: nothing, rows that are missing, rows that are corrupt.

        Args:
            shard: its number.
            every_byte: read and checksum all of it, not only its mark, size and index.
        """
        ids = [self.clips[row].id for row in self.rows_of(shard)]
        if not self.is_done(shard):
            return [Fault(name, "missing", "its shard is not done") for name in ids]
        try:
            records = self._read_mark(shard)
        except CacheError as error:
            return [Fault(name, "corrupt", error.sentence()) for name in ids]
        held = [record.id for record in records if record.error is None]
        path = self._shard_path(shard)
        if not path.is_file():
            return [Fault(name, "missing", f"{path} is gone") for name in held]
        if not self.header.layout.has_index(path, [record.error is None for record in records]):
            return [Fault(name, "corrupt", f"{path} has another size or index than its mark says") for name in held]
        self._records[shard] = records
        return list(self._check_rows(shard, records)) if every_byte else []

    def _check_rows(self, shard: int, records: Sequence[RowRecord]) -> Iterator[Fault]:
        target = np.empty((self.header.num_tokens, self.header.latent_dim), np.float16)
        descriptor = os.open(self._shard_path(shard), os.O_RDONLY)
        try:
            for row, record in zip(self.rows_of(shard), records, strict=True):
                reason = None if record.error else self._read_row(descriptor, row, target)
                if reason:
                    yield Fault(record.id, "corrupt", reason)
        finally:
            os.close(descriptor)

    def _read_mark(self, shard: int) -> tuple[RowRecord, ...]:
        path = self._mark_path(shard)
        try:
            data = json.loads(path.read_bytes())
            records = tuple(from_dict(RowRecord, row, where=str(path)) for row in data["rows"])
        except FileNotFoundError as error:
            raise CacheError(f"shard {shard} of {self.path} is not done", fix="Type `stjepa cache build` to go on.") from error
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise CacheError(f"the mark {path} is damaged", got=str(error), fix=_verify(self.path)) from error
        if [record.id for record in records] != [self.clips[row].id for row in self.rows_of(shard)]:
            raise CacheError(f"the mark {path} is of other clips", fix=_verify(self.path))
        return records

    def _shard_path(self, shard: int) -> Path:
        return self.path / "latents" / "c" / str(shard) / "0" / "0"

    def _mark_path(self, shard: int) -> Path:
        return self.path / "marks" / f"{shard}.json"


def _create_arrays(path: Path, header: CacheHeader, projection: Projection) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(path, zarr_format=3, attributes={"stjepa": to_dict(header)})
    row = (header.num_tokens, header.latent_dim)
    group.create_array(
        "latents",
        shape=(header.num_clips, *row),
        dtype=header.dtype,
        chunks=(1, *row),
        shards=(header.rows_per_shard, *row),
        compressors=[Crc32cCodec()],
        fill_value=float("nan"),
    )
    fitted = {name: value for name, value in asdict(projection).items() if name not in ("mean", "matrix")}
    inner = group.create_group("projection", attributes=fitted)
    for name, array in (("mean", projection.mean.numpy()), ("matrix", projection.matrix.numpy())):
        inner.create_array(name, data=array, compressors=[Crc32cCodec()])


def _read_header(path: Path) -> CacheHeader:
    where = f"the header of the cache {path}"
    try:
        attributes = json.loads((path / "zarr.json").read_bytes()).get("attributes", {})
        return from_dict(CacheHeader, attributes["stjepa"], where=where)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheError(f"there is no cache at {path}", fix="Type `stjepa cache build`, or name it with --cache.") from error
    except (ValueError, KeyError, AttributeError, ConfigError) as error:
        raise CacheError(f"{path} is no cache of stjepa, or {where} is damaged", got=str(error), fix=_rebuild(path)) from error


def _check_array(path: Path, header: CacheHeader) -> None:
    """The array that the header describes is the one that is there."""
    try:
        shape = json.loads((path / "latents" / "zarr.json").read_bytes())["shape"]
    except (OSError, ValueError, KeyError) as error:
        raise CacheError(f"{path}/latents/zarr.json cannot be read", got=str(error), fix=_rebuild(path)) from error
    expected = [header.num_clips, header.num_tokens, header.latent_dim]
    if shape != expected:
        raise CacheError(f"the array in {path} is not what its header says", got=shape, expected=expected, fix=_rebuild(path))


def _rebuild(path: Path) -> str:
    return f"Build it again: `stjepa cache build --cache {path} --overwrite`."


def _verify(path: Path) -> str:
    return f"Type `stjepa cache verify --level full --cache {path}`."
