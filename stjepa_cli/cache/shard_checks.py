"""Finds damaged shards of a cache and files that do not belong into it, without the teacher or the videos."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stjepa_cli.core.errors import CacheError
from stjepa_cli.core.locations import is_local
from stjepa_cli.store.errors import ForeignManifestError, UnreadableError, unreadable
from stjepa_cli.store.folder import LISTS
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.reader import Place
from stjepa_cli.store.records import Fault, ShardManifest
from stjepa_cli.store.shard_format import FOREIGN, Bytes, is_whole, read_chunk, roomy, shape_fault, stored_crc

_buffers = threading.local()


def check_shard(store: LatentStore, shard: int, *, every_byte: bool) -> list[Fault]:
    """Return the faults of a shard, row by row.

    Args:
        store: The cache.
        shard: Number of the shard.
        every_byte: Read and checksum all of it; otherwise only its manifest, sizes, indexes and the checksums of two rows.
    """
    try:
        if not store.is_done(shard):
            return _all(store, shard, "missing", _why_unfinished(store, shard), finished=False)
        manifest = store.manifests.read(shard)
        places = [Place(row, shard, i, manifest) for i, row in enumerate(store.rows_of(shard)) if manifest.rows[i].error is None]
        if not store.reader.direct:
            return list(_through_zarr(store, places)) if every_byte else []
        columns = [column.name for column in store.header.columns]
        faults = [fault for name in columns for fault in _check_column(store, name, manifest, places, every_byte=every_byte)]
    except ForeignManifestError as error:
        return _all(store, shard, "foreign", error.what)
    except UnreadableError as error:
        return _all(store, shard, "unreadable", error.sentence())
    except CacheError as error:
        return _all(store, shard, "corrupt", error.sentence())
    except OSError as error:
        return _all(store, shard, "unreadable", unreadable(error.filename or f"shard {shard} of {store.path}", error).sentence())
    first: dict[str, Fault] = {}
    for fault in faults:
        first.setdefault(fault.id, fault)
    return list(first.values())


def stray_files(store: LatentStore) -> list[Fault]:
    """Return the files that do not belong into the cache, except hidden ones, which stopped builds leave and the next one removes."""
    if not is_local(store.path):
        return []
    known = {"zarr.json", *LISTS}
    known |= {f"marks/{shard}.json{end}" for shard in range(store.header.num_shards) for end in ("", ".bad")}
    for column in store.header.columns:
        known.add(f"{column.name}/zarr.json")
        known |= {str(Path(str(store.reader.shard_path(column.name, s))).relative_to(store.path)) for s in range(store.header.num_shards)}
    return [Fault(name, "extra", "it is no part of this cache") for name in sorted(_files(store.path)) if name not in known]


def _files(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        place = Path(folder).relative_to(root)
        if place == Path():
            folders[:] = [name for name in folders if name not in ("work", "projection")]
        yield from ((place / name).as_posix() for name in names if not name.startswith("."))


def _why_unfinished(store: LatentStore, shard: int) -> str:
    there = [column.name for column in store.header.columns if store.reader.shard_path(column.name, shard).is_file()]
    if there:
        return f"shard {shard} has a file ({', '.join(there)}) but no manifest: it cannot be trusted"
    return f"shard {shard} is not built yet"


def _all(store: LatentStore, shard: int, kind: str, reason: str, *, finished: bool = True) -> list[Fault]:
    """Return the same fault for all rows of a shard."""
    names = (f"{clip.id} view {view}" if view else clip.id for clip, view in map(store.clip_of, store.rows_of(shard)))
    return [Fault(name, kind, reason, shard, finished) for name in names]


def _check_column(
    store: LatentStore, column: str, manifest: ShardManifest, places: Sequence[Place], *, every_byte: bool
) -> Iterator[Fault]:
    """Yield the faults in the shard of one column."""
    path = Path(str(store.reader.shard_path(column, manifest.shard)))
    lengths, num_places = manifest.lengths(column), store.header.rows_per_shard
    if not path.is_file():
        yield from (_fault(place, "missing", f"shard {manifest.shard} is finished but its file {path} is gone") for place in places)
        return
    shape = shape_fault(path, lengths, num_places)
    if shape:
        whole = is_whole(path, num_places)
        reason = f"{path} " + ("is an intact shard of something else" if whole else shape)
        yield from (_fault(place, "foreign" if whole else "corrupt", reason) for place in places)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for place in places if every_byte else _suspects(descriptor, column, places):
            chunk = place.chunk(column)
            fault = read_chunk(descriptor, manifest.offsets[column][place.number], chunk, _buffer(chunk.length))
            if fault:
                yield _fault(place, "foreign" if fault == FOREIGN else "corrupt", fault)
    finally:
        os.close(descriptor)


def _suspects(descriptor: int, column: str, places: Sequence[Place]) -> Sequence[Place]:
    """Return all rows if the first or the last has another checksum than in its manifest, as in swapped shards; else none."""
    for place in (*places[:1], *places[-1:]):
        chunk = place.chunk(column)
        if stored_crc(descriptor, place.manifest.offsets[column][place.number], chunk) != chunk.crc:
            return places
    return ()


def _through_zarr(store: LatentStore, places: Sequence[Place]) -> Iterator[Fault]:
    for place in places:
        try:
            for column in store.header.columns:
                store.reader.chunk(place, column.name)
        except CacheError as error:
            yield _fault(place, "foreign" if FOREIGN in error.what else "corrupt", error.what)


def _fault(place: Place, kind: str, reason: str) -> Fault:
    return Fault(place.manifest.rows[place.number].name, kind, reason, place.shard)


def _buffer(size: int) -> Bytes:
    """Return the buffer of this thread, enlarged if necessary and cut to size."""
    found: Bytes | None = getattr(_buffers, "data", None)
    if found is None or len(found) < size:
        found = _buffers.data = roomy((size,), np.uint8)
    return found[:size]


def origin_of(store: LatentStore, faults: Sequence[Fault]) -> list[Fault]:
    """Name the owner of foreign rows if their bytes belong to another row of this cache, so that swapped shards are recognised."""
    foreign = {fault.shard for fault in faults if fault.kind == "foreign" and fault.reason == FOREIGN}
    if not foreign:
        return list(faults)
    owners: dict[int, str] = {}
    for shard in sorted(store.done()):
        try:
            rows = store.manifests.read(shard).rows
        except CacheError:
            continue
        owners |= {row.chunks["latents"].crc: f"clip {row.name} of shard {shard}" for row in rows if row.error is None}
    return [_with_origin(store, fault, owners) for fault in faults]


def _with_origin(store: LatentStore, fault: Fault, owners: dict[int, str]) -> Fault:
    if fault.reason != FOREIGN or fault.shard is None:
        return fault
    manifest = store.manifests.read(fault.shard)
    number = next(i for i, row in enumerate(manifest.rows) if row.name == fault.id)
    with open(str(store.reader.shard_path("latents", fault.shard)), "rb") as file:
        found = stored_crc(file.fileno(), manifest.offsets["latents"][number], manifest.rows[number].chunks["latents"])
    owner = owners.get(found or 0, "a row of another cache")
    return Fault(fault.id, fault.kind, f"holds the latents of {owner}", fault.shard)
