"""What a student makes of a clip, as colours: its tokens in three principal components, and cosines to the truth.

Shapes as in `nouns`: tokens are in (t, h, w) order; colours are uint8 with R, G, B last, frames uint8 (t, 3, S, S).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.types import ClipSpec, TokenGrid
from stjepa_cli.models.masking import Mask, num_hidden_positions

# viridis: evenly lighter to every eye, the colour-blind one too
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

HEAT_SHARE = 0.75  # of the colour over a frame; the rest is the frame's brightness


def covering_masks(grid: TokenGrid, ratio: float, generator: torch.Generator) -> Mask:
    """Tube masks of one ratio that together hide every token.

    The positions are shuffled and hidden in turn, as many at a time as the ratio says; the last mask is filled up with those
    that the first has hidden already.

    Returns:
        a mask for B = ceil(h*w / hidden positions) copies of one clip.

    Raises:
        MaskError: the grid has a single position.
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
    """The cosine between prediction and truth at every token, from the first mask that hides it.

    Args:
        predicted: (B, M, E), one clip under B masks.
        latents: (N, E), the truth.
        mask: its `predict` is (B, M).

    Returns:
        float32 (N,), -1 to 1; NaN where no mask hides the token.
    """
    cosines = F.cosine_similarity(predicted.float(), latents.float()[mask.predict], dim=-1, eps=1e-6)
    found = torch.full((len(latents),), torch.nan)
    for places, values in reversed(list(zip(mask.predict, cosines, strict=True))):
        found[places] = values
    return found


def mean_answer(latents: Tensor) -> Tensor:
    """The one answer to every token that comes nearest to all: the mean of the unit latents (..., E), float32 (E,)."""
    return F.normalize(latents.float(), dim=-1).flatten(0, -2).mean(dim=0)


def constant_cosines(latents: Tensor, answer: Tensor) -> Tensor:
    """The cosine of one answer (E,) to every token of latents (N, E): float32 (N,)."""
    return F.cosine_similarity(latents.float(), answer.float().unsqueeze(0), dim=-1, eps=1e-6)


def component_colours(tokens: Tensor) -> tuple[Tensor, float]:
    """Tokens as colours: their first three principal components, over all of them, are red, green and blue.

    The sign of a component is such that its largest weight is positive; each is stretched from its 2nd to its 98th percentile.

    Args:
        tokens: float (C, N, D), D >= 3.

    Returns:
        uint8 (C, N, 3), and the share of the variance that the three hold, 0 to 1.
    """
    flat = tokens.double().flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)  # ascending
    weights = vectors[:, -3:].flip(1)
    strongest = weights.abs().argmax(dim=0)
    parts = flat @ (weights * weights[strongest, torch.arange(3)].sign())
    ordered = parts.sort(dim=0).values
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.02, 0.98))
    colours = ((parts - low) / (high - low).clamp_min(1e-9)).clamp(0, 1) * 255
    share = float(values[-3:].sum() / values.sum().clamp_min(1e-12))
    return colours.round().to(torch.uint8).view(*tokens.shape[:2], 3), share


def heat(values: Tensor) -> Tensor:
    """Numbers (...) as colours uint8 (..., 3): `SCALE` from 0 to 1; what is below or above has the colour of the end."""
    anchors = torch.tensor(SCALE, dtype=torch.float32)
    place = values.nan_to_num(0.0).clamp(0, 1) * (len(anchors) - 1)
    first = place.floor().long().clamp(max=len(anchors) - 2)
    share = (place - first).unsqueeze(-1)
    return (anchors[first] * (1 - share) + anchors[first + 1] * share).round().to(torch.uint8)


def blocks(values: Tensor, spec: ClipSpec) -> Tensor:
    """Values of tokens (N, C) as pictures (t, C, S, S), each token as large as the patch that it stands for."""
    grid = spec.grid
    lattice = values.view(grid.t, grid.h, grid.w, -1).permute(0, 3, 1, 2)
    return lattice.repeat_interleave(spec.patch_px, dim=2).repeat_interleave(spec.patch_px, dim=3)


def overlay(frames: Tensor, colours: Tensor, spec: ClipSpec, shown: Tensor) -> Tensor:
    """Colours of tokens over frames.

    Args:
        frames: uint8 (t, 3, S, S), one of each time step.
        colours: uint8 (N, 3).
        spec: of the clip.
        shown: bool (N,), the tokens that are coloured; frames stay as they are at the others.

    Returns:
        uint8 (t, 3, S, S).
    """
    grey = frames.float().mean(dim=1, keepdim=True)
    mixed = HEAT_SHARE * blocks(colours, spec).float() + (1 - HEAT_SHARE) * grey
    return torch.where(blocks(shown.unsqueeze(-1), spec), mixed.round().to(torch.uint8), frames)
