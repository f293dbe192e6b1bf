"""Distances between predictions and targets, and the trivial answers that a loss is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("cosine", "smooth_l1", "l1", "mse")


def distance(predicted: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Return the mean distance of predictions to targets, (..., E) each, in float32: one of `KINDS`."""
    if kind == "cosine":
        return cosine_loss(predicted, targets)
    function = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "mse": F.mse_loss}[kind]
    return function(predicted.float(), targets.float())


def cosine_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of 1 - cosine over all tokens: (..., E) against (..., E), computed in float32; 0 to 2."""
    return 1 - F.cosine_similarity(predicted.float(), targets.float(), dim=-1, eps=1e-6).mean()


@torch.no_grad()
def monitors(tokens: Tensor, targets: Tensor, positions: Tensor | None, num_positions: int, kind: str) -> dict[str, Tensor]:
    """Return what a loss must be compared with, and whether the student's tokens collapse.

    Args:
        tokens: The student's tokens (B, K, D).
        targets: Targets (B, M, E) that were asked for.
        positions: Index of each target among the tokens of its clip, int64 (B, M); None where all clips have the same ones.
        num_positions: N, tokens of a whole clip.
        kind: The distance.

    Returns:
        `constant_loss`, the loss of answering every token with the mean target of the batch (of the unit targets for the cosine);
        `position_loss`, that of answering each token with the mean target of the *other* clips at the same place in space and
        time, which sees a student that knows where a token lies and nothing of its pixels; and `token_std`, the mean standard
        deviation of the student's tokens over the batch, 0 when all are the same.
    """
    known = F.normalize(targets.float(), dim=-1) if kind == "cosine" else targets.float()
    constant = known.mean(dim=(0, 1), keepdim=True).expand_as(known)
    return {
        "constant_loss": distance(constant, known, kind),
        "position_loss": distance(_mean_of_others(known, positions, num_positions, constant), known, kind),
        "token_std": tokens.float().flatten(0, 1).std(dim=0).mean(),
    }


def _mean_of_others(known: Tensor, positions: Tensor | None, num_positions: int, fallback: Tensor) -> Tensor:
    """Return for each target the mean over the other clips that have one at its position; `fallback` where there is none."""
    places = torch.arange(known.shape[1], device=known.device).expand(known.shape[:2]) if positions is None else positions
    index = places.reshape(-1)
    flat = known.flatten(0, 1)
    sums = flat.new_zeros(num_positions, flat.shape[1]).index_add_(0, index, flat)
    counts = flat.new_zeros(num_positions).index_add_(0, index, flat.new_ones(len(flat)))
    others = counts[index].unsqueeze(1) - 1
    mean = (sums[index] - flat) / others.clamp_min(1)
    return torch.where(others > 0, mean, fallback.flatten(0, 1)).view_as(known)
