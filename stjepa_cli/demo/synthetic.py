"""Draw clips of textured objects before a textured background, with torch.

```text
Looks (shapes, textures, colours) + poses (x, y, angle, log size of each object in each frame) -> uint8 (R, T, 3, S, S)
```

Coordinates are in half-frames from the middle, x to the right and y downwards. Which poses make which class is said in `scenes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stjepa_cli.demo.patterns import Family, Pattern

FPS = 12.0
_CLIPS_AT_ONCE = 32


@dataclass(frozen=True)
class Style:
    """Ranges that looks are chosen from.

    Attributes:
        rest_size: Half-width of an object at log size 0, in half-frames.
        periods: Fewest and most periods of a texture per half-frame.
        texture_angles: Least and greatest angle of a texture on its object, in radians.
        background_contrast: Contrast of the background as a fraction of the objects'. At 0.5 a small transformer on a CPU stays at
            chance for more than 1,000 steps; see docs/log.md.
    """

    rest_size: float = 0.42
    periods: tuple[float, float] = (1.0, 2.2)
    texture_angles: tuple[float, float] = (0.0, 2 * math.pi)
    background_contrast: float = 0.1


@dataclass(frozen=True)
class Looks:
    """Appearance of the objects and backgrounds of R clips; layer 0 is the background, layers 1..O are the objects.

    Attributes:
        shape: int64 (R, O), index of each object's outline.
        texture: int64 (R, 1 + O), index of each layer's texture.
        waves: float32 (R, 1 + O, 4): periods per half-frame, angle, and the phases along u and v.
        colours: float32 (R, 1 + O, 2, 3) in [0, 1]: the two colours between which the texture varies.
    """

    shape: Tensor
    texture: Tensor
    waves: Tensor
    colours: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Looks:
        return Looks(self.shape[rows], self.texture[rows], self.waves[rows], self.colours[rows])


def uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return float32 numbers between `low` and `high`."""
    return low + (high - low) * torch.rand(*shape, generator=generator)


def random_looks(num: int, num_objects: int, family: Family, style: Style, generator: torch.Generator) -> Looks:
    """Return the looks of `num` clips, every part independent of the others."""
    layers = 1 + num_objects
    waves = torch.cat(
        [
            uniform((num, layers, 1), *style.periods, generator),
            uniform((num, layers, 1), *style.texture_angles, generator),
            uniform((num, layers, 2), 0.0, 1.0, generator),
        ],
        dim=-1,
    )
    return Looks(
        shape=torch.randint(len(family.shapes), (num, num_objects), generator=generator),
        texture=torch.randint(len(family.textures), (num, layers), generator=generator),
        waves=waves,
        colours=_random_colours(num, layers, style.background_contrast, generator),
    )


def render(looks: Looks, poses: Tensor, size_px: int, family: Family, *, rest_size: float) -> Tensor:
    """Render clips.

    Args:
        looks: Of R clips.
        poses: float32 (R, T, O, 4): x, y, angle in radians and log of the size of each object in each frame; later objects cover
            earlier ones.
        size_px: S.
        family: Of the looks.
        rest_size: Half-width of an object at log size 0, in half-frames.

    Returns:
        uint8 (R, T, 3, S, S), RGB.
    """
    clips = torch.empty(len(poses), poses.shape[1], 3, size_px, size_px, dtype=torch.uint8)
    for start in range(0, len(poses), _CLIPS_AT_ONCE):
        rows = slice(start, min(start + _CLIPS_AT_ONCE, len(poses)))
        clips[rows] = _render(looks[rows], poses[rows], size_px, family, rest_size)
    return clips


def _random_colours(num: int, layers: int, background_contrast: float, generator: torch.Generator) -> Tensor:
    """Return (num, layers, 2, 3) colours: a muted pair for the background, pairs of strong contrast for the objects."""
    middle = uniform((num, layers, 1, 3), 0.3, 0.7, generator)
    swing = uniform((num, layers, 1, 3), 0.2, 0.3, generator)
    swing[:, 0] *= background_contrast
    # Each channel rises or falls with the texture at random, so that no colour tells object from background.
    sign = 1.0 - 2.0 * torch.randint(2, (num, layers, 1, 3), generator=generator)
    return torch.cat([middle - sign * swing, middle + sign * swing], dim=2)


def _rotate(u: Tensor, v: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = angle.cos(), angle.sin()
    return cosine * u + sine * v, cosine * v - sine * u


def _by_kind(patterns: Sequence[Pattern], kind: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Evaluate for each clip r the pattern `kind[r]`; u, v and the result are (R, T, H, W)."""
    field = torch.empty_like(u)
    for number, pattern in enumerate(patterns):
        rows = (kind == number).nonzero().squeeze(1)
        field[rows] = pattern(u[rows], v[rows])
    return field


def _paint(looks: Looks, layer: int, family: Family, u: Tensor, v: Tensor) -> Tensor:
    """Return (R, T, 3, H, W) colours in [0, 1] of a layer at the coordinates u, v."""
    periods, angle, phase_u, phase_v = looks.waves[:, layer].T[..., None, None, None]
    u, v = _rotate(u, v, angle)
    field = _by_kind(family.textures, looks.texture[:, layer], periods * u + phase_u, periods * v + phase_v)
    low, high = looks.colours[:, layer, :, None, :, None, None].unbind(1)
    return torch.lerp(low, high, field[:, :, None])


def _render(looks: Looks, poses: Tensor, size_px: int, family: Family, rest_size: float) -> Tensor:
    line = (torch.arange(size_px) + 0.5) * (2 / size_px) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    frames = _paint(looks, 0, family, *(axis.expand(len(poses), 1, -1, -1) for axis in (x, y)))
    for i in range(poses.shape[2]):
        centre_x, centre_y, angle, log_size = poses[:, :, i, :, None, None].unbind(2)
        u, v = _rotate(x - centre_x, y - centre_y, angle)
        size = rest_size * log_size.exp()
        u, v = u / size, v / size
        outline = _by_kind(family.shapes, looks.shape[:, i], u, v) * size
        # One pixel is 2 / size_px wide: the edge fades over it.
        inside = (0.5 - outline * (size_px / 2)).clamp(0, 1)[:, :, None]
        # The texture is painted on the object: it moves, turns and grows with it.
        painted = _paint(looks, 1 + i, family, u * rest_size, v * rest_size)
        frames = torch.lerp(frames, painted, inside)
    return (frames * 255).round().clamp(0, 255).to(torch.uint8)
