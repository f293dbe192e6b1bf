"""The contract of an objective: the student, the modules trained beside it, and a loss for one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stjepa_cli.core import plugins
from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.data.loader import Batch
from stjepa_cli.models.masking import SAMPLERS, Mask
from stjepa_cli.models.student import Student


@dataclass(frozen=True)
class Loss:
    """The loss of one batch.

    Attributes:
        total: Scalar to minimise, float32.
        parts: Named terms of the total, unweighted and detached.
        monitors: Named metrics that are watched and not minimised, detached.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    monitors: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def mean(losses: Sequence[Loss]) -> Loss:
        """Return the mean of several losses with the same terms."""
        if len(losses) == 1:
            return losses[0]
        parts = {name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in losses[0].parts}
        monitors = {name: torch.stack([loss.monitors[name] for loss in losses]).mean() for name in losses[0].monitors}
        return Loss(torch.stack([loss.total for loss in losses]).mean(), parts, monitors)


class Objective(nn.Module, ABC):
    """Holds `student` and the modules trained beside it; their attribute names are the groups of a checkpoint.

    A plug-in sets `Settings`, a frozen dataclass that is its table `[objective]` in `run.toml`, and `needs`.

    Args:
        student: Encoder to train.
        run: Description of the run.
        latent_dims: E, channels of the cached latents of each cache; empty for an objective that needs none.
        generator: Source of the initial weights of what is trained beside the student.
    """

    Settings: ClassVar[type[Any]]
    needs: ClassVar[frozenset[str]] = frozenset({"clips", "latents"})
    skips_modules: bool = False
    """Some steps leave some of the trained modules out, so that they get no gradient there."""

    def __init__(self, student: Student, run: RunConfig, latent_dims: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.student, self.run = student, run

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> Loss:
        """Return the loss of a batch.

        All randomness comes from `generator`, which is on the CPU. Masks are sampled for all `batch.total` clips of the step, so
        that several processes or micro-batches see what one would have seen.
        """

    def after_step(self, step: int, total_steps: int) -> None:
        """Update what follows the weights, such as a moving average; called once after each optimizer step."""

    @abstractmethod
    def flops(self) -> int:
        """Return the mean floating point operations of one forward pass of one clip."""

    def masks(self, batch: Batch, generator: torch.Generator) -> list[Mask]:
        """Sample the masks of the clips of a batch, `run.masks_per_clip` of them."""
        sampler, stop = SAMPLERS[self.run.mask_sampler], batch.start + len(batch.clips)
        sampled = (sampler(self.student.grid, batch.total, self.run.mask_ratio, generator) for _ in range(self.run.masks_per_clip))
        return [mask.rows(batch.start, stop).to(batch.clips.device) for mask in sampled]


def objective_class(run: RunConfig) -> type[Objective]:
    """Return the objective plug-in that a run names.

    Raises:
        ConfigError: There is no such objective.
    """
    found: type[Objective] = plugins.load("training.objectives", run.objective["name"])
    return found


def settings_of(run: RunConfig) -> Any:
    """Return the typed settings of a run's objective, with its defaults filled in.

    Raises:
        ConfigError: There is no such objective, or it has no such setting.
    """
    table = {name: value for name, value in run.objective.items() if name != "name"}
    return from_dict(objective_class(run).Settings, table, where="[objective]")


def with_all_settings(run: RunConfig) -> RunConfig:
    """Return the run with every setting of its objective written out, so that a later default never changes it."""
    return replace(run, objective={"name": run.objective["name"], **to_dict(settings_of(run))})


def build(student: Student, run: RunConfig, latent_dims: Sequence[int], generator: torch.Generator) -> Objective:
    """Build the objective of a run.

    Raises:
        ConfigError: There is no such objective, or its settings are wrong.
    """
    return objective_class(run)(student, run, latent_dims, generator)
