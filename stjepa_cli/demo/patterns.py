"""Textures and outlines of generated objects, in two families that share none of them.

`train` is for teachers and pretraining, `unseen` for evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FamilyName = Literal["train", "unseen"]

Pattern = Callable[[Tensor, Tensor], Tensor]
"""(u, v) coordinates to a field of the same shape: a texture in [0, 1], or a distance that is negative inside."""

MAX_PATTERNS = 5


# ---------------------------------------------------------------------------------------------------------- textures


def _wave(x: Tensor) -> Tensor:
    """Return a sine of period 1 in [0, 1]."""
    return 0.5 + 0.5 * torch.sin(2 * math.pi * x)


def _stripes(u: Tensor, v: Tensor) -> Tensor:
    return _wave(u)


def _checks(u: Tensor, v: Tensor) -> Tensor:
    return 0.5 + 2.0 * (_wave(u) - 0.5) * (_wave(v) - 0.5)


def _ripples(u: Tensor, v: Tensor) -> Tensor:
    return (_wave(u + 0.3 * _wave(0.6 * v)) + _wave(0.5 * u + 0.8 * v)) / 2


def _bricks(u: Tensor, v: Tensor) -> Tensor:
    column, row = _staggered(u, v)
    return (10.0 * torch.minimum(0.5 - column.abs(), 0.5 - row.abs())).clamp(0, 1)


def _rings(u: Tensor, v: Tensor) -> Tensor:
    return _wave(torch.hypot(u, v))


def _dots(u: Tensor, v: Tensor) -> Tensor:
    return (3.0 * (_wave(u) + _wave(v)) - 3.6).clamp(0, 1)


def _zigzag(u: Tensor, v: Tensor) -> Tensor:
    return _wave(u + 0.8 * ((0.7 * v) % 1.0 - 0.5).abs())


def _plaid(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_wave(u) ** 3, _wave(0.6 * v + 0.2) ** 3)


def _scales(u: Tensor, v: Tensor) -> Tensor:
    column, row = _staggered(u, v)
    return (1.2 * torch.hypot(column, row + 0.5)).clamp(0, 1)


def _mosaic(u: Tensor, v: Tensor) -> Tensor:
    return (_wave(u) + _wave(0.5 * u + 0.87 * v) + _wave(0.5 * u - 0.87 * v) - 0.8).clamp(0, 1)


def _staggered(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the position within a brick, both coordinates in [-0.5, 0.5): every second row is shifted by half a brick."""
    shifted = u + 0.5 * (torch.floor(v) % 2)
    return shifted % 1.0 - 0.5, v % 1.0 - 0.5


# ---------------------------------------------------------------------------------------------------------- outlines


def _bar(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs() - 1.0, v.abs() - 0.6)


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v / 0.7) - 1.0


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(v - 0.6, 0.87 * u.abs() - 0.5 * v - 0.55)


def _arch(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum((torch.hypot(u, v - 0.4) - 0.75).abs() - 0.3, v - 0.4)


def _wedge(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.maximum(u - 0.8, v.abs() - 0.75), -0.6 * u - 0.3 - 0.5 * v)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    x, y = u.abs(), v.abs()
    return torch.minimum(torch.maximum(x - 1.0, y - 0.4), torch.maximum(x - 0.4, y - 1.0))


def _half_disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v + 0.4) - 1.1, -0.4 - v)


def _kite(u: Tensor, v: Tensor) -> Tensor:
    return u.abs() * 1.25 + torch.where(v > 0, 0.8 * v, 1.6 * v.abs()) - 0.9


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u + 0.2, v) - 1.0, 0.7 - torch.hypot(u - 0.35, v))


def _tee(u: Tensor, v: Tensor) -> Tensor:
    top = torch.maximum(u.abs() - 1.0, (v + 0.6).abs() - 0.35)
    return torch.minimum(top, torch.maximum(u.abs() - 0.35, v.abs() - 0.95))


# ---------------------------------------------------------------------------------------------------------- families


@dataclass(frozen=True)
class Family:
    """Looks and speeds of the objects of a family.

    Attributes:
        shapes: Outlines of half-width 1.
        textures: Fields of period 1.
        speeds: Shortest and longest path, as a factor of an axis's segment.
    """

    shapes: tuple[Pattern, ...]
    textures: tuple[Pattern, ...]
    speeds: tuple[float, float]


_ALL: dict[FamilyName, Family] = {
    "train": Family((_bar, _ellipse, _triangle, _arch, _wedge), (_stripes, _checks, _ripples, _bricks, _rings), (0.6, 0.9)),
    "unseen": Family((_cross, _half_disc, _kite, _crescent, _tee), (_dots, _zigzag, _plaid, _scales, _mosaic), (0.9, 1.2)),
}


def family_of(name: FamilyName, num_patterns: int = MAX_PATTERNS) -> Family:
    """Return a family with its first `num_patterns` shapes and as many textures."""
    whole = _ALL[name]
    return Family(whole.shapes[:num_patterns], whole.textures[:num_patterns], whole.speeds)


def pattern_name(pattern: Pattern) -> str:
    """Return the name of a texture or an outline, for class names: `HalfDisc`."""
    return "".join(part.capitalize() for part in pattern.__name__.split("_"))
