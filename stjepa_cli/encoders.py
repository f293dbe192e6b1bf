"""Frozen encoders, and the features that they give of videos."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from stjepa_cli.config import to_dict
from stjepa_cli.datasets.base import VideoItem
from stjepa_cli.devices import autocast
from stjepa_cli.errors import ConfigError, VideoError
from stjepa_cli.nouns import ClipSpec, TokenGrid, digest
from stjepa_cli.plans import ClipPlan
from stjepa_cli.prefetch import ordered_map
from stjepa_cli.student import Student, load_student
from stjepa_cli.video import read_clips

if TYPE_CHECKING:
    from stjepa_cli.teachers.base import Teacher

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


class StudentEncoder:
    """A student as an encoder.

    Args:
        student: frozen.
        name: what it is called.
        layer: of `Student.forward_features`, None for the student's own tokens.
    """

    def __init__(self, student: Student, name: str, layer: int | None = None) -> None:
        self.student, self.name, self.clip = student.eval(), name, student.spec
        number = None if layer is None else student.block_number(layer)
        self.layer = None if number == student.block_number(-1) else number

    @classmethod
    def open(cls, path: Path, device: torch.device) -> StudentEncoder:
        """The student of a checkpoint.

        Raises:
            CheckpointError: it is missing, damaged, or of another shape.
        """
        return cls(load_student(path, device)[0], str(path))

    @property
    def grid(self) -> TokenGrid:
        return self.clip.grid

    @cached_property  # it is frozen, and hashing takes as long as some videos
    def digest(self) -> str:
        tensors = self.student.state_dict() | {name: self.student.get_buffer(name) for name in ("pixel_mean", "pixel_std")}
        weights = hashlib.sha256()
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            weights.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest({"student": to_dict(self.student.config), "clip": to_dict(self.clip), "weights": weights.hexdigest()})

    def encode(self, clips: Tensor) -> Tensor:
        with autocast(clips.device):
            return self.student.forward_features(clips, self.layer or -1)


class TeacherEncoder:
    """A teacher as an encoder: what the student is held against."""

    layer = None

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.name, self.clip = teacher, teacher.card.name, teacher.card.clip

    @property
    def grid(self) -> TokenGrid:
        return self.clip.grid

    @property
    def digest(self) -> str:
        card = self.teacher.card
        weights = {"weights": card.weights_digest, "settings": card.settings_digest}
        return digest({"teacher": card.kind, **weights, "dim": card.dim, "clip": to_dict(card.clip)})

    def encode(self, clips: Tensor) -> Tensor:
        tokens: Tensor = self.teacher.encode(clips)
        return tokens


def at_layer(encoder: Encoder, layer: int | None) -> Encoder:
    """The same encoder, giving the tokens of another block.

    Raises:
        ConfigError: it is no student, or has no such block.
    """
    if layer is None:
        return encoder
    if not isinstance(encoder, StudentEncoder):
        raise ConfigError("only students give the tokens of a block", got=f"layer {layer} of {encoder.name}", fix="Leave out --layer.")
    return StudentEncoder(encoder.student, encoder.name, layer)


@dataclass(frozen=True)
class Failure:
    """A video that could not be used: its name in the lists, why, and on which side of a split."""

    id: str
    error: str
    side: str = ""


def encode_videos(
    encoder: Encoder,
    items: Sequence[VideoItem],
    plan: ClipPlan,
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


def _decoded(spec: ClipSpec, items: Sequence[VideoItem], plan: ClipPlan, workers: int, batch_size: int) -> Iterator[Decoded]:
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
