"""Frozen encoders, and the features that they give of videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from stjepa_cli.datasets.base import VideoItem
from stjepa_cli.devices import autocast
from stjepa_cli.errors import VideoError
from stjepa_cli.nouns import ClipSpec, TokenGrid
from stjepa_cli.prefetch import ordered_map
from stjepa_cli.probes.base import Features
from stjepa_cli.progress import SILENT, Progress
from stjepa_cli.student import Student, load_student
from stjepa_cli.video import read_clip

if TYPE_CHECKING:
    from stjepa_cli.teachers.base import Teacher

POOLS = ("mean", "time")

Decoded = tuple[VideoItem, Tensor | VideoError]


class Encoder(Protocol):
    """A frozen model that is scored."""

    @property
    def name(self) -> str:
        """What is scored: a checkpoint's path, a teacher's name."""

    @property
    def clip(self) -> ClipSpec:
        """The clips that it takes."""

    def encode(self, clips: Tensor) -> Tensor:
        """Clips uint8 (B, T, 3, S, S) to tokens float (B, N, D)."""


class StudentEncoder:
    """A student as an encoder."""

    def __init__(self, student: Student, name: str) -> None:
        self.student, self.name, self.clip = student.eval(), name, student.spec

    @classmethod
    def open(cls, path: Path, device: torch.device) -> StudentEncoder:
        """The student of a checkpoint.

        Raises:
            CheckpointError: it is missing, damaged, or of another shape.
        """
        return cls(load_student(path, device)[0], str(path))

    def encode(self, clips: Tensor) -> Tensor:
        with autocast(clips.device):
            tokens: Tensor = self.student(clips)
        return tokens


class TeacherEncoder:
    """A teacher as an encoder: what the student is held against."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.name, self.clip = teacher, teacher.card.name, teacher.card.clip

    def encode(self, clips: Tensor) -> Tensor:
        tokens: Tensor = self.teacher.encode(clips)
        return tokens


@dataclass(frozen=True)
class Failure:
    """A video that could not be used."""

    id: str
    error: str


def extract(
    encoder: Encoder,
    items: Sequence[VideoItem],
    *,
    pool: str = "mean",
    batch_size: int = 8,
    workers: int = 2,
    device: torch.device,
    progress: Progress = SILENT,
    name: str = "features",
) -> tuple[Features, tuple[Failure, ...]]:
    """Frozen features of videos, in their order.

    Args:
        encoder: on `device`.
        items: labelled videos.
        pool: `mean` or `time`, as for `evaluate`.
        batch_size: clips that the encoder sees at once.
        workers: threads that decode; at most `batch_size + 2 * workers` decoded clips wait in memory.
        device: where the encoder is.
        progress: listener.
        name: of the task that it is shown.

    Returns:
        features of the videos that can be used, and those that cannot.
    """
    rows: list[Tensor] = []
    kept: list[VideoItem] = []
    failed: list[Failure] = []
    with progress.task(name, total=len(items), unit="videos") as task:
        for batch in _batches(_decoded(encoder.clip, items, workers, batch_size), batch_size):
            clips = [(item, pixels) for item, pixels in batch if isinstance(pixels, Tensor)]
            failed += [Failure(item.id, str(pixels)) for item, pixels in batch if isinstance(pixels, VideoError)]
            if clips:
                rows.append(_encode(encoder, torch.stack([pixels for _, pixels in clips]).to(device), pool))
                kept += [item for item, _ in clips]
            task.advance(len(batch), failed=len(failed))
    return (
        Features(
            torch.cat(rows) if rows else torch.zeros(0, 0),
            torch.tensor([-1 if item.label is None else item.label for item in kept], dtype=torch.int64),
            tuple(item.group or item.id for item in kept),
            tuple(item.id for item in kept),
        ),
        tuple(failed),
    )


def pooled(tokens: Tensor, grid: TokenGrid, pool: str) -> Tensor:
    """Tokens (B, N, D) to float32 features: `mean` (B, D), `time` (B, t * D)."""
    if pool == "time":
        return tokens.float().reshape(len(tokens), grid.t, grid.num_positions, -1).mean(dim=2).flatten(1)
    return tokens.float().mean(dim=1)


def _decoded(spec: ClipSpec, items: Sequence[VideoItem], workers: int, batch_size: int) -> Iterator[Decoded]:
    """Each video's clip uint8 (T, 3, S, S), or why there is none."""

    def read(item: VideoItem) -> Decoded:
        try:
            return item, read_clip(item.path, spec).pixels
        except VideoError as error:
            return item, error

    return ordered_map(read, items, num_workers=workers, look_ahead=batch_size + 2 * workers)


def _batches(clips: Iterator[Decoded], batch_size: int) -> Iterator[list[Decoded]]:
    batch = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.inference_mode()
def _encode(encoder: Encoder, clips: Tensor, pool: str) -> Tensor:
    """Features of clips uint8 (B, T, 3, S, S), float32 (B, F) on the CPU."""
    return pooled(encoder.encode(clips), encoder.clip.grid, pool).cpu()
