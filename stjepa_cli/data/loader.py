"""Order the clips of a run, and fill batches with the cache's latents and the videos' pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from stjepa_cli.data.training_clips import TrainingClips
from stjepa_cli.store.latent_store import LatentStore


@dataclass(frozen=True)
class Batch:
    """The clips of one step, or the part of them that one process takes at once.

    Attributes:
        rows: int64 (B,), rows of the cache.
        clips: uint8 (B, T, 3, S, S).
        latents: float16 (B, N, E), the targets; (B, 0, 0) where there are none.
        start: Place of the first clip among the clips of the step.
        total: Number of clips of the step, over all processes and micro-batches.
        second_latents: float16 (B, N, E2), the targets of a second cache.
    """

    rows: Tensor
    clips: Tensor
    latents: Tensor
    start: int = 0
    total: int = 0
    second_latents: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.total:
            object.__setattr__(self, "total", len(self.rows))

    @property
    def targets(self) -> tuple[Tensor, ...]:
        """Return the latents of each cache."""
        return (self.latents,) if self.second_latents is None else (self.latents, self.second_latents)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        named = {name: getattr(self, name) for name in ("rows", "clips", "latents", "second_latents")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on another device."""
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class Request:
    """The rows of a batch, and their place in the step."""

    rows: Sequence[int]
    start: int
    total: int


def steps_per_epoch(num_clips: int, batch_size: int) -> int:
    """Return the number of whole batches in a pass; a set smaller than a batch is one."""
    return max(1, num_clips // batch_size)


def batch_rows(clips: Sequence[Sequence[int]], batch_size: int, seed: int, step: int) -> list[int]:
    """Return the rows of the batch of a step: a pure function of its arguments.

    Each pass over the clips is a new permutation and takes one random view of each; both depend on the seed and the number
    of the pass alone.

    Args:
        clips: Rows of each clip, from `views_of`.
        batch_size: Number of rows in a batch.
        seed: Seed of the run.
        step: Number of the step, 0 the first.
    """
    epoch, place = divmod(step, steps_per_epoch(len(clips), batch_size))
    order, views = _shuffled(len(clips), seed, epoch)
    chosen = order[place * batch_size : (place + 1) * batch_size]
    return [clips[i][views[i] % len(clips[i])] for i in chosen]


@lru_cache(maxsize=2)
def _shuffled(num_clips: int, seed: int, epoch: int) -> tuple[list[int], list[int]]:
    """Return the order of clips in a pass, and a random number for each clip that chooses its view."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(num_clips, generator=generator).tolist()
    views: list[int] = torch.randint(2**31, (num_clips,), generator=generator).tolist()
    return order, views


class ClipFeed:
    """Fills a ring of reused batches ahead of time, in threads of this process.

    Clips come from the frames that the cache keeps or, where it keeps none, from the videos. Decoded clips stay in memory
    as far as the budget goes. Decoding, reading and checksums release the interpreter's lock, so threads suffice, and a
    batch is never copied between processes (SPDL, arXiv 2504.20067, makes the case).

    Args:
        source: The clips of the run.
        num_workers: Threads that decode.
        memory_bytes: Budget for decoded clips that stay in memory.
        pinned: Put batches into page-locked memory, from which a GPU can copy while it computes.
        slots: Number of batches in the ring.
    """

    def __init__(self, source: TrainingClips, *, num_workers: int, memory_bytes: int, pinned: bool = False, slots: int = 3) -> None:
        self.source, self.num_workers = source, num_workers
        self.pinned, self.num_slots = pinned, slots
        self._room = memory_bytes
        self._kept: dict[int, Tensor] = {}

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batches that are asked for, in order; each is valid until the next is taken.

        Raises:
            CacheError: Latents are damaged, or a clip no longer has the pixels that the teacher saw.
        """
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="stjepa-feed")
        free: deque[_Slot] = deque()
        pending: deque[tuple[Request, _Slot, list[Future[None]]]] = deque()
        source = iter(requests)
        try:
            while True:
                while len(pending) < self.num_slots - 1 and (request := next(source, None)) is not None:
                    slot = free.popleft() if free and free[0].holds(request) else _Slot(self.source, len(request.rows), self.pinned)
                    pending.append((request, slot, self._fill(pool, request, slot)))
                if not pending:
                    return
                request, slot, parts = pending.popleft()
                for part in parts:
                    part.result()
                yield slot.batch(request)
                free.append(slot)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, pool: ThreadPoolExecutor, request: Request, slot: _Slot) -> list[Future[None]]:
        """Start filling a slot: one task for each clip, one for the latents of each cache."""
        clips = [pool.submit(self._clip, row, slot.clips[i]) for i, row in enumerate(request.rows)]
        latents = [pool.submit(_read, store, request.rows, into) for store, into in zip(self.source.stores, slot.latents, strict=True)]
        return [*latents, *clips]

    def _clip(self, row: int, into: Tensor) -> None:
        kept = self._kept.get(row)
        if kept is not None:
            into.copy_(kept)
            return
        self.source.read_pixels(row, into)
        if into.nbytes <= self._room:
            self._room -= into.nbytes
            self._kept[row] = into.clone()


def _read(store: LatentStore, rows: Sequence[int], into: Tensor) -> None:
    store.read(rows, into.numpy()[: len(rows)], threads=1)


class _Slot:
    """The memory of one batch on the host, used again and again."""

    def __init__(self, source: TrainingClips, size: int, pinned: bool) -> None:
        clip = source.spec
        self.clips = torch.empty((size, clip.num_frames, 3, clip.size_px, clip.size_px), dtype=torch.uint8, pin_memory=pinned)
        self.latents = [_latent_buffer(store, size, pinned) for store in source.stores]

    def holds(self, request: Request) -> bool:
        """Tell if it has room for a request."""
        return len(self.clips) >= len(request.rows)

    def batch(self, request: Request) -> Batch:
        """Return its content, not copied."""
        size = len(request.rows)
        latents = [part[:size] for part in self.latents] or [torch.empty(size, 0, 0, dtype=torch.float16)]
        return Batch(torch.tensor(list(request.rows)), self.clips[:size], latents[0], request.start, request.total, *latents[1:])


def _latent_buffer(store: LatentStore, size: int, pinned: bool) -> Tensor:
    if not pinned:
        return torch.from_numpy(store.buffer(size))
    return torch.empty((size, store.header.num_tokens, store.header.latent_dim), dtype=torch.float16, pin_memory=True)


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to a device; a GPU copies the next one while it computes on this one."""
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
    """Let the computing stream wait for a copy, and keep its memory until that stream has finished with it."""
    stream = torch.cuda.current_stream()
    stream.wait_event(done)
    for part in batch.tensors.values():
        part.record_stream(stream)
    return batch
