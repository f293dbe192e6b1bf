"""The order of clips, and batches made from the cache's latents and the videos' pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from stjepa_cli.errors import CacheError, VideoError
from stjepa_cli.locations import Location
from stjepa_cli.prefetch import ordered_map
from stjepa_cli.shards import checksum
from stjepa_cli.store import LatentStore
from stjepa_cli.video import decode


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        rows: int64 (B,), rows of the cache.
        clips: uint8 (B, T, 3, S, S).
        latents: float16 (B, N, D), the targets.
    """

    rows: Tensor
    clips: Tensor
    latents: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(*(part.to(device, non_blocking=True) for part in (self.rows, self.clips, self.latents)))


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
    """Feeds batches, decoding ahead in threads and keeping decoded clips in memory as far as the budget goes.

    Clips come from the frames that the cache keeps or, where it keeps none, from the videos.

    Args:
        store: the cache.
        data_root: where the videos lie.
        num_workers: threads that decode.
        memory_bytes: decoded clips are kept until this much is taken.
    """

    def __init__(self, store: LatentStore, data_root: Location, *, num_workers: int, memory_bytes: int) -> None:
        self.store, self.data_root, self.num_workers = store, data_root, num_workers
        self._room = memory_bytes
        self._kept: dict[int, Tensor] = {}

    def batches(self, clips: Sequence[Sequence[int]], batch_size: int, seed: int, steps: range) -> Iterator[Batch]:
        """The batches of `steps`, in order."""
        order = (batch_rows(clips, batch_size, seed, step) for step in steps)
        sizes = min(batch_size, len(clips))
        loaded = ordered_map(
            lambda row: (row, self._clip(row)),
            (row for batch in order for row in batch),
            num_workers=self.num_workers,
            look_ahead=2 * sizes + self.num_workers,
        )
        waiting: list[tuple[int, Tensor]] = []
        for item in loaded:
            waiting.append(item)
            if len(waiting) == sizes:
                yield self._batch(waiting)
                waiting = []

    def _batch(self, items: Sequence[tuple[int, Tensor]]) -> Batch:
        rows = [row for row, _ in items]
        latents = torch.from_numpy(self.store.read(rows))
        return Batch(torch.tensor(rows), torch.stack([clip for _, clip in items]), latents)

    def _clip(self, row: int) -> Tensor:
        if row in self._kept:
            return self._kept[row]
        clip = self.store.read_frames([row], threads=1)[0] if self.store.header.frames else self._decode(row)
        if clip.nbytes <= self._room:
            self._room -= clip.nbytes
            self._kept[row] = clip
        return clip

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
