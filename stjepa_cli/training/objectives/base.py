"""What an objective is: the student, what is trained beside it, and a loss for one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from stjepa_cli.core import plugins
from stjepa_cli.core.config import RunConfig
from stjepa_cli.data.loader import Batch
from stjepa_cli.models.student import Student


@dataclass(frozen=True)
class Loss:
    """What one batch gave.

    Attributes:
        total: scalar to descend, float32.
        parts: named terms of the total, detached.
        monitors: named figures that are watched and not descended, detached.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    monitors: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def mean(losses: Sequence[Loss]) -> Loss:
        """The mean of several."""
        parts = {name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in losses[0].parts}
        monitors = {name: torch.stack([loss.monitors[name] for loss in losses]).mean() for name in losses[0].monitors}
        return Loss(torch.stack([loss.total for loss in losses]).mean(), parts, monitors)


class Objective(nn.Module, ABC):
    """Holds `student` and the modules trained beside it; their names are the groups of a checkpoint.

    Args:
        student: the encoder to train.
        run: the description of the run.
        latent_dim: E, width of the cached latents.
        generator: draws the initial weights of what is trained beside the student.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"clips", "latents"})

    def __init__(self, student: Student, run: RunConfig, latent_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.student = student

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> Loss:
        """The loss of a batch.

        All randomness (masks) comes from `generator`, which is on the CPU, and is drawn for all `batch.total` clips of the
        step: several processes or micro-batches then see what one would have seen.
        """

    def after_step(self, step: int, total_steps: int) -> None:
        """Called once after each optimizer step (moving averages)."""

    @abstractmethod
    def flops(self) -> int:
        """Floating point operations of one forward pass of one clip."""


def build(name: str, student: Student, run: RunConfig, latent_dim: int, generator: torch.Generator) -> Objective:
    """The objective plug-in `name`.

    Raises:
        ConfigError: there is none of that name.
    """
    objective: Objective = plugins.load("training.objectives", name)(student, run, latent_dim, generator)
    return objective
