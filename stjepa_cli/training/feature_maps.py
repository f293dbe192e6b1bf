"""Features of a clip as colours: tokens in three principal components, and cosines between predictions and latents.

Tokens are in (t, h, w) order; colours are uint8 with R, G, B last, frames are uint8 (t, 3, S, S).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.types import ClipSpec, TokenGrid
from stjepa_cli.models.masking import Mask, num_hidden_positions

# viridis: its lightness rises evenly, for colour-blind readers too
SCALE = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)

HEAT_OPACITY = 0.75  # of the colour over a frame; the rest is the brightness of the frame


def covering_masks(grid: TokenGrid, ratio: float, generator: torch.Generator) -> Mask:
    """Return tube masks of one ratio that together hide every token.

    Positions are shuffled and hidden in turn, as many at a time as the ratio says; the last mask is filled up with positions that the
    first one hides too.

    Args:
        grid: Token grid of the clip.
        ratio: Fraction of the positions to hide, 0 to 1.
        generator: Random generator on the CPU.

    Returns:
        A mask for B = ceil(h*w / hidden positions) copies of a clip.

    Raises:
        MaskError: The grid has a single position.
    """
    positions, hidden = grid.num_positions, num_hidden_positions(grid, ratio)
    order = torch.randperm(positions, generator=generator)
    turns = (torch.arange(hidden) + hidden * torch.arange(-(-positions // hidden)).unsqueeze(1)) % positions  # (B, hidden)
    covered = torch.zeros(len(turns), positions, dtype=torch.bool).scatter_(1, order[turns], True)
    steps = torch.arange(grid.t).view(1, grid.t, 1) * positions

    def tubes(chosen: Tensor) -> Tensor:
        return (chosen.nonzero()[:, 1].view(len(chosen), 1, -1) + steps).flatten(1)

    return Mask(visible=tubes(~covered), predict=tubes(covered), is_tube=True)


def token_cosines(predicted: Tensor, latents: Tensor, mask: Mask) -> Tensor:
    """Return the cosine between prediction and latent for every token, from the first mask that hides it.

    Args:
        predicted: Predictions (B, M, E) for a clip under B masks.
        latents: Latents (N, E) of the clip.
        mask: The masks; `predict` is (B, M).

    Returns:
        Cosines float32 (N,), -1 to 1; NaN for a token that no mask hides.
    """
    cosines = F.cosine_similarity(predicted.float(), latents.float()[mask.predict], dim=-1, eps=1e-6)
    found = torch.full((len(latents),), torch.nan)
    for places, values in reversed(list(zip(mask.predict, cosines, strict=True))):
        found[places] = values
    return found


def mean_answer(latents: Tensor) -> Tensor:
    """Return the constant answer that is closest to all tokens: the mean of the unit latents (..., E), float32 (E,)."""
    return F.normalize(latents.float(), dim=-1).flatten(0, -2).mean(dim=0)


def constant_cosines(latents: Tensor, answer: Tensor) -> Tensor:
    """Return the cosine between a constant answer (E,) and every token of latents (N, E), float32 (N,)."""
    return F.cosine_similarity(latents.float(), answer.float().unsqueeze(0), dim=-1, eps=1e-6)


def principal_components(tokens: Tensor) -> tuple[Tensor, float]:
    """Project tokens on their first three principal components, taken over all of them.

    The sign of a component is such that its largest weight is positive; each is scaled to unit variance.

    Args:
        tokens: Tensor float (C, N, D).

    Returns:
        The components float64 (C, N, 3), zero where there are fewer, and the fraction of the variance that they hold.
    """
    flat = tokens.double().flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)  # ascending
    weights = vectors[:, -3:].flip(1)
    strongest = weights.abs().argmax(dim=0)
    found = flat @ (weights * weights[strongest, torch.arange(weights.shape[1])].sign())
    fraction = float(values[-3:].sum() / values.sum().clamp_min(1e-12))
    found = F.pad(found / found.std(dim=0, correction=0).clamp_min(1e-9), (0, 3 - found.shape[1]))
    return found.view(*tokens.shape[:2], 3), fraction


def align(components: Tensor, reference: Tensor) -> Tensor:
    """Rotate components (C, N, 3) so that they come closest to others of the same shape (orthogonal Procrustes problem).

    Principal components have no order or sign of their own: without this, two models of the same content get unrelated colours.
    """
    u, _, vh = torch.linalg.svd(components.flatten(0, 1).T @ reference.flatten(0, 1))
    rotated: Tensor = components @ (u @ vh)
    return rotated


def as_colours(components: Tensor) -> Tensor:
    """Turn components (C, N, 3) into red, green and blue uint8, each stretched from its 2nd to its 98th percentile."""
    ordered = components.flatten(0, 1).sort(dim=0).values
    low, high = (ordered[round(fraction * (len(ordered) - 1))] for fraction in (0.02, 0.98))
    return (((components - low) / (high - low).clamp_min(1e-9)).clamp(0, 1) * 255).round().to(torch.uint8)


def heat(values: Tensor) -> Tensor:
    """Turn values (...) into colours uint8 (..., 3) of `SCALE`, from 0 to 1; lower and higher values get the colours of the ends."""
    anchors = torch.tensor(SCALE, dtype=torch.float32)
    place = values.nan_to_num(0.0).clamp(0, 1) * (len(anchors) - 1)
    first = place.floor().long().clamp(max=len(anchors) - 2)
    weight = (place - first).unsqueeze(-1)
    return (anchors[first] * (1 - weight) + anchors[first + 1] * weight).round().to(torch.uint8)


def blocks(values: Tensor, spec: ClipSpec) -> Tensor:
    """Turn values of tokens (N, C) into pictures (t, C, S, S), each token as large as its patch."""
    grid = spec.grid
    maps = values.view(grid.t, grid.h, grid.w, -1).permute(0, 3, 1, 2)
    return maps.repeat_interleave(spec.patch_px, dim=2).repeat_interleave(spec.patch_px, dim=3)


def smooth(colours: Tensor, spec: ClipSpec, num_frames: int, size_px: int) -> Tensor:
    """Turn colours of tokens uint8 (N, 3) into pictures uint8 (T, 3, S, S), interpolated in space and over time."""
    grid = spec.grid
    maps = colours.view(1, grid.t, grid.h, grid.w, 3).permute(0, 4, 1, 2, 3).float()
    found = F.interpolate(maps, size=(num_frames, size_px, size_px), mode="trilinear", align_corners=False)
    return found[0].transpose(0, 1).round().clamp(0, 255).to(torch.uint8)


def overlay(frames: Tensor, colours: Tensor, spec: ClipSpec, shown: Tensor) -> Tensor:
    """Lay colours of tokens over frames.

    Args:
        frames: Tensor uint8 (t, 3, S, S), one frame of each time step.
        colours: Tensor uint8 (N, 3).
        spec: Geometry of the clip.
        shown: Tensor bool (N,), the tokens that are coloured; frames stay as they are at the others.

    Returns:
        Pictures uint8 (t, 3, S, S).
    """
    grey = frames.float().mean(dim=1, keepdim=True)
    mixed = HEAT_OPACITY * blocks(colours, spec).float() + (1 - HEAT_OPACITY) * grey
    return torch.where(blocks(shown.unsqueeze(-1), spec), mixed.round().to(torch.uint8), frames)
