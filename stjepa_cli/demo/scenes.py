"""Generated clips whose label is only in the motion, and their twin whose label is only in the appearance.

Motion and looks of a clip are independent, so one student answers for both tasks: `motion` labels a clip by its motion,
`appearance` by the outline of its objects and by the texture of the whole scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.demo.motions import ANGLE, APPEARANCE_SCENES, GAP_TILT, REST_GAP, SCENES, SIZE, Scenes, moments
from stjepa_cli.demo.patterns import Family, FamilyName, family_of, pattern_name
from stjepa_cli.demo.synthetic import Looks, random_looks, render, uniform

Task = Literal["motion", "appearance"]

TASKS: tuple[Task, ...] = ("motion", "appearance")
CLIPS_PER_BLOCK = 256


@dataclass(frozen=True)
class ClipBlock:
    """Up to `CLIPS_PER_BLOCK` clips before they are rendered.

    Attributes:
        labels: int64 (R,), classes of the task.
        motions: int64 (R,), index of each clip's motion.
        looks: Appearance.
        poses: float32 (R, T, O, 4): x, y, angle and log size of each object in each frame.
    """

    labels: Tensor
    motions: Tensor
    looks: Looks
    poses: Tensor


@dataclass(frozen=True)
class GeneratedClips:
    """A set of clips: a pure function of these settings.

    Attributes:
        scenes: Key of `SCENES`.
        num_clips: Number of clips, spread evenly over the classes, in random order.
        seed: The same seed gives the same clips.
        family: Shapes, textures and speeds: `train` or `unseen`.
        task: What the label says: `motion` or `appearance`.
        num_frames: T.
        size_px: Height and width of a frame.

    Raises:
        ConfigError: Unknown scenes, family or task, or a size below 1.
    """

    scenes: str
    num_clips: int
    seed: int
    family: str = "train"
    task: str = "motion"
    num_frames: int = 16
    size_px: int = 48

    def __post_init__(self) -> None:
        for what, value, known in (
            ("scenes", self.scenes, tuple(SCENES)),
            ("family", self.family, ("train", "unseen")),
            ("task", self.task, TASKS),
        ):
            if value not in known:
                raise ConfigError(f"unknown {what}", got=repr(value), expected="one of " + ", ".join(known))
        if min(self.num_clips, self.num_frames, self.size_px) < 1:
            raise ConfigError("clips, frames and pixels must be at least 1", got=f"{self.num_clips}, {self.num_frames}, {self.size_px}")

    @cached_property
    def scene(self) -> Scenes:
        """The scenes themselves."""
        shown = SCENES[self.scenes]
        return shown if self.task == "motion" else APPEARANCE_SCENES.get(self.scenes, shown)

    @cached_property
    def patterns(self) -> Family:
        """The outlines, textures and speeds."""
        return family_of("train" if self.family == "train" else "unseen", self.scene.num_patterns)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        if self.task == "motion":
            return tuple(motion.name for motion in self.scene.motions)
        family = self.patterns
        return tuple(pattern_name(shape) + pattern_name(texture) for shape in family.shapes for texture in family.textures)

    @property
    def templates(self) -> tuple[str, ...]:
        """Templates in the order of the labels."""
        if self.task == "motion":
            return tuple(motion.template for motion in self.scene.motions)
        return tuple(f"Showing [something] that is {name}" for name in self.classes)

    @property
    def blocks(self) -> range:
        """Numbers of the first clip of each block."""
        return range(0, self.num_clips, CLIPS_PER_BLOCK)

    def block(self, start: int) -> ClipBlock:
        """Return the clips from number `start` of `blocks` on, from a seed of their own."""
        num = min(CLIPS_PER_BLOCK, self.num_clips - start)
        return random_block(self, num, torch.Generator().manual_seed(self.seed * 100_003 + start))

    def labels(self) -> list[int]:
        """Return the label of every clip, in order; nothing is rendered."""
        return [label for start in self.blocks for label in self.block(start).labels.tolist()]

    def render(self, block: ClipBlock, rows: slice) -> Tensor:
        """Return rows of a block as frames, uint8 (R, T, 3, S, S)."""
        return render(block.looks[rows], block.poses[rows], self.size_px, self.patterns, rest_size=self.scene.style.rest_size)


def random_block(clips: GeneratedClips, num: int, generator: torch.Generator) -> ClipBlock:
    """Return `num` random clips of the given kind."""
    scene, family = clips.scene, clips.patterns
    motions = _random_labels(num, len(scene.motions), generator)
    looks = random_looks(num, scene.num_objects, family, scene.style, generator)
    values = _random_values(motions, clips.num_frames, scene, family, generator)
    poses = values[:, :, None] if scene.num_objects == 1 else _two_objects(values, scene, generator)
    if clips.task == "motion":
        return ClipBlock(motions, motions, looks, poses)
    labels = _random_labels(num, len(family.shapes) * len(family.textures), generator)
    looks.shape[:] = (labels // len(family.textures))[:, None]
    looks.texture[:] = (labels % len(family.textures))[:, None]  # of the background too
    return ClipBlock(labels, motions, looks, poses)


def draw_clips(
    num_clips: int,
    seed: int,
    family: FamilyName = "train",
    *,
    num_frames: int = 16,
    size_px: int = 48,
    scenes: str = "8",
    task: Task = "motion",
) -> tuple[Tensor, Tensor]:
    """Generate clips in memory, in one block.

    Args:
        num_clips: B, spread evenly over the classes, in random order.
        seed: The same seed gives the same clips.
        family: Shapes, textures and speeds.
        num_frames: T.
        size_px: Height and width of a frame.
        scenes: Key of `SCENES`.
        task: What the label says.

    Returns:
        (B, T, 3, H, W) uint8 RGB frames and (B,) int64 labels, indices of the task's classes.
    """
    clips = GeneratedClips(scenes, num_clips, seed, family, task, num_frames, size_px)
    block = random_block(clips, num_clips, torch.Generator().manual_seed(seed))
    return clips.render(block, slice(None)), block.labels


def _random_labels(num: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Return (num,) int64 labels in random order, each class as often as the others or once more."""
    return (torch.arange(num) % num_classes)[torch.randperm(num, generator=generator)]


def _random_values(motions: Tensor, num_frames: int, scene: Scenes, family: Family, generator: torch.Generator) -> Tensor:
    """Return (R, T, A), the value of each axis in each frame."""
    num, axes = len(motions), scene.axes
    length = uniform((num, len(axes)), *family.speeds, generator) * torch.tensor([axis.segment for axis in axes])
    middle = uniform((num, len(axes)), -1.0, 1.0, generator) * torch.tensor([axis.middle for axis in axes])
    # The resting axes stop at a moment of the very grid on which the moving axis is seen.
    moment = torch.randint(num_frames, (num, len(axes), 1), generator=generator).expand(-1, -1, num_frames)
    moving = torch.arange(len(axes)) == torch.tensor([motion.axis for motion in scene.motions])[motions][:, None]
    clock = torch.stack([moments(motion.order, num_frames) for motion in scene.motions])[motions]
    moment = torch.where(moving[:, :, None], clock[:, None], moment)
    progress = moment.float() / max(num_frames - 1, 1)
    accelerated = torch.tensor([axis.accelerated for axis in axes])[:, None]
    progress = torch.where(accelerated, progress.square(), progress) - 0.5
    return (middle[:, :, None] + length[:, :, None] * progress).transpose(1, 2)


def _two_objects(values: Tensor, scene: Scenes, generator: torch.Generator) -> Tensor:
    """Return (R, T, 2, 4) poses: the other object first, since the acting one covers it."""
    num, num_frames = values.shape[:2]
    x, y, angle, size, fall, gap = values.unbind(2)
    side = 1.0 - 2.0 * torch.randint(2, (num, 1), generator=generator)
    tilt = uniform((num, 1), -GAP_TILT, GAP_TILT, generator)
    half = (REST_GAP + gap) / 2
    across, upright = side * half * tilt.cos(), half * tilt.sin()
    other_angle, other_size = (
        uniform((num, 1), -1.0, 1.0, generator).expand(-1, num_frames) * (scene.axes[i].middle + scene.axes[i].segment / 2)
        for i in (ANGLE, SIZE)
    )
    other = torch.stack([across, upright, other_angle, other_size], dim=2)
    acting = torch.stack([x - across, y + fall - upright, angle, size], dim=2)
    return torch.stack([other, acting], dim=2)
