"""Sizes of the motion benchmark: what is generated, cached, trained and scored. The demo is the smallest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.demo.scenes import GeneratedClips, Task

TEACHER = "tiny_videomae_motion"
"""The shipped teacher; it takes the clips of the smallest size."""
HOG = "hog"
NUM_VALIDATION = 64


@dataclass(frozen=True)
class StudentRow:
    """A student of the table.

    Attributes:
        name: Name in the table.
        teacher: What it learns from: `tiny_videomae_motion`, a built-in name, a folder or a Hugging Face id; empty for pixels alone.
        recipe: Name of a recipe of pretraining.
        folder: Run folder below the output folder.
        settings: Further settings of the run, which win over those of the size.
    """

    name: str
    teacher: str
    recipe: str
    folder: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class BenchmarkSize:
    """Numbers of a benchmark.

    Attributes:
        scenes: Key of `motions.SCENES`.
        num_clips: Clips to pretrain on, family `train`.
        num_train: Clips to fit probes on, family `unseen`.
        num_test: Clips to score, family `unseen`.
        video_frames: Frames of a file.
        video_px: Height and width of a file.
        clip: Clips that students and teachers of free geometry take.
        preset: Sizes of the student.
        latent_dim: Channels of the cached latents.
        views: K, views of each clip in the cache of a teacher that has no weights and so costs little; other teachers get one.
        epochs: Passes over the clips.
        batch_size: Clips per step.
        lr: Peak learning rate at 64 clips per step.
        memory_gb: Memory for decoded clips while students are trained.
        teachers: Default teachers.
        recipes: Default recipes.
    """

    scenes: str
    num_clips: int
    num_train: int
    num_test: int
    video_frames: int
    video_px: int
    clip: ClipSpec
    preset: str
    latent_dim: int
    views: int
    epochs: int
    batch_size: int
    lr: float
    memory_gb: float
    teachers: tuple[str, ...]
    recipes: tuple[str, ...]

    def pretraining_clips(self, seed: int) -> GeneratedClips:
        """Return the clips that are cached and learned from; both tasks share them."""
        return self._clips(self.num_clips + NUM_VALIDATION, seed, "train", "motion")

    def scored_clips(self, seed: int, task: Task) -> GeneratedClips:
        """Return the clips that probes are fitted and scored on."""
        return self._clips(self.num_train + self.num_test, seed + 1, "unseen", task)

    def _clips(self, num: int, seed: int, family: str, task: Task) -> GeneratedClips:
        return GeneratedClips(self.scenes, num, seed, family, task, self.video_frames, self.video_px)


SIZES: dict[str, BenchmarkSize] = {
    "minutes": BenchmarkSize(
        scenes="8",
        num_clips=3000,
        num_train=400,
        num_test=400,
        video_frames=16,
        video_px=48,
        clip=ClipSpec(num_frames=8, size_px=32, tubelet=2, patch_px=8),
        preset="tiny",
        latent_dim=96,
        views=4,
        epochs=20,
        batch_size=32,
        lr=2.83e-3,  # so 2e-3 at 32 clips
        memory_gb=2.0,
        teachers=(TEACHER, HOG),
        recipes=("dense", "st-jepa"),
    ),
    "hour": BenchmarkSize(
        scenes="16",
        num_clips=6000,
        num_train=800,
        num_test=800,
        video_frames=16,
        video_px=64,
        clip=ClipSpec(num_frames=16, size_px=64, tubelet=2, patch_px=8),
        preset="tiny",
        latent_dim=96,
        views=2,
        epochs=10,
        batch_size=32,
        lr=2.83e-3,
        memory_gb=2.0,
        teachers=(HOG,),
        recipes=("dense", "mixed", "st-jepa"),
    ),
    "gpu": BenchmarkSize(
        scenes="24",
        num_clips=40_000,
        num_train=2400,
        num_test=2400,
        video_frames=16,
        video_px=128,
        clip=ClipSpec(num_frames=16, size_px=112, tubelet=2, patch_px=8),
        preset="small",
        latent_dim=192,
        views=1,
        epochs=20,
        batch_size=64,
        lr=1e-3,
        memory_gb=32.0,  # all of them, so that they are decoded once
        teachers=(HOG,),
        recipes=("dense", "mixed", "st-jepa"),
    ),
}


def teacher_place(name: str) -> str:
    """Return what `open_teacher` takes for a teacher of the table: the folder of the shipped one, any other name as it is."""
    return str(files("stjepa_cli.demo") / "assets" / TEACHER) if name == TEACHER else name
