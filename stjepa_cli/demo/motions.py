"""Motions that generated clips show, and the scenes that show them.

A scene has axes: degrees of freedom of its objects, such as the height of one or the gap between two. In a clip the value of one
axis, that of its motion, visits every moment of a path in some order; along each of the other axes the objects rest at one random
moment of a path chosen in the same way. So a frame taken at an unknown, random time has the same distribution in every motion,
and motions of one axis differ in nothing but the order of their frames:

```text
moments of a path, T = 6     rise 0 1 2 3 4 5     fall 5 4 3 2 1 0     out and back 0 2 4 5 3 1     back and out 5 3 1 0 2 4
```

(A frame *known* to be the first does tell something: what will move right starts on the left.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from stjepa_cli.demo.synthetic import Style

Order = Literal["rise", "fall", "out_back", "back_out"]

REVERSED: dict[Order, Order] = {"rise": "fall", "fall": "rise", "out_back": "out_back", "back_out": "back_out"}
"""The order that frames have when they are played backwards, up to a step of one moment on the way out and back."""


@dataclass(frozen=True)
class Axis:
    """A degree of freedom of a scene.

    Attributes:
        segment: Length of its path at speed 1, in half-frames, radians or natural logarithms of the size.
        middle: Farthest that the middle of the path may lie from the rest pose.
        accelerated: The value grows with the square of the moment, as in free fall.
    """

    segment: float
    middle: float
    accelerated: bool = False


@dataclass(frozen=True)
class Motion:
    """A class of the motion task.

    Attributes:
        name: As UCF-101 writes class names.
        template: As Something-Something v2 writes templates.
        axis: Index of the axis that moves.
        order: Order in which the moments of its path are visited.
    """

    name: str
    template: str
    axis: int
    order: Order


@dataclass(frozen=True)
class Scenes:
    """A set of motions and what they are shown with.

    Attributes:
        axes: Degrees of freedom: x, y (downwards), angle, log size, and for two objects fall (downwards) and gap.
        motions: Classes of the motion task.
        num_objects: 1, or 2 of which the first one acts and both move where the gap does.
        num_patterns: Outlines, and textures, of each family; their pairs are the classes of the appearance task.
        style: Ranges of sizes and textures.
    """

    axes: tuple[Axis, ...]
    motions: tuple[Motion, ...]
    num_objects: int
    num_patterns: int
    style: Style


X, Y, ANGLE, SIZE, FALL, GAP = range(6)

_ONE_OBJECT = (
    Motion("MoveLeft", "Moving [something] left", X, "fall"),
    Motion("MoveRight", "Moving [something] right", X, "rise"),
    Motion("MoveUp", "Moving [something] up", Y, "fall"),
    Motion("MoveDown", "Moving [something] down", Y, "rise"),
    Motion("TurnCounterclockwise", "Turning [something] counterclockwise", ANGLE, "fall"),
    Motion("TurnClockwise", "Turning [something] clockwise", ANGLE, "rise"),
    Motion("Shrink", "Making [something] shrink", SIZE, "fall"),
    Motion("Grow", "Making [something] grow", SIZE, "rise"),
)
_TWO_OBJECTS = (
    Motion("PushRightToLeft", "Pushing [something] from right to left", X, "fall"),
    Motion("PushLeftToRight", "Pushing [something] from left to right", X, "rise"),
    Motion("MoveUp", "Moving [something] up", Y, "fall"),
    Motion("MoveDown", "Moving [something] down", Y, "rise"),
    Motion("TurnCounterclockwise", "Turning [something] counterclockwise", ANGLE, "fall"),
    Motion("TurnClockwise", "Turning [something] clockwise", ANGLE, "rise"),
    Motion("Recede", "Moving [something] away from the camera", SIZE, "fall"),
    Motion("Approach", "Moving [something] towards the camera", SIZE, "rise"),
    Motion("ThrowUp", "Throwing [something] in the air", FALL, "fall"),
    Motion("Drop", "Dropping [something]", FALL, "rise"),
    Motion("Meet", "Moving [something] and [something] closer to each other", GAP, "fall"),
    Motion("Part", "Moving [something] and [something] away from each other", GAP, "rise"),
    Motion("PretendToPushLeft", "Pretending to push [something] from right to left", X, "back_out"),
    Motion("PretendToPushRight", "Pretending to push [something] from left to right", X, "out_back"),
    Motion("PretendToBringTogether", "Pretending to bring [something] and [something] together", GAP, "back_out"),
    Motion("PretendToSeparate", "Pretending to separate [something] from [something]", GAP, "out_back"),
    Motion("PretendToPickUp", "Pretending to pick [something] up", Y, "back_out"),
    Motion("PretendToPutDown", "Pretending to put [something] down", Y, "out_back"),
    Motion("PretendToTurnCounterclockwise", "Pretending to turn [something] counterclockwise", ANGLE, "back_out"),
    Motion("PretendToTurnClockwise", "Pretending to turn [something] clockwise", ANGLE, "out_back"),
    Motion("PretendToTakeAway", "Pretending to take [something] away from the camera", SIZE, "back_out"),
    Motion("PretendToBringCloser", "Pretending to bring [something] closer to the camera", SIZE, "out_back"),
    Motion("ThrowAndCatch", "Throwing [something] in the air and catching it", FALL, "back_out"),
    Motion("DropAndBounce", "Dropping [something] so that it bounces back up", FALL, "out_back"),
)
_ONE_OBJECT_AXES = (Axis(0.9, 0.2), Axis(0.9, 0.2), Axis(2.0, math.pi), Axis(0.9, 0.15))
_TWO_OBJECT_AXES = (
    Axis(0.6, 0.1),
    Axis(0.6, 0.1),
    Axis(1.2, 0.3),
    Axis(0.9, 0.1),
    Axis(0.6, 0.1, accelerated=True),
    Axis(0.6, 0.1),
)
REST_GAP = 0.75
GAP_TILT = 0.6  # radians: objects meet more across than up and down, so that the height is left to the other axes

_LARGE_STYLE = Style(rest_size=0.36, periods=(2.5, 4.0), texture_angles=(-0.3, 0.3))

SCENES: dict[str, Scenes] = {
    "8": Scenes(_ONE_OBJECT_AXES, _ONE_OBJECT, num_objects=1, num_patterns=3, style=Style()),
    "16": Scenes(_TWO_OBJECT_AXES, _TWO_OBJECTS[:16], num_objects=2, num_patterns=4, style=_LARGE_STYLE),
    "24": Scenes(_TWO_OBJECT_AXES, _TWO_OBJECTS, num_objects=2, num_patterns=5, style=_LARGE_STYLE),
}
"""By number of motions."""

# At 32 px the looks of the eight motions tell too little: the appearance task shows larger objects, less turned, in finer textures.
APPEARANCE_SCENES = {
    "8": replace(
        SCENES["8"],
        axes=(*_ONE_OBJECT_AXES[:ANGLE], Axis(1.0, 0.3), *_ONE_OBJECT_AXES[ANGLE + 1 :]),
        style=Style(rest_size=0.6, periods=(2.5, 4.0), texture_angles=(-0.3, 0.3)),
    )
}


def moments(order: Order, num_frames: int) -> Tensor:
    """Return int64 (T,), a permutation of 0..T-1: the moment of the path that each frame shows."""
    every = torch.arange(num_frames)
    if order in ("out_back", "back_out"):
        every = torch.cat([every[::2], every[1::2].flip(0)])
    return every if order in ("rise", "out_back") else num_frames - 1 - every
