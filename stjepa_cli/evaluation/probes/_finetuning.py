"""Parts of fine-tuning: the model, layer-wise learning rates, and the schedule of clips."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stjepa_cli.core.devices import autocast
from stjepa_cli.core.errors import ConfigError, VideoError
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.video import read_clip
from stjepa_cli.encoders.heads import Head
from stjepa_cli.evaluation.probes.base import VideoSource
from stjepa_cli.models.student import Student

HEAD_STD = 2e-5
"""Deviation of the initial weights of the classifier, so small that it starts with equal scores (MAE)."""


class Classifier(nn.Module):
    """A student and a linear layer on the mean of its tokens.

    Args:
        student: The student to train.
        num_classes: C'.
        generator: Random generator of the initial weights of the linear layer.
    """

    def __init__(self, student: Student, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.student = student
        self.head = nn.Linear(student.config.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, clips: Tensor, kept: Tensor) -> Tensor:
        """Return logits float32 (B, C').

        Args:
            clips: Clips (B, T, 3, S, S) with values from 0 to 255, of any type.
            kept: float32 (B, D), the dropout factor of each channel.
        """
        with autocast(clips.device):
            tokens: Tensor = self.student(clips)
        logits: Tensor = self.head(tokens.float().mean(dim=1) * kept)
        return logits

    def as_head(self, classes: Tensor, num_classes: int) -> Head:
        """Return the linear layer as a head, whose outputs stand for `classes` int64 (C',) of `num_classes`."""
        weight, bias = (parameter.detach().clone() for parameter in (self.head.weight, self.head.bias))
        mean, std = torch.zeros_like(weight[0]), torch.ones_like(weight[0])
        return Head("linear", {"weight": weight, "bias": bias}, mean, std, classes.to(weight.device), num_classes)


def rate_factor(name: str, student: Student, decay: float) -> float:
    """Return the factor of the learning rate of a parameter: `decay` to the power of its depth below the head.

    ```text
    head, norm 1    last block decay    ...    first block decay^L    embedding decay^(L + 1)
    ```
    """
    num_factorized, num_blocks = len(student.factorized), len(student.factorized) + len(student.joint)
    match name.split("."):
        case ["student", "embed", *_]:
            return decay ** (num_blocks + 1)
        case ["student", "factorized", number, *_]:
            return float(decay ** (num_blocks - int(number)))
        case ["student", "joint", number, *_]:
            return float(decay ** (num_blocks - num_factorized - int(number)))
        case _:
            return 1.0


@dataclass(frozen=True)
class Schedule:
    """The videos of each step, decided by these fields alone.

    Attributes:
        num_videos: R.
        batch_size: Clips per step.
        steps_per_epoch: Whole batches in a pass. The videos left over are skipped, other ones in each pass.
        num_steps: Steps of all epochs.
        seed: Random seed.
    """

    num_videos: int
    batch_size: int
    steps_per_epoch: int
    num_steps: int
    seed: int

    @classmethod
    def of(cls, num_videos: int, *, batch_size: int, epochs: int, seed: int) -> Schedule:
        """Return the schedule of `epochs` passes in batches of `batch_size`. Fewer videos than that are one batch."""
        size = min(batch_size, num_videos)
        steps_per_epoch = num_videos // size
        return cls(num_videos, size, steps_per_epoch, epochs * steps_per_epoch, seed)

    def clips(self) -> Generator[tuple[int, int]]:
        """Yield (epoch from 0, index of the video) of each clip, step after step."""
        for epoch in range(self.num_steps // self.steps_per_epoch):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.num_videos, generator=generator).tolist()
            yield from ((epoch, index) for index in order[: self.steps_per_epoch * self.batch_size])


def trainable_copy(source: VideoSource) -> Student:
    """Return a trainable copy of the student that takes clips as `source` cuts them.

    Raises:
        ConfigError: These clips have another geometry than the student takes.
    """
    own, clip = source.student.spec, source.clip
    if replace(clip, sampling=own.sampling, stride=own.stride) != own:
        raise ConfigError("the student takes other clips", got=clip, expected=own)
    student = copy.deepcopy(source.student).requires_grad_(True)
    student.spec = clip
    return student


def batches(source: VideoSource, videos: Sequence[VideoItem], schedule: Schedule) -> Generator[tuple[Tensor, Tensor]]:
    """Yield clips uint8 (B, T, 3, S, S) and the indices int64 (B,) of their videos, decoded a batch ahead.

    Where a random view cannot be decoded, the centre clip takes its place, and a message names the video once.
    """

    def read(request: tuple[int, int]) -> tuple[Tensor, int, VideoError | None]:
        epoch, index = request
        item = videos[index]
        try:
            return read_clip(item.path, source.clip, clip_id=item.id, view=epoch + 1, seed=schedule.seed).pixels, index, None
        except VideoError as error:
            return read_clip(item.path, source.clip).pixels, index, error

    reported: set[int] = set()
    workers = source.runtime.workers
    decoded = ordered_map(read, schedule.clips(), num_workers=workers, look_ahead=schedule.batch_size + 2 * workers)
    with closing(decoded):
        for _ in range(schedule.num_steps):
            found = [next(decoded) for _ in range(schedule.batch_size)]
            for _, index, error in found:
                if error is not None and index not in reported:
                    reported.add(index)
                    source.runtime.progress.note(f"the centre clip takes the place of a view that cannot be decoded: {error}")
            yield torch.stack([clip for clip, *_ in found]), torch.tensor([index for _, index, _ in found])
