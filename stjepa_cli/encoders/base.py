"""Frozen encoders, and the features that they give of videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stjepa_cli.core.errors import VideoError
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.types import ClipSpec, TokenGrid
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.eval_clips import EvalClips
from stjepa_cli.data.video import read_clips

POOLS = ("mean", "time", "tokens")

Decoded = tuple[VideoItem, Tensor | VideoError]
"""A video and its clips uint8 (C, T, 3, S, S), later their features (C, F), or why there are none."""


class Encoder(Protocol):
    """A frozen model that is scored."""

    @property
    def name(self) -> str:
        """What is scored: a checkpoint's path, a teacher's name."""

    @property
    def clip(self) -> ClipSpec:
        """The clips that it takes."""

    @property
    def grid(self) -> TokenGrid:
        """The lattice of its tokens."""

    @property
    def digest(self) -> str:
        """What decides its tokens: sha256 over weights and geometry, 64 hex digits; not its name, not where it lies."""

    @property
    def layer(self) -> int | None:
        """Number of the block whose tokens it gives, None for those that it ends with."""

    def encode(self, clips: Tensor) -> Tensor:
        """Clips uint8 (B, T, 3, S, S) to tokens float (B, N, D)."""


@dataclass(frozen=True)
class Failure:
    """A video that could not be used: its name in the lists, why, and on which side of a split."""

    id: str
    error: str
    side: str = ""


def encode_videos(
    encoder: Encoder,
    items: Sequence[VideoItem],
    plan: EvalClips,
    *,
    pool: str = "mean",
    batch_size: int = 8,
    workers: int = 2,
    device: torch.device,
) -> Iterator[Decoded]:
    """Features of videos, in their order: (C, F) of each, a row a clip (or tokens, (C, N, D)), or why there are none.

    Args:
        encoder: on `device`.
        items: videos.
        plan: which clips of each.
        pool: how the tokens of a clip become its features, one of `POOLS`.
        batch_size: clips that the encoder sees at once.
        workers: threads that decode; the clips of at most `batch_size / C + 2 * workers` videos wait in memory.
        device: where the encoder is.
    """
    waiting: list[Decoded] = []
    num_clips = 0
    for item, clips in _decoded(encoder.clip, items, plan, workers, batch_size):
        waiting.append((item, clips))
        num_clips += len(clips) if isinstance(clips, Tensor) else 0
        if num_clips >= batch_size:
            yield from _encoded(encoder, waiting, pool, batch_size, device)
            waiting, num_clips = [], 0
    yield from _encoded(encoder, waiting, pool, batch_size, device)


def pooled(tokens: Tensor, grid: TokenGrid, pool: str) -> Tensor:
    """Tokens (B, N, D) to float32 features: `mean` (B, D), `time` (B, t * D); or as they are in float16: `tokens` (B, N, D)."""
    if pool == "tokens":
        return tokens.half()
    if pool == "time":
        return tokens.float().reshape(len(tokens), grid.t, grid.num_positions, -1).mean(dim=2).flatten(1)
    return tokens.float().mean(dim=1)


def _decoded(spec: ClipSpec, items: Sequence[VideoItem], plan: EvalClips, workers: int, batch_size: int) -> Iterator[Decoded]:
    """Each video's clips, or why there are none."""

    def read(item: VideoItem) -> Decoded:
        try:
            return item, read_clips(item.path, spec, plan)
        except VideoError as error:
            return item, error

    return ordered_map(read, items, num_workers=workers, look_ahead=-(-batch_size // plan.num_clips) + 2 * workers)


@torch.inference_mode()
def _encoded(encoder: Encoder, videos: Sequence[Decoded], pool: str, batch_size: int, device: torch.device) -> list[Decoded]:
    """Features of videos instead of their clips."""
    found = [clips for _, clips in videos if isinstance(clips, Tensor)]
    if not found:
        return list(videos)
    batches = torch.split(torch.cat(found), batch_size)
    rows = torch.cat([pooled(encoder.encode(batch.to(device)), encoder.grid, pool).cpu() for batch in batches])
    features = iter(torch.split(rows, [len(clips) for clips in found]))
    return [(item, next(features) if isinstance(clips, Tensor) else clips) for item, clips in videos]
