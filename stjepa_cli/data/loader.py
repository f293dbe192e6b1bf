"""The order of clips, and batches made from the cache's latents and the videos' pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from stjepa_cli.core.errors import CacheError, VideoError
from stjepa_cli.core.locations import Location
from stjepa_cli.data.video import decode
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.shard_format import checksum


@dataclass(frozen=True)
class Batch:
    """Clips of one step, or the share of it that one process takes at once.

    Attributes:
        rows: int64 (B,), rows of the cache.
        clips: uint8 (B, T, 3, S, S).
        latents: float16 (B, N, D), the targets.
        start: place of the first of them among the clips of the step.
        total: clips of the step, over all processes and micro-batches.
    """

    rows: Tensor
    clips: Tensor
    latents: Tensor
    start: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        if not self.total:
            object.__setattr__(self, "total", len(self.rows))

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in ("rows", "clips", "latents")})


@dataclass(frozen=True)
class Request:
    """Rows to be read into a batch, and their place in the step."""

    rows: Sequence[int]
    start: int
    total: int


def views_of(rows: Iterable[int], num_views: int) -> list[tuple[int, ...]]:
    """The rows of each clip that has any, in order: with K views a clip has up to K rows."""
    return [tuple(group) for _, group in groupby(rows, key=lambda row: row // num_views)]


def steps_per_epoch(num_clips: int, batch_size: int) -> int:
    """Whole batches in a pass; a set smaller than a batch is one."""
    return max(1, num_clips // batch_size)


def batch_rows(clips: Sequence[Sequence[int]], batch_size: int, seed: int, step: int) -> list[int]:
    """The rows of the batch of a step (from 0): a pure function of its arguments.

    Each pass over the clips is a new permutation and takes one view of each, both drawn from the seed and the number of the
    pass.

    Args:
        clips: the rows of each clip, as `views_of` gives them.
        batch_size: rows of a batch.
        seed: of the run.
        step: of the run.
    """
    epoch, place = divmod(step, steps_per_epoch(len(clips), batch_size))
    order, draws = _order(len(clips), seed, epoch)
    chosen = order[place * batch_size : (place + 1) * batch_size]
    return [clips[i][draws[i] % len(clips[i])] for i in chosen]


@lru_cache(maxsize=2)
def _order(num_clips: int, seed: int, epoch: int) -> tuple[list[int], list[int]]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(num_clips, generator=generator).tolist()
    draws: list[int] = torch.randint(2**31, (num_clips,), generator=generator).tolist()
    return order, draws


class ClipFeed:
    """Fills a ring of reused batches, some ahead, in threads of this process.

    Clips come from the frames that the cache keeps or, where it keeps none, from the videos; decoded clips are kept in memory
    as far as the budget goes. Decoding, reading and checksums release the interpreter's lock, so threads do, and a batch
    costs no copy between processes. (SPDL, arXiv 2504.20067, makes the case.)

    Args:
        store: the cache.
        data_root: where the videos lie.
        num_workers: threads that decode.
        memory_bytes: decoded clips are kept until this much is taken.
        pinned: batches lie in page-locked memory, from which a GPU can copy while it computes.
        slots: batches of the ring.
    """

    def __init__(
        self, store: LatentStore, data_root: Location, *, num_workers: int, memory_bytes: int, pinned: bool = False, slots: int = 3
    ) -> None:
        self.store, self.data_root, self.num_workers = store, data_root, num_workers
        self.pinned, self.num_slots = pinned, slots
        self._room = memory_bytes
        self._kept: dict[int, Tensor] = {}

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """The batches that are asked for, in order; each is valid until the next is taken.

        Raises:
            CacheError: latents are damaged, or a clip no longer has the pixels that the teacher saw.
        """
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="stjepa-feed")
        free: deque[_Slot] = deque()
        under_way: deque[tuple[Request, _Slot, list[Future[None]]]] = deque()
        source = iter(requests)
        try:
            while True:
                while len(under_way) < self.num_slots - 1 and (request := next(source, None)) is not None:
                    slot = free.popleft() if free and free[0].holds(request) else _Slot(self.store, len(request.rows), self.pinned)
                    under_way.append((request, slot, self._fill(pool, request, slot)))
                if not under_way:
                    return
                request, slot, parts = under_way.popleft()
                for part in parts:
                    part.result()
                yield slot.batch(request)
                free.append(slot)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, pool: ThreadPoolExecutor, request: Request, slot: _Slot) -> list[Future[None]]:
        """Start to fill a slot: one task for each clip, one for all latents."""
        clips = [pool.submit(self._clip, row, slot.clips[i]) for i, row in enumerate(request.rows)]
        return [pool.submit(self._latents, request.rows, slot), *clips]

    def _latents(self, rows: Sequence[int], slot: _Slot) -> None:
        self.store.read(rows, slot.latents.numpy()[: len(rows)], threads=1)

    def _clip(self, row: int, into: Tensor) -> None:
        kept = self._kept.get(row)
        if kept is not None:
            into.copy_(kept)
            return
        if self.store.header.frames:
            self.store.read_frames([row], into.unsqueeze(0), threads=1)
        else:
            into.copy_(self._decode(row))
        if into.nbytes <= self._room:
            self._room -= into.nbytes
            self._kept[row] = into.clone()

    def _decode(self, row: int) -> Tensor:
        """The very pixels that the teacher saw.

        Raises:
            CacheError: they can no longer be had.
        """
        ref = self.store.ref(row, self.data_root)
        try:
            clip = decode(ref)
        except VideoError as error:
            raise CacheError(
                f"the video of clip {self.store.record(row).name} cannot be used any more ({error.reason})",
                got=ref.path,
                fix="Name the folder that the cache was built from with --data-root.",
            ) from error
        if checksum(clip.numpy()) != self.store.record(row).pixels_crc:
            raise CacheError(
                f"clip {self.store.record(row).name} no longer has the pixels that the teacher saw",
                got=ref.path,
                fix="The file or the decoder has changed: put the old one back, or build the cache again with --overwrite.",
            )
        return clip


class _Slot:
    """One reused batch on the host."""

    def __init__(self, store: LatentStore, size: int, pinned: bool) -> None:
        clip, header = store.header.teacher.clip, store.header
        self.clips = torch.empty((size, clip.num_frames, 3, clip.size_px, clip.size_px), dtype=torch.uint8, pin_memory=pinned)
        shape = (size, header.num_tokens, header.latent_dim)
        self.latents = torch.empty(shape, dtype=torch.float16, pin_memory=True) if pinned else torch.from_numpy(store.buffer(size))

    def holds(self, request: Request) -> bool:
        """Whether it has room for a request."""
        return len(self.clips) >= len(request.rows)

    def batch(self, request: Request) -> Batch:
        """What is in it, not copied."""
        size = len(request.rows)
        return Batch(torch.tensor(list(request.rows)), self.clips[:size], self.latents[:size], request.start, request.total)


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a device: a GPU copies the next one while it computes on this one."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            moved, done = batch.to(device), copying.record_event()
        if ahead:
            yield _arrived(*ahead)
        done.synchronize()  # the host's buffers may be filled again from here on
        ahead = moved, done
    if ahead:
        yield _arrived(*ahead)


def _arrived(batch: Batch, done: torch.cuda.Event) -> Batch:
    """Let the computing stream wait for a copy, and keep its memory until that stream is through with it."""
    stream = torch.cuda.current_stream()
    stream.wait_event(done)
    for part in (batch.rows, batch.clips, batch.latents):
        part.record_stream(stream)
    return batch
