"""Masks: which tokens the student sees and which ones it must predict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stjepa_cli.core.errors import MaskError
from stjepa_cli.core.types import TokenGrid


@dataclass(frozen=True)
class Mask:
    """Disjoint index sets into the N tokens of each clip, of the same sizes for all clips.

    Attributes:
        visible: Tensor int64 (B, K): tokens that the student sees.
        predict: Tensor int64 (B, M): tokens to predict; need not be all the others.
        is_tube: True if the visible tokens are the same spatial positions at every time step, in (t, position) order, so that they
            form a regular t x (K / t) grid.
    """

    visible: Tensor
    predict: Tensor
    is_tube: bool

    def rows(self, start: int, stop: int) -> Mask:
        """Return the masks of the clips `start` to `stop`."""
        return Mask(self.visible[start:stop], self.predict[start:stop], self.is_tube)

    def to(self, device: torch.device) -> Mask:
        """Return the mask on another device."""
        return Mask(self.visible.to(device, non_blocking=True), self.predict.to(device, non_blocking=True), self.is_tube)


def num_hidden_positions(grid: TokenGrid, ratio: float) -> int:
    """Return how many of the h * w positions a mask ratio hides: at least one, and not all.

    Raises:
        MaskError: The grid has a single position, so that no tube can be hidden.
    """
    if grid.num_positions < 2:
        raise MaskError("tubes cannot be hidden", got=f"a {grid} grid", expected="two spatial positions or more")
    return min(grid.num_positions - 1, max(1, round(ratio * grid.num_positions)))


def tube_mask(grid: TokenGrid, batch_size: int, ratio: float, generator: torch.Generator) -> Mask:
    """Hide the same random spatial positions at every time step (tube masking, VideoMAE, arXiv 2203.12602).

    Args:
        grid: Token grid (t, h, w) of the clip.
        batch_size: Number of clips B, each of which gets its own positions.
        ratio: Fraction of the positions to hide, 0 to 1.
        generator: Random generator on the CPU; the same state gives the same mask.

    Returns:
        A mask with K = t * (h*w - hidden) visible tokens and M = t * hidden tokens to predict.
    """
    hidden = num_hidden_positions(grid, ratio)
    order = torch.rand(batch_size, grid.num_positions, generator=generator).argsort(dim=1)
    return Mask(
        visible=_tubes(order[:, hidden:].sort(dim=1).values, grid),
        predict=_tubes(order[:, :hidden].sort(dim=1).values, grid),
        is_tube=True,
    )


def multiblock_mask(grid: TokenGrid, batch_size: int, ratio: float, generator: torch.Generator) -> Mask:
    """Hide rectangles of positions at every time step (multi-block masking of V-JEPA, arXiv 2404.08471).

    Rectangles of random position and shape are added until the ratio is reached; the last one is cut, so that all clips hide the
    same number of tubes. Arguments and result are those of `tube_mask`.
    """
    hidden = num_hidden_positions(grid, ratio)
    order = torch.stack([_block_order(grid, hidden, generator) for _ in range(batch_size)])
    return Mask(
        visible=_tubes(order[:, hidden:].sort(dim=1).values, grid),
        predict=_tubes(order[:, :hidden].sort(dim=1).values, grid),
        is_tube=True,
    )


SAMPLERS = {"tube": tube_mask, "multiblock": multiblock_mask}
"""Mask samplers by name: (grid, batch size, ratio, generator) to a mask of tubes."""

BLOCK_AREA = 0.15
"""Area of a rectangle as a fraction of the frame: the small blocks of V-JEPA."""


def _block_order(grid: TokenGrid, hidden: int, generator: torch.Generator) -> Tensor:
    """Return all positions, those of random rectangles first."""
    taken = torch.zeros(grid.h, grid.w, dtype=torch.bool)
    order: list[int] = []
    while len(order) < hidden:
        aspect, down, right = torch.rand(3, generator=generator).tolist()
        stretch = 0.75 * (1.5 / 0.75) ** aspect
        height = min(grid.h, max(1, round((BLOCK_AREA * grid.num_positions * stretch) ** 0.5)))
        width = min(grid.w, max(1, round((BLOCK_AREA * grid.num_positions / stretch) ** 0.5)))
        top, left = int(down * (grid.h - height + 1)), int(right * (grid.w - width + 1))
        new = torch.zeros_like(taken)
        new[top : top + height, left : left + width] = True
        order += (new & ~taken).flatten().nonzero().flatten().tolist()
        taken |= new
    rest = [i for i in range(grid.num_positions) if i not in set(order[:hidden])]
    return torch.tensor(order[:hidden] + rest)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Select the tokens at indices (B, K) from (B, N, D), giving (B, K, D)."""
    firsts = torch.arange(len(tokens), device=tokens.device).unsqueeze(1) * tokens.shape[1]
    return tokens.flatten(0, 1)[indices + firsts]  # whole rows: faster than `gather`, which looks up every number


def _tubes(positions: Tensor, grid: TokenGrid) -> Tensor:
    """Repeat spatial positions (B, k) at every time step, as token indices (B, t * k)."""
    steps = torch.arange(grid.t).view(1, grid.t, 1) * grid.num_positions
    return (positions.unsqueeze(1) + steps).flatten(1)
