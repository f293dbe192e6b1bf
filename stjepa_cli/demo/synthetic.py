"""Generated motion clips, drawn with torch.

A clip shows one textured object before a textured background. Its label says how the object moves, and *only* the motion
says it. The pose of an object has four axes (x, y, angle, log size). Along the axis of its label the object travels from
one end of a segment to the other; along the other three it rests at a random moment of a segment drawn in the same way.
So a frame taken at an unknown, random time has the same distribution in every class, and a segment run backwards is a
segment of the opposite class. (A frame *known* to be the first does tell something: what will move right starts on the left.)

Two families share no texture, no shape and no speed: `train` is for teachers and pretraining, `unseen` for evaluation.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FamilyName = Literal["train", "unseen"]

MOTIONS = (
    "MoveLeft",
    "MoveRight",
    "MoveUp",
    "MoveDown",
    "TurnCounterclockwise",
    "TurnClockwise",
    "Shrink",
    "Grow",
)
"""Class names; label `2 * axis + (1 if the value rises else 0)`, axes x, y (downwards), angle, log size."""

TEMPLATES = (
    "Moving [something] left",
    "Moving [something] right",
    "Moving [something] up",
    "Moving [something] down",
    "Turning [something] counterclockwise",
    "Turning [something] clockwise",
    "Making [something] shrink",
    "Making [something] grow",
)
"""The same classes as Something-Something v2 templates."""

NUM_AXES = 4
FPS = 12.0
BACKGROUND_CONTRAST = 0.1
"""Of the object's. At 0.5 a small transformer on a CPU stays at chance for more than 1,000 steps; see docs/log.md."""

Pattern = Callable[[Tensor, Tensor], Tensor]
"""(u, v) coordinates -> a field of the same shape: a texture in [0, 1], or a distance that is negative inside."""


# ---------------------------------------------------------------------------------------------- textures and shapes


def _wave(x: Tensor) -> Tensor:
    """A sine of period 1 in [0, 1]."""
    return 0.5 + 0.5 * torch.sin(2 * math.pi * x)


def _stripes(u: Tensor, v: Tensor) -> Tensor:
    return _wave(u)


def _checks(u: Tensor, v: Tensor) -> Tensor:
    return 0.5 + 2.0 * (_wave(u) - 0.5) * (_wave(v) - 0.5)


def _ripples(u: Tensor, v: Tensor) -> Tensor:
    return (_wave(u + 0.3 * _wave(0.6 * v)) + _wave(0.5 * u + 0.8 * v)) / 2


def _dots(u: Tensor, v: Tensor) -> Tensor:
    return (3.0 * (_wave(u) + _wave(v)) - 3.6).clamp(0, 1)


def _zigzag(u: Tensor, v: Tensor) -> Tensor:
    return _wave(u + 0.8 * ((0.7 * v) % 1.0 - 0.5).abs())


def _plaid(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_wave(u) ** 3, _wave(0.6 * v + 0.2) ** 3)


def _bar(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs() - 1.0, v.abs() - 0.6)


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v / 0.7) - 1.0


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(v - 0.6, 0.87 * u.abs() - 0.5 * v - 0.55)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    x, y = u.abs(), v.abs()
    return torch.minimum(torch.maximum(x - 1.0, y - 0.4), torch.maximum(x - 0.4, y - 1.0))


def _half_disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v + 0.4) - 1.1, -0.4 - v)


def _kite(u: Tensor, v: Tensor) -> Tensor:
    return u.abs() * 1.25 + torch.where(v > 0, 0.8 * v, 1.6 * v.abs()) - 0.9


@dataclass(frozen=True)
class Family:
    """What a family's clips are made of.

    Attributes:
        shapes: Outlines, of the half-width 1.
        textures: Fields of the period 1.
        speeds: Lowest and highest length of a travelled segment, as a factor of `_SEGMENT`.
    """

    shapes: tuple[Pattern, ...]
    textures: tuple[Pattern, ...]
    speeds: tuple[float, float]


FAMILIES: dict[FamilyName, Family] = {
    "train": Family((_bar, _ellipse, _triangle), (_stripes, _checks, _ripples), (0.6, 0.9)),
    "unseen": Family((_cross, _half_disc, _kite), (_dots, _zigzag, _plaid), (0.9, 1.2)),
}

# Axis by axis (x, y, angle, log size): the length of a segment at speed 1, and how far its middle may lie from the rest
# pose. Lengths are in half-frames, radians and natural logarithms of the size.
_SEGMENT = (0.9, 0.9, 2.0, 0.9)
_MIDDLE = (0.2, 0.2, math.pi, 0.15)
_REST_SIZE = 0.42
_PERIODS_PER_HALF_FRAME = (1.0, 2.2)


# ------------------------------------------------------------------------------------------------------ random draws


@dataclass(frozen=True)
class _Looks:
    """How the objects and backgrounds of R clips look.

    Attributes:
        shape: (R,) index of the outline.
        texture: (R, 2) index of the texture of background and object.
        waves: (R, 2, 4) of both: periods per half-frame, angle, and the phases along u and v.
        colours: (R, 2, 2, 3) in [0, 1]: of both, the colours between which the texture varies.
    """

    shape: Tensor
    texture: Tensor
    waves: Tensor
    colours: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "_Looks":
        return _Looks(self.shape[rows], self.texture[rows], self.waves[rows], self.colours[rows])


def _uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _draw_looks(num: int, family: Family, generator: torch.Generator) -> _Looks:
    waves = torch.cat(
        [
            _uniform((num, 2, 1), *_PERIODS_PER_HALF_FRAME, generator),
            _uniform((num, 2, 1), 0.0, 2 * math.pi, generator),
            _uniform((num, 2, 2), 0.0, 1.0, generator),
        ],
        dim=-1,
    )
    return _Looks(
        shape=torch.randint(len(family.shapes), (num,), generator=generator),
        texture=torch.randint(len(family.textures), (num, 2), generator=generator),
        waves=waves,
        colours=_draw_colours(num, generator),
    )


def _draw_colours(num: int, generator: torch.Generator) -> Tensor:
    """(num, 2, 2, 3) colours: a muted pair for the background, a pair of strong contrast for the object."""
    middle = _uniform((num, 2, 1, 3), 0.3, 0.7, generator)
    swing = _uniform((num, 2, 1, 3), 0.2, 0.3, generator)
    swing[:, 0] *= BACKGROUND_CONTRAST
    # Each channel rises or falls with the texture by chance, so that no colour tells object from background.
    sign = 1.0 - 2.0 * torch.randint(2, (num, 2, 1, 3), generator=generator)
    return torch.cat([middle - sign * swing, middle + sign * swing], dim=2)


def _draw_labels(num: int, generator: torch.Generator) -> Tensor:
    """(num,) int64 labels in random order, each class as often as the others (or once more)."""
    return (torch.arange(num) % len(MOTIONS))[torch.randperm(num, generator=generator)]


def _draw_poses(labels: Tensor, num_frames: int, family: Family, generator: torch.Generator) -> Tensor:
    """(R, T, 4) pose in each frame: x and y in half-frames from the middle, radians, log of the size."""
    num = len(labels)
    length = _uniform((num, NUM_AXES), *family.speeds, generator) * torch.tensor(_SEGMENT)
    middle = _uniform((num, NUM_AXES), -1.0, 1.0, generator) * torch.tensor(_MIDDLE)
    # The resting axes stop at a moment of the very grid on which the moving axis is seen.
    moment = torch.randint(num_frames, (num, NUM_AXES, 1), generator=generator).expand(-1, -1, num_frames)
    moving = torch.arange(NUM_AXES) == (labels // 2)[:, None]
    clock = torch.arange(num_frames).expand(num, 1, -1)
    clock = torch.where((labels % 2 == 1)[:, None, None], clock, num_frames - 1 - clock)
    moment = torch.where(moving[:, :, None], clock, moment)
    share = moment.float() / max(num_frames - 1, 1) - 0.5
    return (middle[:, :, None] + length[:, :, None] * share).transpose(1, 2)


# --------------------------------------------------------------------------------------------------------- rendering


def _rotate(u: Tensor, v: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = angle.cos(), angle.sin()
    return cosine * u + sine * v, cosine * v - sine * u


def _by_kind(patterns: Sequence[Pattern], kind: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Evaluates for each clip r the pattern `kind[r]`; u, v and the result are (R, T, H, W)."""
    field = torch.empty_like(u)
    for number, pattern in enumerate(patterns):
        rows = (kind == number).nonzero().squeeze(1)
        field[rows] = pattern(u[rows], v[rows])
    return field


def _paint(looks: _Looks, layer: int, family: Family, u: Tensor, v: Tensor) -> Tensor:
    """(R, T, 3, H, W) colours in [0, 1] of layer 0 (background) or 1 (object) at the coordinates u, v."""
    periods, angle, phase_u, phase_v = looks.waves[:, layer].T[..., None, None, None]
    u, v = _rotate(u, v, angle)
    field = _by_kind(family.textures, looks.texture[:, layer], periods * u + phase_u, periods * v + phase_v)
    low, high = looks.colours[:, layer, :, None, :, None, None].unbind(1)
    return torch.lerp(low, high, field[:, :, None])


def _render(looks: _Looks, poses: Tensor, size_px: int, family: Family) -> Tensor:
    """(R, T, 3, H, W) uint8 frames of R clips in the given (R, T, 4) poses."""
    line = (torch.arange(size_px) + 0.5) * (2 / size_px) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    background = _paint(looks, 0, family, *(axis.expand(len(poses), 1, -1, -1) for axis in (x, y)))
    centre_x, centre_y, angle, log_size = poses[..., None, None].unbind(2)
    u, v = _rotate(x - centre_x, y - centre_y, angle)
    size = _REST_SIZE * log_size.exp()
    u, v = u / size, v / size
    outline = _by_kind(family.shapes, looks.shape, u, v) * size
    # One pixel is 2 / size_px wide: the edge fades over it.
    inside = (0.5 - outline * (size_px / 2)).clamp(0, 1)[:, :, None]
    # The texture is painted on the object: it moves, turns and grows with it.
    painted = _paint(looks, 1, family, u * _REST_SIZE, v * _REST_SIZE)
    return (torch.lerp(background, painted, inside) * 255).round().clamp(0, 255).to(torch.uint8)


def draw_clips(
    num_clips: int,
    seed: int,
    family: FamilyName = "train",
    *,
    num_frames: int = 16,
    size_px: int = 48,
) -> tuple[Tensor, Tensor]:
    """Draws clips in memory.

    Args:
        num_clips: B, spread evenly over the classes, in random order.
        seed: The same seed gives the same clips.
        family: Which shapes, textures and speeds.
        num_frames: T.
        size_px: Height and width of a frame.

    Returns:
        (B, T, 3, H, W) uint8 RGB frames and (B,) int64 labels, indices of `MOTIONS`.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = _draw_labels(num_clips, generator)
    looks = _draw_looks(num_clips, FAMILIES[family], generator)
    poses = _draw_poses(labels, num_frames, FAMILIES[family], generator)
    clips = torch.empty(num_clips, num_frames, 3, size_px, size_px, dtype=torch.uint8)
    for rows in _chunks(num_clips):
        clips[rows] = _render(looks[rows], poses[rows], size_px, FAMILIES[family])
    return clips, labels


def _chunks(num: int, size: int = 32) -> Iterator[slice]:
    for start in range(0, num, size):
        yield slice(start, min(start + size, num))
