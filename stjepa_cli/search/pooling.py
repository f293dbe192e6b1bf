"""Recipes that pool the tokens of a clip into one vector, each of length 1 (L2).

```text
mean       all tokens alike
max        the greatest value of each channel
weighted   a Gaussian weight over time, largest in the middle of the clip
segments   the means of the first, second and last third of the clip, side by side: three times as wide
```
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import TokenGrid

NONE = "none"
NUM_SEGMENTS = 3
SPREAD = 0.25
"""Standard deviation of the weight over time, as a share of the clip's length."""


def mean(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Average tokens (B, N, D) to unit vectors (B, D)."""
    return F.normalize(tokens.float().mean(dim=1), dim=-1)


def max(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Take the greatest value of each channel over tokens (B, N, D): unit vectors (B, D)."""
    return F.normalize(tokens.float().amax(dim=1), dim=-1)


def weighted(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Average tokens (B, N, D), those in the middle of the clip the most: unit vectors (B, D).

    The weight of a time step is a Gaussian of its distance from the middle, with a standard deviation of a quarter of the clip.
    """
    distance = (torch.arange(grid.t, device=tokens.device) + 0.5) / grid.t - 0.5
    weights = torch.softmax(-0.5 * (distance / SPREAD).square(), dim=0)
    return F.normalize((_over_space(tokens, grid) * weights[:, None]).sum(dim=1), dim=-1)


def segments(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Average the tokens (B, N, D) of each third of the clip, side by side: unit vectors (B, 3 * D).

    Thirds share a time step where the number of steps is no multiple of three.
    """
    thirds = F.adaptive_avg_pool1d(_over_space(tokens, grid).transpose(1, 2), NUM_SEGMENTS)  # (B, D, 3)
    return F.normalize(thirds.transpose(1, 2).flatten(1), dim=-1)


def frames(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Average tokens (B, N, D) over space only: a unit vector per time step, (B, t, D)."""
    return F.normalize(_over_space(tokens, grid), dim=-1)


RECIPES: dict[str, Callable[[Tensor, TokenGrid], Tensor]] = {"mean": mean, "max": max, "weighted": weighted, "segments": segments}
POOLS = (*RECIPES, NONE)


def check_pool(name: str) -> None:
    """Refuse a pooling that does not exist.

    Raises:
        ConfigError: The message lists those that do.
    """
    if name not in POOLS:
        raise ConfigError("unknown pooling", got=repr(name), expected="one of " + ", ".join(POOLS))


def pool(tokens: Tensor, grid: TokenGrid, name: str) -> Tensor:
    """Pool tokens by the name of a recipe; `none` keeps them.

    Args:
        tokens: Tokens (B, N, D) in (t, h, w) order.
        grid: The token grid.
        name: One of `POOLS`.

    Returns:
        float32 (B, D), (B, 3 * D) for `segments`, or (B, N, D) for `none`.

    Raises:
        ConfigError: There is no such pooling.
    """
    check_pool(name)
    return tokens.float() if name == NONE else RECIPES[name](tokens, grid)


def pooled_dim(dim: int, name: str) -> int:
    """Return the width of a vector that a recipe makes of tokens that are `dim` wide."""
    return dim * NUM_SEGMENTS if name == "segments" else dim


def _over_space(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Average tokens (B, N, D) over space: (B, t, D)."""
    return tokens.float().reshape(len(tokens), grid.t, grid.num_positions, -1).mean(dim=2)
