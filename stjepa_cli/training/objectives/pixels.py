"""Predict the normalised pixels of hidden tubes (VideoMAE, arXiv 2203.12602). Needs no teacher, no cache and no label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stjepa_cli.core.config import RunConfig
from stjepa_cli.data.loader import Batch
from stjepa_cli.models.layers import tubelets
from stjepa_cli.models.masking import Mask, gather_tokens, num_hidden_positions
from stjepa_cli.models.predictor import Predictor
from stjepa_cli.models.student import Student
from stjepa_cli.training.objectives._distances import distance, monitors
from stjepa_cli.training.objectives.base import Loss, Objective, settings_of


@dataclass(frozen=True)
class PixelSettings:
    """Settings of the targets.

    Attributes:
        normalise: Give each channel of each tubelet mean 0 and standard deviation 1, as VideoMAE does.
    """

    normalise: bool = True


class PixelObjective(Objective):
    """Mean squared error between predicted and true pixels of hidden tokens; the predictor is VideoMAE's decoder."""

    Settings: ClassVar[type] = PixelSettings
    needs: ClassVar[frozenset[str]] = frozenset({"clips"})

    def __init__(self, student: Student, run: RunConfig, latent_dims: Sequence[int], generator: torch.Generator) -> None:
        super().__init__(student, run, latent_dims, generator)
        self.settings: PixelSettings = settings_of(run)
        spec = student.spec
        self.predictor = Predictor(run.predictor, student.grid, student.config.dim, spec.tubelet * spec.patch_px**2 * 3, generator)

    def forward(self, batch: Batch, generator: torch.Generator) -> Loss:
        return Loss.mean([self._masked(mask, batch) for mask in self.masks(batch, generator)])

    def _masked(self, mask: Mask, batch: Batch) -> Loss:
        context = self.student(batch.clips, mask)
        targets = pixel_targets(gather_tokens(tubelets(batch.clips, self.student.spec), mask.predict), normalise=self.settings.normalise)
        loss = distance(self.predictor(context, mask), targets, "mse")
        watched = monitors(context, targets, mask.predict, self.student.grid.num_tokens, "mse")
        return Loss(loss, {"hidden": loss.detach()}, watched)

    def flops(self) -> int:
        grid = self.student.grid
        hidden = grid.t * num_hidden_positions(grid, self.run.mask_ratio)
        visible = grid.num_tokens - hidden
        return self.run.masks_per_clip * (self.student.flops(visible) + self.predictor.flops(visible, hidden))


def pixel_targets(patches: Tensor, *, normalise: bool = True) -> Tensor:
    """Turn the pixels of tokens into targets.

    Args:
        patches: uint8 (B, M, tubelet * patch * patch * 3), colours last.
        normalise: Subtract the mean of each colour of each token and divide by its (unbiased) standard deviation.

    Returns:
        float32 of the same shape; pixels between 0 and 1 if not normalised.
    """
    pixels = patches.float() / 255
    if not normalise:
        return pixels
    colours = pixels.view(*pixels.shape[:-1], -1, 3)
    centred = colours - colours.mean(dim=-2, keepdim=True)
    deviation: Tensor = colours.var(dim=-2, unbiased=True, keepdim=True).sqrt()
    return (centred / (deviation + 1e-6)).flatten(-2)


plugin = PixelObjective
