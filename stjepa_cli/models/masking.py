"""Which tokens the student sees and which it must predict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stjepa_cli.core.errors import MaskError
from stjepa_cli.core.types import TokenGrid


@dataclass(frozen=True)
class Mask:
    """Index sets into the N tokens of each clip, disjoint, of constant sizes.

    Attributes:
        visible: int64 (B, K), what the student sees.
        predict: int64 (B, M), what is to be predicted; need not be all the rest.
        is_tube: the visible tokens are the same spatial positions at every time step, in (t, position) order, so that
            they form a regular t x (K / t) grid.
    """

    visible: Tensor
    predict: Tensor
    is_tube: bool

    def rows(self, start: int, stop: int) -> Mask:
        """The masks of some of the clips."""
        return Mask(self.visible[start:stop], self.predict[start:stop], self.is_tube)

    def to(self, device: torch.device) -> Mask:
        """The same mask on another device."""
        return Mask(self.visible.to(device, non_blocking=True), self.predict.to(device, non_blocking=True), self.is_tube)


def num_hidden_positions(grid: TokenGrid, ratio: float) -> int:
    """How many of the h * w positions a mask ratio hides; at least one stays and at least one goes.

    Raises:
        MaskError: the grid has a single position, so that no tube can be hidden.
    """
    if grid.num_positions < 2:
        raise MaskError("tubes cannot be hidden", got=f"a {grid} grid", expected="two spatial positions or more")
    return min(grid.num_positions - 1, max(1, round(ratio * grid.num_positions)))


def tube_mask(grid: TokenGrid, batch_size: int, ratio: float, generator: torch.Generator) -> Mask:
    """Hide the same random spatial positions at every time step (tube masking, VideoMAE, arXiv 2203.12602).

    Args:
        grid: lattice (t, h, w) of the clip's tokens.
        batch_size: B, each clip with its own positions.
        ratio: share of the positions to hide, 0 to 1.
        generator: on the CPU; the same state gives the same mask.

    Returns:
        A mask with K = t * (h*w - hidden) visible and M = t * hidden predicted tokens.
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

    Rectangles of random place and shape are laid over each other until the ratio is reached; the last one is cut, so that all
    clips hide equally many tubes. Arguments and result as of `tube_mask`.
    """
    hidden = num_hidden_positions(grid, ratio)
    order = torch.stack([_block_order(grid, hidden, generator) for _ in range(batch_size)])
    return Mask(
        visible=_tubes(order[:, hidden:].sort(dim=1).values, grid),
        predict=_tubes(order[:, :hidden].sort(dim=1).values, grid),
        is_tube=True,
    )


SAMPLERS = {"tube": tube_mask, "multiblock": multiblock_mask}
"""Ways to draw a mask: (grid, batch size, ratio, generator) to a mask of tubes."""

BLOCK_SHARE = 0.15
"""Area of a rectangle, of the whole frame: the small blocks of V-JEPA."""


def _block_order(grid: TokenGrid, hidden: int, generator: torch.Generator) -> Tensor:
    """All positions, those of random rectangles first."""
    taken = torch.zeros(grid.h, grid.w, dtype=torch.bool)
    order: list[int] = []
    while len(order) < hidden:
        aspect, down, right = torch.rand(3, generator=generator).tolist()
        stretch = 0.75 * (1.5 / 0.75) ** aspect
        height = min(grid.h, max(1, round((BLOCK_SHARE * grid.num_positions * stretch) ** 0.5)))
        width = min(grid.w, max(1, round((BLOCK_SHARE * grid.num_positions / stretch) ** 0.5)))
        top, left = int(down * (grid.h - height + 1)), int(right * (grid.w - width + 1))
        new = torch.zeros_like(taken)
        new[top : top + height, left : left + width] = True
        order += (new & ~taken).flatten().nonzero().flatten().tolist()
        taken |= new
    rest = [i for i in range(grid.num_positions) if i not in set(order[:hidden])]
    return torch.tensor(order[:hidden] + rest)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens (B, N, D) at indices (B, K), as (B, K, D)."""
    firsts = torch.arange(len(tokens), device=tokens.device).unsqueeze(1) * tokens.shape[1]
    return tokens.flatten(0, 1)[indices + firsts]  # whole rows: faster than `gather`, which looks up every number


def _tubes(positions: Tensor, grid: TokenGrid) -> Tensor:
    """Spatial positions (B, k) at every time step, as token indices (B, t * k)."""
    steps = torch.arange(grid.t).view(1, grid.t, 1) * grid.num_positions
    return (positions.unsqueeze(1) + steps).flatten(1)
