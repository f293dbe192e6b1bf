"""The order of clips, and batches made from the cache's latents and the videos' pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.errors import CacheError, VideoError
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


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Whole batches in a pass; a set smaller than a batch is one."""
    return max(1, num_rows // batch_size)


def batch_rows(rows: Sequence[int], batch_size: int, seed: int, step: int) -> list[int]:
    """The rows of the batch of a step (from 0): a pure function of its arguments.

    Each pass over the rows is a new permutation, drawn from the seed and the number of the pass.
    """
    epoch, place = divmod(step, steps_per_epoch(len(rows), batch_size))
    return [rows[i] for i in _order(len(rows), seed, epoch)[place * batch_size : (place + 1) * batch_size]]


@lru_cache(maxsize=2)
def _order(num_rows: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
    return order


class ClipFeed:
    """Feeds batches, decoding ahead in threads and keeping decoded clips in memory as far as the budget goes.

    Args:
        store: the cache.
        data_root: where the videos lie.
        num_workers: threads that decode.
        memory_bytes: decoded clips are kept until this much is taken.
    """

    def __init__(self, store: LatentStore, data_root: Path, *, num_workers: int, memory_bytes: int) -> None:
        self.store, self.data_root, self.num_workers = store, data_root, num_workers
        self._room = memory_bytes
        self._kept: dict[int, Tensor] = {}

    def batches(self, rows: Sequence[int], batch_size: int, seed: int, steps: range) -> Iterator[Batch]:
        """The batches of `steps`, in order."""
        order = (batch_rows(rows, batch_size, seed, step) for step in steps)
        sizes = min(batch_size, len(rows))
        clips = ordered_map(
            lambda row: (row, self._clip(row)),
            (row for batch in order for row in batch),
            num_workers=self.num_workers,
            look_ahead=2 * sizes + self.num_workers,
        )
        waiting: list[tuple[int, Tensor]] = []
        for item in clips:
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
        clip = self._decode(row)
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
                f"the video of clip {self.store.clips[row].id} cannot be used any more ({error.reason})",
                got=ref.path,
                fix="Name the folder that the cache was built from with --data-root.",
            ) from error
        if checksum(clip.numpy()) != self.store.record(row).pixels_crc:
            raise CacheError(
                f"clip {self.store.clips[row].id} no longer has the pixels that the teacher saw",
                got=ref.path,
                fix="The file or the decoder has changed: put the old one back, or build the cache again with --overwrite.",
            )
        return clip
