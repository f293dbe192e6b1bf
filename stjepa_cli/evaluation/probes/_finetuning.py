"""What fine-tuning trains, at which share of the rate, and on which clips in which order."""

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
from stjepa_cli.evaluation.probes.base import Sources
from stjepa_cli.models.student import Student

HEAD_STD = 2e-5
"""Of the first weights of the classifier, so that it starts by saying nothing (MAE)."""


class Classifier(nn.Module):
    """A student and a linear layer on the mean of its tokens.

    Args:
        student: it is trained.
        num_classes: C'.
        generator: draws the first weights of the linear layer.
    """

    def __init__(self, student: Student, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.student = student
        self.head = nn.Linear(student.config.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, clips: Tensor, kept: Tensor) -> Tensor:
        """Logits float32 (B, C') of clips (B, T, 3, S, S), 0 to 255.

        Args:
            clips: as above; whole numbers or not.
            kept: float32 (B, D), what each channel of the mean counts: dropout.
        """
        with autocast(clips.device):
            tokens: Tensor = self.student(clips)
        logits: Tensor = self.head(tokens.float().mean(dim=1) * kept)
        return logits

    def as_head(self, classes: Tensor, num_classes: int) -> Head:
        """The linear layer alone, for outputs that stand for `classes` int64 (C',) of `num_classes`."""
        weight, bias = (parameter.detach().clone() for parameter in (self.head.weight, self.head.bias))
        mean, std = torch.zeros_like(weight[0]), torch.ones_like(weight[0])
        return Head("linear", {"weight": weight, "bias": bias}, mean, std, classes.to(weight.device), num_classes)


def rate_share(name: str, student: Student, decay: float) -> float:
    """Share of the rate that a parameter of a classifier learns with: `decay` to the power of its depth below the head.

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
    """Which videos each step takes: a function of its fields alone.

    Attributes:
        num_videos: R.
        batch_size: of a step.
        steps_per_epoch: whole batches in a pass; what is left over is passed by, other videos each time.
        num_steps: of all epochs.
        seed: of everything.
    """

    num_videos: int
    batch_size: int
    steps_per_epoch: int
    num_steps: int
    seed: int

    @classmethod
    def of(cls, num_videos: int, *, batch_size: int, epochs: int, seed: int) -> Schedule:
        """Of `epochs` passes in batches of `batch_size`; fewer videos than that are one batch."""
        size = min(batch_size, num_videos)
        steps_per_epoch = num_videos // size
        return cls(num_videos, size, steps_per_epoch, epochs * steps_per_epoch, seed)

    def places(self) -> Generator[tuple[int, int]]:
        """(epoch from 0, place of a video) of each clip, step after step."""
        for epoch in range(self.num_steps // self.steps_per_epoch):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.num_videos, generator=generator).tolist()
            yield from ((epoch, place) for place in order[: self.steps_per_epoch * self.batch_size])


def started(sources: Sources) -> Student:
    """A copy of the student to train, which takes clips as they are cut here.

    Raises:
        ConfigError: they have another lattice than the clips that it takes.
    """
    own, clip = sources.student.spec, sources.clip
    if replace(clip, sampling=own.sampling, stride=own.stride) != own:
        raise ConfigError("the student takes other clips", got=clip, expected=own)
    student = copy.deepcopy(sources.student).requires_grad_(True)
    student.spec = clip
    return student


def batches(sources: Sources, videos: Sequence[VideoItem], schedule: Schedule) -> Generator[tuple[Tensor, Tensor]]:
    """Clips uint8 (B, T, 3, S, S) and places int64 (B,) of the videos that they are views of, decoded a batch ahead.

    Where a view is damaged the centre, which was decoded before, stands in; the listener is told once of each such video.
    """

    def read(request: tuple[int, int]) -> tuple[Tensor, int, VideoError | None]:
        epoch, place = request
        item = videos[place]
        try:
            return read_clip(item.path, sources.clip, clip_id=item.id, view=epoch + 1, seed=schedule.seed).pixels, place, None
        except VideoError as error:
            return read_clip(item.path, sources.clip).pixels, place, error

    told: set[int] = set()
    decoded = ordered_map(read, schedule.places(), num_workers=sources.workers, look_ahead=schedule.batch_size + 2 * sources.workers)
    with closing(decoded):
        for _ in range(schedule.num_steps):
            found = [next(decoded) for _ in range(schedule.batch_size)]
            for _, place, error in found:
                if error is not None and place not in told:
                    told.add(place)
                    sources.progress.note(f"trained on its centre where a view cannot be decoded: {error}")
            yield torch.stack([clip for clip, *_ in found]), torch.tensor([place for _, place, _ in found])
