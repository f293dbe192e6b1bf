"""Fills shards: decoders, teacher and writer work at the same time, with bounded memory.

```text
decoding threads          caller's thread             writing thread
video -> clip, JPEGs  ->  teacher, projection     ->  append, sync, journal; publish, manifest
  (a few clips ahead)       (one batch)                 (at most two batches wait)
```
"""

from __future__ import annotations

import ctypes
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stjepa_cli.core.errors import TeacherError, VideoError
from stjepa_cli.core.files import file_digest
from stjepa_cli.core.locations import driver_errors
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.video import read_clip
from stjepa_cli.store import frames, quantization
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.projection import Projection
from stjepa_cli.store.records import CacheHeader, RowRecord
from stjepa_cli.store.shard_format import checksum
from stjepa_cli.store.shard_writer import NewRow, ShardWriter
from stjepa_cli.teachers.base import Teacher

MAX_WAITING = 2


@dataclass(frozen=True)
class Loaded:
    """A row on its way: with a clip for the teacher, with bytes that are stored already, or failed.

    Attributes:
        record: The origin of the row, or the reason why it could not be made.
        pixels: uint8 (T, 3, S, S), None if there is nothing to encode.
        data: The bytes, by column, that are known before the teacher has run.
    """

    record: RowRecord
    pixels: Tensor | None = None
    data: dict[str, bytes] = field(default_factory=dict)


@dataclass
class BuildCounts:
    """The rows that a build has dealt with.

    Attributes:
        written: Rows that were stored.
        failed: Rows that were recorded as failed.
        kept: Rows that an earlier, stopped build had stored in a shard that this one resumed.
        cosine_sum: Sum over the rows written of the cosine between int8 latents and the teacher's.
    """

    written: int = 0
    failed: int = 0
    kept: int = 0
    cosine_sum: float = 0.0

    def add(self, other: BuildCounts) -> None:
        """Add other counts to these."""
        self.written += other.written
        self.failed += other.failed
        self.kept += other.kept
        self.cosine_sum += other.cosine_sum

    @property
    def cosine(self) -> float | None:
        """Mean cosine of the rows written, None without any."""
        return round(self.cosine_sum / self.written, 6) if self.written else None


OnBatch = Callable[[BuildCounts], None]


class ShardBuilder:
    """Fills shards of one cache with the latents of one teacher.

    Args:
        store: The cache.
        items: The videos, in the order of its clip list.
        teacher: The teacher that its header names.
        runtime: Decoding threads, and rows per batch of the teacher.
        retry: Rows that were recorded as failed and are to be tried again.
    """

    def __init__(
        self, store: LatentStore, items: Sequence[VideoItem], teacher: Teacher, runtime: Runtime, *, retry: frozenset[int] = frozenset()
    ) -> None:
        self.store, self.items, self.teacher = store, items, teacher
        self.batch_size, self.workers, self.retry = runtime.batch_size, runtime.workers, retry
        self.projection: Projection = store.projection()
        self._rewritten = {row // store.header.rows_per_shard for row in retry}

    def run(self, shards: Sequence[int], on_batch: OnBatch) -> BuildCounts:
        """Fill shards, one after the other.

        Batches begin at multiples of the batch size within a shard, so that a build that was stopped and resumed gives the
        teacher the same batches, and stores the same bytes, as one that was not.

        Args:
            shards: The shards to fill; those that are partly filled are completed.
            on_batch: Called with the counts of rows once they are safe.

        Raises:
            CacheError: Another process is writing one of them.
            TeacherError: Latents are not finite.
            StjepaError: The disk is full.
        """
        total = BuildCounts()

        def safe(counts: BuildCounts) -> None:
            total.add(counts)
            on_batch(counts)

        queue = _RowQueue(self.store, shards, safe)
        # a whole batch is decoded while the teacher works on another
        rows = ordered_map(self._load, queue, num_workers=self.workers, look_ahead=self.batch_size + 2 * self.workers)
        with closing(queue), _Output(queue, safe) as output, closing(rows):
            batch: list[Loaded] = []
            for row, loaded in rows:
                batch.append(loaded)
                shard, number = divmod(row, self.store.header.rows_per_shard)
                last = row == self.store.rows_of(shard)[-1]
                if last or (number + 1) % self.batch_size == 0:
                    output.put(shard, *self.encode(batch), finish=last)
                    batch = []
            output.drain()
        return total

    # ---- one row, in a decoding thread --------------------------------------------------------------------------

    def _load(self, row: int) -> tuple[int, Loaded]:
        if row not in self.retry and row // self.store.header.rows_per_shard in self._rewritten:
            return row, self._stored(row)
        clip, view = divmod(row, self.store.header.num_views)
        return row, load(self.items[clip], self.store.header, view)

    def _stored(self, row: int) -> Loaded:
        """Return a row of a shard that is written again because of its other rows."""
        record = self.store.record(row)
        if record.error is not None:
            return Loaded(record)
        place = self.store.place(row)
        data = {name: self.store.reader.chunk(place, name).tobytes() for name in record.chunks}
        return Loaded(replace(record, chunks={}), data=data)

    # ---- one batch, in the caller's thread ----------------------------------------------------------------------

    def encode(self, batch: Sequence[Loaded]) -> tuple[list[NewRow], BuildCounts]:
        """Run the teacher over a batch; return its rows, ready to be written, and their counts."""
        clips = [entry.pixels for entry in batch if entry.pixels is not None]
        counts = BuildCounts(len(clips), failed=sum(entry.record.error is not None for entry in batch))
        made: Iterator[dict[str, bytes]] = iter(())
        if clips:
            latents = self.projection(self.teacher.encode(torch.stack(clips)))
            if not torch.isfinite(latents.half()).all():
                raise TeacherError(
                    f"{self.teacher.card.name} gives latents that are not finite", fix="Try `--device cpu`, or another teacher."
                )
            rows = quantization.encode(latents, self.store.header.dtype)
            if self.store.header.dtype != "float16":
                counts.cosine_sum = quantization.cosine(latents, rows, self.store.header.dtype) * len(clips)
            made = iter(rows)
        return [NewRow(entry.record, entry.data | (next(made) if entry.pixels is not None else {})) for entry in batch], counts


def load(item: VideoItem, header: CacheHeader, view: int) -> Loaded:
    """Decode one view of a video; if it cannot be used, the reason goes into its record."""
    spec: ClipSpec = header.teacher.clip
    try:
        clip = read_clip(item.path, spec, clip_id=item.id, view=view, seed=header.view_seed)
        with driver_errors():
            source = file_digest(item.path)
    except VideoError as error:
        return Loaded(RowRecord(item.id, view, error=error.reason))
    except OSError as error:
        return Loaded(RowRecord(item.id, view, error=f"it cannot be read ({error.strerror or error})"))
    box = clip.ref.crop
    record = RowRecord(
        id=item.id,
        view=view,
        source_digest=source,
        frame_indices=clip.ref.frame_indices,
        crop=(box.top, box.left, box.height, box.width),
        pixels_crc=checksum(clip.pixels.numpy()),
    )
    return Loaded(record, clip.pixels, {"frames": frames.encode_clip(clip.pixels)} if header.frames else {})


class _RowQueue:
    """The rows to load, shard after shard; the writer of a shard is opened when the decoders reach it."""

    def __init__(self, store: LatentStore, shards: Sequence[int], safe: OnBatch) -> None:
        self.store, self.shards, self.safe = store, shards, safe
        self._open: dict[int, tuple[ShardWriter, ExitStack]] = {}

    def __iter__(self) -> Iterator[int]:
        for shard in self.shards:
            stack = ExitStack()
            writer = stack.enter_context(self.store.writing(shard))
            self._open[shard] = writer, stack
            if writer.rows:
                self.safe(BuildCounts(kept=len(writer.rows)))
            rest = self.store.rows_of(shard)[len(writer.rows) :]
            if not rest:  # a build was killed between the last row and the manifest
                self.publish(shard)
            yield from rest

    def writer(self, shard: int) -> ShardWriter:
        """Return the open writer of a shard."""
        return self._open[shard][0]

    def publish(self, shard: int) -> None:
        """Move a complete shard to its place and release it."""
        writer, stack = self._open.pop(shard)
        with stack:
            self.store.publish(writer)

    def close(self) -> None:
        """Release incomplete shards; their safe rows stay."""
        for _, stack in self._open.values():
            stack.close()


class _Output:
    """The writing thread: takes batches in order and reports when they are safe."""

    def __init__(self, queue: _RowQueue, safe: OnBatch) -> None:
        self.queue, self.safe = queue, safe
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stjepa-write")
        self._waiting: deque[Future[BuildCounts]] = deque()
        self._broken = False

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish writing what was handed over, even if the build was interrupted."""
        self._pool.shutdown(wait=True)
        for done in self._waiting:
            with suppress(Exception):  # the first error is being raised already
                self.safe(done.result())

    def put(self, shard: int, rows: Sequence[NewRow], counts: BuildCounts, *, finish: bool) -> None:
        """Write rows; block while too many batches are waiting."""
        self._waiting.append(self._pool.submit(self._write, shard, rows, counts, finish))
        while len(self._waiting) > MAX_WAITING:
            self.safe(self._waiting.popleft().result())

    def drain(self) -> None:
        """Wait until all batches are written."""
        while self._waiting:
            self.safe(self._waiting.popleft().result())

    def _write(self, shard: int, rows: Sequence[NewRow], counts: BuildCounts, finish: bool) -> BuildCounts:
        if self._broken:  # a batch before this one was not written: nothing may follow it
            return BuildCounts()
        self._broken = True
        self.queue.writer(shard).append(rows)
        if finish:
            self.queue.publish(shard)
            _trim_memory()
        self._broken = False
        return counts


def _trim_memory() -> None:
    """Return freed memory to the system: glibc keeps the gaps that clips and batches leave (measured)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def failures_to_retry(store: LatentStore) -> frozenset[int]:
    """Return the failed rows that `failures.jsonl` lists, or all of them if there is no such file."""
    failed = {failure.row for failure in store.failures()}
    try:
        with driver_errors():
            lines = (store.path / "failures.jsonl").read_bytes().decode().splitlines()
        return frozenset(failed & {int(json.loads(line)["row"]) for line in lines if line.strip()})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return frozenset(failed)
