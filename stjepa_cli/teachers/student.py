"""A student as a teacher, from a checkpoint, a folder of checkpoints (its newest) or an exported folder.

A student learns from the student of another objective (SALT, arXiv 2509.24317) or from a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from stjepa_cli.core.devices import autocast
from stjepa_cli.core.errors import CheckpointError, ConfigError, TeacherError
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.core.types import ClipSpec, TeacherCard, digest
from stjepa_cli.models.checkpoint import list_checkpoints
from stjepa_cli.models.release import CONFIG, MODEL_TYPE, ReleaseConfig, release_of
from stjepa_cli.models.student import PIXEL_MEAN, PIXEL_STD, Student, load_student, tensors_digest
from stjepa_cli.models.tensor_file import read_metadata
from stjepa_cli.teachers._files import LOCAL
from stjepa_cli.teachers._weights import recorded
from stjepa_cli.teachers.base import ModelFiles, Outline, Teacher, kind_of


@dataclass(frozen=True)
class CheckpointFiles(ModelFiles):
    """A checkpoint of a training run, under the names of a model's files.

    Attributes:
        checkpoint: The checkpoint itself.
    """

    checkpoint: Path

    def config(self) -> dict[str, Any]:
        """Return what the `config.json` of an export would say."""
        return to_dict(release_of(self.checkpoint, PIXEL_MEAN, PIXEL_STD))

    def weights(self) -> tuple[Path, ...]:
        """Return the checkpoint."""
        return (self.checkpoint,)

    def description(self) -> str:
        """Name the checkpoint."""
        return f"the student in {self.checkpoint.name}"


class StudentTeacher(Teacher):
    """A frozen student: the moving average of its run where there is one, else the student itself. Its geometry is fixed."""

    model_types: ClassVar[tuple[str, ...]] = (MODEL_TYPE,)

    def __init__(self, card: TeacherCard, student: Student, device: torch.device) -> None:
        super().__init__(card, device)
        self.student = student
        self._blocks = (*student.factorized, *student.joint)

    @classmethod
    def find(cls, name: str) -> ModelFiles | None:
        path = Path(name).expanduser()
        if path.is_file() and _is_checkpoint(path):
            return CheckpointFiles(name, path.parent, LOCAL, path)
        if not name or not path.is_dir() or (path / CONFIG).exists():
            return None
        found = list_checkpoints(path)
        return CheckpointFiles(name, path, LOCAL, found[-1]) if found else None

    @classmethod
    def outline(cls, config: Mapping[str, Any], clip: ClipSpec | None) -> Outline:
        try:
            release = from_dict(ReleaseConfig, config, where="config.json")
        except ConfigError as error:
            raise TeacherError(
                error.what, got=error.got, expected=error.expected, fix="Update stjepa, or export the student again."
            ) from error
        num_layers = release.student.num_factorized + release.student.num_joint
        return Outline(release.clip, release.student.dim, release.provenance.teacher.licence, num_layers)

    @classmethod
    def saw_labels(cls, config: Mapping[str, Any]) -> str:
        """Return `yes` if the student was fine-tuned, else what is known of its own teacher."""
        provenance = from_dict(ReleaseConfig, config, where="config.json").provenance
        return "yes" if provenance.tuning is not None else provenance.teacher.saw_labels or "unknown"

    @classmethod
    def load(cls, files: ModelFiles | None, outline: Outline, device: torch.device) -> Self:
        if files is None:
            raise ValueError("a student is loaded from files")
        student = load_student(files.checkpoint, device)[0] if isinstance(files, CheckpointFiles) else Student.from_pretrained(files.folder)
        colours = {"mean": student.pixel_mean.flatten().tolist(), "std": student.pixel_std.flatten().tolist()}
        card = TeacherCard(
            name=files.name,
            kind=kind_of(cls),
            revision=files.revision,
            weights_digest=tensors_digest(student.state_dict()),  # the same for a checkpoint and for its export
            licence=outline.licence,
            dim=outline.dim,
            clip=outline.clip,
            token_norm="layernorm",
            settings_digest=digest({"student": to_dict(student.config), "geometry": to_dict(student.spec), **colours}),
        )
        return cls(card, student.to(device), device)

    @property
    def num_layers(self) -> int:
        return len(self._blocks)

    def _encode(self, clips: Tensor) -> Tensor:
        with autocast(self.device):
            tokens: Tensor = self.student(clips)
        return tokens

    def _encode_layers(self, clips: Tensor, layers: Sequence[int]) -> list[Tensor]:
        with recorded([self._blocks[layer - 1] for layer in layers]) as outputs:
            self._encode(clips)
        return [tokens.reshape(len(clips), -1, tokens.shape[-1]) for tokens in outputs]  # factorized blocks keep (t, h * w) apart


def _is_checkpoint(path: Path) -> bool:
    """Tell if a file is a checkpoint, by its name or by its header."""
    if path in list_checkpoints(path.parent):
        return True
    try:
        return "stjepa" in read_metadata(path)
    except CheckpointError:
        return False


plugin = StudentTeacher
