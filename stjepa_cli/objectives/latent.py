"""Predict a frozen teacher's latents of hidden tubes from the visible ones (SALT, arXiv 2509.24317, with cached targets)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.batches import Batch
from stjepa_cli.config import RunConfig
from stjepa_cli.masking import gather_tokens, num_hidden_positions, tube_mask
from stjepa_cli.objectives.base import Loss, Objective
from stjepa_cli.student import Predictor, Student


class LatentObjective(Objective):
    """1 - cosine between predicted and cached latents, over hidden tokens only."""

    def __init__(self, student: Student, run: RunConfig, latent_dim: int, generator: torch.Generator) -> None:
        super().__init__(student, run, latent_dim, generator)
        self.predictor = Predictor(run.predictor, student.grid, student.config.dim, latent_dim, generator)
        self.mask_ratio = run.mask_ratio

    def forward(self, batch: Batch, generator: torch.Generator) -> Loss:
        mask = tube_mask(self.student.grid, len(batch.clips), self.mask_ratio, generator).to(batch.clips.device)
        context = self.student(batch.clips, mask)
        predicted = self.predictor(context, mask)
        targets = gather_tokens(batch.latents, mask.predict)
        loss = cosine_loss(predicted, targets)
        return Loss(loss, {"cosine": loss.detach()}, monitors(context, targets))

    def flops(self) -> int:
        grid = self.student.grid
        hidden = grid.t * num_hidden_positions(grid, self.mask_ratio)
        return self.student.flops(grid.num_tokens - hidden) + self.predictor.flops(grid.num_tokens - hidden, hidden)


def cosine_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean of 1 - cosine over all tokens: (..., E) against (..., E), computed in float32; 0 to 2."""
    return 1 - F.cosine_similarity(predicted.float(), targets.float(), dim=-1, eps=1e-6).mean()


@torch.no_grad()
def monitors(context: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What to hold a loss against: how far one constant answer would get, and whether the student's tokens collapse.

    Returns:
        `constant_loss`, the loss of answering every token of the batch with the mean of the unit targets, and
        `token_std`, the mean standard deviation of the student's tokens over the batch, 0 when they are all the same.
    """
    unit = F.normalize(targets.float(), dim=-1)
    constant = unit.mean(dim=(0, 1), keepdim=True)
    return {
        "constant_loss": 1 - F.cosine_similarity(unit, constant, dim=-1, eps=1e-6).mean(),
        "token_std": context.float().flatten(0, 1).std(dim=0).mean(),
    }


plugin = LatentObjective
