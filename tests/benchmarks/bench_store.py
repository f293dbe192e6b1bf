"""How fast latents are read, delivered, written and verified, against the ways in which one would do it without stjepa.

    python -m tests.benchmarks.bench_store [--quick] [--json] [--rows 1024] [--folder FOLDER] [--only reads,cold,...]

A cache of real geometry: rows of 1568 x 384 float16 (1.2 MB), 64 rows a shard, random numbers, written as a build writes it. All
contenders of a table in turns in one process; medians over rounds.

*One clip*: random rows, one a call, from memory that is warm, into a reused buffer. `np.memmap` copies and checks nothing;
`np.memmap + crc32c` checks the bytes as we do.
*64 clips*: random rows in one call. zarr-python by `get_orthogonal_selection`.
*Cold*: 64 random rows after the kernel was told to forget the files (`posix_fadvise`), each round other rows. mmap in one thread, as
it is used, and in as many as `read` has.
*To the training thread*: a pass over all rows in batches of 64 random ones. Ours are read by threads into three buffers, one batch
ahead; the DataLoaders have two worker processes that read through the same store, clip by clip or whole batches.
*Durable write*: a shard of 64 rows. Ours: eight batches of 8, each synced with its journal, then index, sync, rename, sync of
the folders, mark. zarr-python writes the whole shard in one call, and its file and folder are synced once afterwards, or not at all.
*Verify*: `verify --level full` of the warm cache against reading the same files chunk by chunk and taking crc32c, in two threads.

Aims: one clip 8 times as fast as zarr-python, 4 times as tensorstore and at least 0.8 times as memmap; 64 clips 50 times as
zarr-python; cold 2 times as mmap; to the training thread 5 times as a DataLoader; durable write 2 times as zarr-python; verify 0.8.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from stjepa_cli.cache.verify import verify
from stjepa_cli.core.files import sync
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.store.arrays import open_array
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.projection import Projection
from stjepa_cli.store.quantization import encode
from stjepa_cli.store.reader import THREADS
from stjepa_cli.store.records import CacheHeader, ClipRow, RowRecord, clips_digest
from stjepa_cli.store.shard_format import checksum, roomy
from stjepa_cli.store.shard_writer import NewRow
from tests.benchmarks.common import Row, interleave, parser, ratio, report

SPEC = ClipSpec()
DIM = 384
BATCH = 64
WORKERS = 2
AIMS = {
    "zarr-python": 8.0,
    "tensorstore": 4.0,
    "np.memmap": 0.8,
    "zarr-python, 64 rows": 50.0,
    "mmap": 2.0,
    "DataLoader": 5.0,
    "zarr-python, synced": 2.0,
    "read + crc32c": 0.8,
}

Contenders = dict[str, Callable[[], object]]
Bytes = npt.NDArray[np.uint8]


# ------------------------------------------------------------------------------------------------------------- stores


def empty_store(path: Path, num_rows: int) -> LatentStore:
    """A cache of real geometry with a made-up header."""
    clips = [ClipRow(str(1000 + i), f"{1000 + i}.webm") for i in range(num_rows)]
    fitted = Projection("identity", "none", torch.zeros(DIM), torch.eye(DIM), 1.0, 1.0, 1)
    card = TeacherCard("random", "hog", "1", "0" * 64, "none", DIM, SPEC)
    about = {"kind": fitted.kind, "digest": fitted.digest, "explained": 1.0, "num_fit_clips": 1}
    return LatentStore.create(path, CacheHeader("ssv2", "train", num_rows, clips_digest(clips), card, DIM, about), clips, fitted)


def noise(count: int, seed: int) -> torch.Tensor:
    """Latents float16 (count, N, D)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SPEC.grid.num_tokens, DIM, generator=generator).half()


def write_shard(store: LatentStore, shard: int, latents: torch.Tensor) -> None:
    """One shard as a build writes it: batches of 8, each safe before the next."""
    rows = store.rows_of(shard)
    with store.writing(shard) as writer:
        for first in range(0, len(rows), 8):
            made = encode(latents[first : first + 8], "float16")
            clips = [store.clip_of(row)[0] for row in rows[first : first + 8]]
            writer.append(
                [NewRow(RowRecord(clip.id, 0, "ab" * 32, tuple(range(16))), data) for clip, data in zip(clips, made, strict=True)]
            )
        store.publish(writer)


def filled_store(path: Path, num_rows: int) -> LatentStore:
    """A cache of random rows."""
    store = empty_store(path, num_rows)
    for shard in store.pending():
        write_shard(store, shard, noise(len(store.rows_of(shard)), shard))
    return store


def shard_files(store: LatentStore) -> list[Path]:
    """The files of the latents, in order."""
    return [Path(str(store.reader.shard_path("latents", shard))) for shard in range(store.header.num_shards)]


def where(store: LatentStore, row: int) -> tuple[int, int, int]:
    """Shard, first byte and last byte + 1 of a row."""
    place = store.place(row)
    offset = place.manifest.offsets["latents"][place.number]
    return place.shard, offset, offset + place.chunk("latents").length


def draws(num_rows: int, count: int) -> Iterator[list[int]]:
    """Endless random rows, `count` at once."""
    order = random.Random(0)
    while True:
        yield order.sample(range(num_rows), count)


# -------------------------------------------------------------------------------------------------------- measurements


def compared(seconds: dict[str, list[float]], per_round: int, unit: str, aims: dict[str, str]) -> list[Row]:
    """A row for each contender; the first is ours.

    Args:
        seconds: of each round, by name.
        per_round: units in a round.
        unit: what is counted.
        aims: name in AIMS, by contender.
    """
    ours = next(iter(seconds))
    return [
        {
            "contender": name,
            f"ms a {unit}": 1000 * statistics.median(times) / per_round,
            f"{unit}s/s": per_round / statistics.median(times),
            "stjepa is faster by": ratio(seconds, ours, name),
            "aim": AIMS.get(aims.get(name, name)),
        }
        for name, times in seconds.items()
    ]


def single_reads(store: LatentStore, rounds: int, per_round: int) -> list[Row]:
    """One warm random row at a time."""
    out = store.buffer(1)
    flat = out.reshape(-1).view(np.uint8)
    array = open_array(store.path, "latents")
    maps = [np.memmap(file, np.uint8, "r") for file in shard_files(store)]
    places = [where(store, row) for row in range(store.header.num_rows)]
    rows = draws(store.header.num_rows, per_round)

    def mapped(row: int) -> None:
        shard, start, stop = places[row]
        np.copyto(flat, maps[shard][start:stop])

    def checked(row: int) -> None:
        mapped(row)
        if checksum(flat) != store.record(row).chunks["latents"].crc:
            raise AssertionError("the checksum does not match")

    ways: dict[str, Callable[[int], object]] = {
        "stjepa": lambda row: store.read([row], out=out),
        "np.memmap": mapped,
        "np.memmap + crc32c": checked,
        "zarr-python": lambda row: array[row],
    }
    if (tensorstore := opened_by_tensorstore(store)) is not None:
        ways["tensorstore"] = lambda row: tensorstore[row].read().result()
    contenders: Contenders = {name: (lambda way=way: [way(row) for row in next(rows)]) for name, way in ways.items()}  # type: ignore[misc]
    return compared(interleave(contenders, rounds), per_round, "clip", {})


def opened_by_tensorstore(store: LatentStore) -> Any | None:
    """The latents, opened by tensorstore without a cache of its own; None if it is not installed."""
    if not importlib.util.find_spec("tensorstore"):
        return None
    tensorstore: Any = importlib.import_module("tensorstore")
    return tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.path / "latents")}}, read=True).result()


def batch_reads(store: LatentStore, rounds: int) -> list[Row]:
    """64 warm random rows at once."""
    out = store.buffer(BATCH)
    array: Any = open_array(store.path, "latents")
    rows = draws(store.header.num_rows, BATCH)
    contenders: Contenders = {
        "stjepa": lambda: store.read(next(rows), out=out),
        "zarr-python, 64 rows": lambda: array.get_orthogonal_selection((next(rows), slice(None), slice(None))),
    }
    if (tensorstore := opened_by_tensorstore(store)) is not None:
        contenders["tensorstore, 64 rows"] = lambda: tensorstore[next(rows)].read().result()
    return compared(interleave(contenders, rounds), BATCH, "clip", {})


def cold_reads(store: LatentStore, rounds: int) -> list[Row]:
    """64 random rows that are on the disk only."""
    out = store.buffer(BATCH)
    flat = [row.reshape(-1).view(np.uint8) for row in out]
    files = shard_files(store)
    places = [where(store, row) for row in range(store.header.num_rows)]
    rows = draws(store.header.num_rows, BATCH)

    def mapped(threads: int) -> None:
        wanted = sorted(places[row] for row in next(rows))
        maps = {shard: np.memmap(files[shard], np.uint8, "r") for shard in {shard for shard, _, _ in wanted}}

        def copy(number: int) -> None:
            shard, start, stop = wanted[number]
            np.copyto(flat[number], maps[shard][start:stop])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(copy, range(BATCH)))

    contenders: Contenders = {
        "stjepa": lambda: store.read(next(rows), out=out),
        "mmap": lambda: mapped(1),
        f"mmap, {THREADS} threads": lambda: mapped(THREADS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders) if number % 2 else reversed(list(contenders)):
            forget(files)
            seconds[name] += interleave({name: contenders[name]}, 1, warmup=0)[name]
    return compared(seconds, BATCH, "clip", {})


def forget(files: Iterable[Path]) -> None:
    """Have the kernel drop files from its memory."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class Rows(Dataset[torch.Tensor]):
    """The rows of a cache for a DataLoader, one at a time."""

    def __init__(self, store: LatentStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return self.store.header.num_rows

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(self.store.read([row])[0])


class Batches(Dataset[torch.Tensor]):
    """The rows of a cache for a DataLoader, whole batches; the item is a list of rows."""

    def __init__(self, store: LatentStore) -> None:
        self.store = store

    def __getitem__(self, rows: list[int]) -> torch.Tensor:
        return torch.from_numpy(self.store.read(rows, threads=1))


def delivered(store: LatentStore, rounds: int) -> list[Row]:
    """A pass over all rows, as batches in the training thread."""
    num_batches = store.header.num_rows // BATCH
    shuffled = draws(store.header.num_rows, store.header.num_rows)
    ring = [store.buffer(BATCH) for _ in range(3)]

    def batches() -> Iterator[list[int]]:
        order = next(shuffled)
        return (order[number * BATCH : (number + 1) * BATCH] for number in range(num_batches))

    def fill(job: tuple[int, Sequence[int]]) -> torch.Tensor:
        number, rows = job
        return torch.from_numpy(store.read(rows, out=ring[number % len(ring)]))

    def ours() -> float:
        with closing(ordered_map(fill, enumerate(batches()), num_workers=1, look_ahead=2)) as found:
            return sum(float(batch[0, 0, 0]) for batch in found)

    options: dict[str, Any] = {"num_workers": WORKERS, "persistent_workers": True}
    single = DataLoader(Rows(store), batch_size=BATCH, shuffle=True, drop_last=True, **options)
    whole = DataLoader(Batches(store), sampler=list(batches()), batch_size=None, **options)
    contenders: Contenders = {
        "stjepa": ours,
        "DataLoader": lambda: sum(float(batch[0, 0, 0]) for batch in single),
        "DataLoader, whole batches": lambda: sum(float(batch[0, 0, 0]) for batch in whole),
    }
    return compared(interleave(contenders, rounds), num_batches * BATCH, "clip", {"DataLoader, whole batches": ""})


def durable_write(folder: Path, rounds: int) -> list[Row]:
    """One shard made safe."""
    latents = noise(BATCH, 0)
    plain = latents.numpy()
    ours = empty_store(folder / "ours", BATCH)
    theirs = empty_store(folder / "zarr", BATCH)
    zarr: Any = importlib.import_module("zarr")
    array = zarr.open_array(str(theirs.path / "latents"), mode="r+")
    file = shard_files(theirs)[0]

    def write() -> None:
        ours.manifests.discard(0)
        shard_files(ours)[0].unlink(missing_ok=True)
        write_shard(ours, 0, latents)

    def by_zarr(synced: bool) -> None:
        file.unlink(missing_ok=True)
        array[...] = plain
        if synced:
            sync(file)
            sync(file.parent)

    contenders: Contenders = {
        "stjepa": write,
        "zarr-python, synced": lambda: by_zarr(True),
        "zarr-python, not synced": lambda: by_zarr(False),
    }
    seconds = interleave(contenders, rounds)
    if file.read_bytes() != shard_files(ours)[0].read_bytes():
        raise AssertionError("zarr-python writes other bytes")
    return compared(seconds, BATCH, "clip", {})


def verification(store: LatentStore, rounds: int) -> list[Row]:
    """All bytes of the cache checked."""
    files = shard_files(store)
    lengths = [store.manifest(shard).lengths("latents") for shard in range(len(files))]
    size = store.record(0).chunks["latents"].length

    def bare(job: tuple[Path, Sequence[int | None]]) -> int:
        path, chunks = job
        buffer = roomy((size + 4,), np.uint8)
        with path.open("rb", buffering=0) as file:
            return sum(
                checksum(buffer[: os.preadv(file.fileno(), [buffer.data], number * len(buffer)) - 4]) for number in range(len(chunks))
            )

    def whole() -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(bare, zip(files, lengths, strict=True)))

    def checked() -> None:
        if not verify(store.path, level="full", runtime=Runtime(workers=WORKERS)).ok:
            raise AssertionError("the cache is damaged")

    contenders: Contenders = {"stjepa": checked, "read + crc32c": whole}
    return compared(interleave(contenders, rounds), store.header.num_rows, "clip", {})


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=1024, help="rows of the cache, 1.2 MB each")
    made.add_argument("--folder", type=Path, help="where to put the cache; default: the folder for temporary files")
    made.add_argument("--only", default="", help="some of reads,batches,cold,delivered,write,verify")
    arguments = made.parse_args()
    num_rows, scale = (2 * BATCH, 1) if arguments.quick else (arguments.rows, 5)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        store = filled_store(Path(folder) / "cache", num_rows)
        tables: dict[str, tuple[str, Callable[[], list[Row]]]] = {
            "reads": ("One clip, warm", lambda: single_reads(store, 3 * scale, BATCH)),
            "batches": ("64 clips, warm", lambda: batch_reads(store, scale)),
            "cold": ("64 clips, cold", lambda: cold_reads(store, 2 * scale)),
            "delivered": ("Clips to the training thread", lambda: delivered(store, scale)),
            "write": ("A shard of 64 clips written", lambda: durable_write(Path(folder), scale)),
            "verify": ("verify --level full", lambda: verification(store, scale)),
        }
        notes = [
            f"{num_rows} rows of {store.buffer(1).nbytes / 1e6:.1f} MB, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
        ]
        if not importlib.util.find_spec("tensorstore"):
            notes.append("tensorstore: skipped, not installed")
        for name in arguments.only.split(",") if arguments.only else tables:
            report(tables[name][0], tables[name][1](), as_json=arguments.json, notes=notes)


if __name__ == "__main__":
    main()
