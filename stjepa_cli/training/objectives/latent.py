"""Predict a frozen teacher's latents of hidden tubes from the visible ones (SALT, arXiv 2509.24317, with cached targets)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.config import RunConfig
from stjepa_cli.data.loader import Batch
from stjepa_cli.models.masking import SAMPLERS, Mask, gather_tokens, num_hidden_positions
from stjepa_cli.models.predictor import Predictor
from stjepa_cli.models.student import Student
from stjepa_cli.training.objectives.base import Loss, Objective


class LatentObjective(Objective):
    """A distance between predicted and cached latents, by default 1 - cosine and over hidden tokens only."""

    def __init__(self, student: Student, run: RunConfig, latent_dim: int, generator: torch.Generator) -> None:
        super().__init__(student, run, latent_dim, generator)
        self.predictor = Predictor(run.predictor, student.grid, student.config.dim, latent_dim, generator)
        self.run = run

    def forward(self, batch: Batch, generator: torch.Generator) -> Loss:
        losses = [self._under(mask.to(batch.clips.device), batch) for mask in self._masks(batch, generator)]
        return losses[0] if len(losses) == 1 else Loss.mean(losses)

    def _masks(self, batch: Batch, generator: torch.Generator) -> list[Mask]:
        """The masks of these clips: drawn for all clips of the step, so that they do not depend on how those are shared out."""
        sampler, stop = SAMPLERS[self.run.mask_sampler], batch.start + len(batch.clips)
        drawn = (sampler(self.student.grid, batch.total, self.run.mask_ratio, generator) for _ in range(self.run.masks_per_clip))
        return [mask.rows(batch.start, stop) for mask in drawn]

    def _under(self, mask: Mask, batch: Batch) -> Loss:
        context = self.student(batch.clips, mask)
        targets = gather_tokens(batch.latents, mask.predict)
        if not self.run.visible_weight:
            loss = distance(self.predictor(context, mask), targets, self.run.loss)
            return Loss(loss, {self.run.loss: loss.detach()}, monitors(context, targets, self.run.loss))
        both = self.predictor(context, mask, visible_too=True)
        num_visible = mask.visible.shape[1]
        hidden = distance(both[:, num_visible:], targets, self.run.loss)
        visible = distance(both[:, :num_visible], gather_tokens(batch.latents, mask.visible), self.run.loss)
        parts = {self.run.loss: hidden.detach(), "visible": visible.detach()}
        return Loss(hidden + self.run.visible_weight * visible, parts, monitors(context, targets, self.run.loss))

    def flops(self) -> int:
        grid = self.student.grid
        hidden = grid.t * num_hidden_positions(grid, self.run.mask_ratio)
        once = self.student.flops(grid.num_tokens - hidden) + self.predictor.flops(grid.num_tokens - hidden, hidden)
        return self.run.masks_per_clip * once


def distance(predicted: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Mean distance of predictions to targets, (..., E) each, in float32: `cosine`, `smooth_l1` or `l1`."""
    if kind == "cosine":
        return cosine_loss(predicted, targets)
    return (F.smooth_l1_loss if kind == "smooth_l1" else F.l1_loss)(predicted.float(), targets.float())


def cosine_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean of 1 - cosine over all tokens: (..., E) against (..., E), computed in float32; 0 to 2."""
    return 1 - F.cosine_similarity(predicted.float(), targets.float(), dim=-1, eps=1e-6).mean()


@torch.no_grad()
def monitors(context: Tensor, targets: Tensor, kind: str = "cosine") -> dict[str, Tensor]:
    """What to hold a loss against: how far one constant answer would get, and whether the student's tokens collapse.

    Returns:
        `constant_loss`, the loss of answering every token of the batch with the mean of the targets (of the unit targets, for
        the cosine), and `token_std`, the mean standard deviation of the student's tokens over the batch, 0 when they are all
        the same.
    """
    known = F.normalize(targets.float(), dim=-1) if kind == "cosine" else targets.float()
    constant = known.mean(dim=(0, 1), keepdim=True).expand_as(known)
    return {"constant_loss": distance(constant, known, kind), "token_std": context.float().flatten(0, 1).std(dim=0).mean()}


plugin = LatentObjective
