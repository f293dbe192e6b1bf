"""A student as an encoder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.core.devices import autocast
from stjepa_cli.core.serialization import to_dict
from stjepa_cli.core.types import TokenGrid, digest
from stjepa_cli.encoders.base import LabelUse
from stjepa_cli.models.student import Student, load_student, tensors_digest

UNKNOWN = LabelUse("no", "unknown")


class StudentEncoder:
    """A student as an encoder.

    Args:
        student: A frozen student.
        name: The name that is shown, usually the path of the checkpoint.
        layer: Block whose tokens are returned, counted from 1 or, if negative, from the end. None returns the output of the student.
        saw_labels: Whether labels were used to train it.
    """

    def __init__(self, student: Student, name: str, layer: int | None = None, saw_labels: LabelUse = UNKNOWN) -> None:
        self.student, self.name, self.clip, self.saw_labels = student.eval(), name, student.spec, saw_labels
        number = None if layer is None else student.block_number(layer)
        self.layer = None if number == student.block_number(-1) else number

    @classmethod
    def open(cls, path: Path, device: torch.device) -> StudentEncoder:
        """Load the student of a checkpoint.

        Raises:
            CheckpointError: The checkpoint is missing, damaged, or of another shape.
        """
        student, header = load_student(path, device)
        teacher = None if header.step == 0 else header.teacher.saw_labels or "unknown"
        return cls(student, str(path), saw_labels=LabelUse("no", teacher))

    @property
    def grid(self) -> TokenGrid:
        """The token grid of a clip."""
        return self.clip.grid

    @property
    def dim(self) -> int:
        """Width D of a token."""
        return self.student.config.dim

    @cached_property  # the student is frozen, and hashing takes as long as encoding a few videos
    def digest(self) -> str:
        """sha256 over weights, sizes and clip geometry, 64 hex digits."""
        tensors = self.student.state_dict() | {name: self.student.get_buffer(name) for name in ("pixel_mean", "pixel_std")}
        return digest({"student": to_dict(self.student.config), "clip": to_dict(self.clip), "weights": tensors_digest(tensors)})

    def encode(self, clips: Tensor) -> Tensor:
        """Encode clips uint8 (B, T, 3, S, S) into tokens (B, N, D)."""
        with autocast(clips.device):
            return self.student.forward_features(clips, self.layer or -1)
