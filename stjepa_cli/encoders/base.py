"""The protocol of a frozen encoder, and the features that one computes from videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stjepa_cli.core.errors import VideoError
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec, TokenGrid
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.eval_clips import EvalClips
from stjepa_cli.data.video import read_clips

POOLS = ("mean", "time", "tokens")

EncodedVideo = tuple[VideoItem, Tensor | VideoError]
"""A video with its features (C, F), or tokens (C, N, D), one row per clip; or with the reason why there are none."""


@dataclass(frozen=True)
class LabelUse:
    """Use of labels in the training of an encoder: `yes`, `no` or `unknown`.

    Attributes:
        encoder: Labels that the encoder itself was trained on.
        teacher: Labels that its teacher was trained on, or None if it has no teacher.
    """

    encoder: str
    teacher: str | None = None

    def __str__(self) -> str:
        if self.encoder != "no" or self.teacher is None:
            return self.encoder
        return {"yes": "no, its teacher did", "no": "no, nor its teacher"}.get(self.teacher, f"no, its teacher: {self.teacher}")


class Encoder(Protocol):
    """A frozen model that can be scored."""

    @property
    def name(self) -> str:
        """The path of a checkpoint, the name of a teacher, or the name of a baseline."""

    @property
    def clip(self) -> ClipSpec:
        """The clips that the encoder takes."""

    @property
    def grid(self) -> TokenGrid:
        """The token grid of a clip."""

    @property
    def dim(self) -> int:
        """Width D of a token."""

    @property
    def digest(self) -> str:
        """sha256 over weights and geometry, 64 hex digits. Neither the name nor the path is part of it."""

    @property
    def layer(self) -> int | None:
        """Number of the block whose tokens are returned, or None for the output of the encoder."""

    @property
    def saw_labels(self) -> LabelUse:
        """Use of labels in its training."""

    def encode(self, clips: Tensor) -> Tensor:
        """Encode clips uint8 (B, T, 3, S, S) into float tokens (B, N, D)."""


@dataclass(frozen=True)
class EncoderCard:
    """Facts about an encoder that are known without loading its weights.

    Attributes:
        name: The name of the encoder.
        clip: The clips that it takes, or None if that is not known yet.
        num_blocks: The number of blocks of a student, or None if the encoder is not a student.
    """

    name: str
    clip: ClipSpec | None
    num_blocks: int | None = None

    @property
    def is_student(self) -> bool:
        """True for checkpoints, exports, and the untrained student."""
        return self.num_blocks is not None


@dataclass(frozen=True)
class Failure:
    """A video that could not be used.

    Attributes:
        id: The name of the video in the lists.
        error: The reason.
        side: The side of the split, `train` or `test`, or an empty string.
    """

    id: str
    error: str
    side: str = ""


def encode_videos(
    encoder: Encoder, items: Sequence[VideoItem], eval_clips: EvalClips, *, pool: str = "mean", runtime: Runtime = Runtime()
) -> Iterator[EncodedVideo]:
    """Decode and encode videos, and yield their features in the order of `items`.

    Args:
        encoder: A frozen encoder on the device of `runtime`.
        items: The videos.
        eval_clips: The clips to cut from each video.
        pool: How the tokens of a clip become its features, one of `POOLS`.
        runtime: Device, batch size and decoding threads. At most `batch_size / C + 2 * workers` decoded videos wait in memory.
    """
    waiting: list[EncodedVideo] = []
    num_clips = 0
    for item, clips in _decode(encoder.clip, items, eval_clips, runtime):
        waiting.append((item, clips))
        num_clips += len(clips) if isinstance(clips, Tensor) else 0
        if num_clips >= runtime.batch_size:
            yield from _encode(encoder, waiting, pool, runtime)
            waiting, num_clips = [], 0
    yield from _encode(encoder, waiting, pool, runtime)


def pooled(tokens: Tensor, grid: TokenGrid, pool: str) -> Tensor:
    """Pool tokens (B, N, D) into features.

    Args:
        tokens: Tokens in (t, h, w) order.
        grid: The token grid.
        pool: `mean` gives float32 (B, D), `time` averages over space only and gives float32 (B, t * D), and `tokens` keeps all
            tokens as float16 (B, N, D).
    """
    if pool == "tokens":
        return tokens.half()
    if pool == "time":
        return tokens.float().reshape(len(tokens), grid.t, grid.num_positions, -1).mean(dim=2).flatten(1)
    return tokens.float().mean(dim=1)


def _decode(spec: ClipSpec, items: Sequence[VideoItem], eval_clips: EvalClips, runtime: Runtime) -> Iterator[EncodedVideo]:
    """Yield each video with its clips uint8 (C, T, 3, S, S), or with the error."""

    def read(item: VideoItem) -> EncodedVideo:
        try:
            return item, read_clips(item.path, spec, eval_clips)
        except VideoError as error:
            return item, error

    look_ahead = -(-runtime.batch_size // eval_clips.num_clips) + 2 * runtime.workers
    return ordered_map(read, items, num_workers=runtime.workers, look_ahead=look_ahead)


@torch.inference_mode()
def _encode(encoder: Encoder, videos: Sequence[EncodedVideo], pool: str, runtime: Runtime) -> list[EncodedVideo]:
    """Replace the clips of each video by their features."""
    decoded = [clips for _, clips in videos if isinstance(clips, Tensor)]
    if not decoded:
        return list(videos)
    device = runtime.torch_device
    batches = torch.split(torch.cat(decoded), runtime.batch_size)
    rows = torch.cat([pooled(encoder.encode(batch.to(device)), encoder.grid, pool).cpu() for batch in batches])
    features = iter(torch.split(rows, [len(clips) for clips in decoded]))
    return [(item, next(features) if isinstance(clips, Tensor) else clips) for item, clips in videos]
