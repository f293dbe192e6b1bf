"""What can be scored, by the names that people type: checkpoints, releases, teachers, and the baselines."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.encoders.base import Encoder
from stjepa_cli.encoders.pixel_encoder import PixelEncoder
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.encoders.teacher_encoder import TeacherEncoder
from stjepa_cli.models.checkpoint import list_checkpoints, newest_checkpoint, read_header
from stjepa_cli.models.release import MODEL_TYPE
from stjepa_cli.models.student import Student
from stjepa_cli.teachers.base import open_teacher

UNTRAINED = "untrained"
PIXELS = PixelEncoder.name


def open_encoder(name: str, *, device: torch.device, run: Path, clip: ClipSpec | None = None) -> Encoder:
    """The encoder of a name.

    Args:
        name: a checkpoint, a folder of checkpoints (its newest), a folder of an exported student, `untrained`, `pixels`, a
            teacher that needs no weights (`hog`), or a folder or Hugging Face id of any other teacher.
        device: where it computes.
        run: a checkpoint, or a folder of checkpoints, whose student `untrained` is at step 0.
        clip: the clips of what it is compared with, for those that take any.

    Raises:
        CheckpointError: a checkpoint or release that is missing, damaged, or of another shape.
        TeacherError: no such teacher.
    """
    path = Path(name)
    if name == PIXELS:
        return PixelEncoder(clip or ClipSpec())
    if name == UNTRAINED:
        return StudentEncoder(_untrained(_checkpoint(run)).to(device), UNTRAINED)
    if path.is_file() or (path.is_dir() and list_checkpoints(path)):
        return StudentEncoder.open(_checkpoint(path), device)
    if is_release(path):
        return StudentEncoder(Student.from_pretrained(path).to(device), name)
    free = name in plugins.names("teachers") and plugins.load("teachers", name).built_in
    return TeacherEncoder(open_teacher(name, clip=clip if free else None, device=device))


def _checkpoint(path: Path) -> Path:
    return path if path.suffix == ".safetensors" or path.is_file() else newest_checkpoint(path)


def _untrained(checkpoint: Path) -> Student:
    """The student of a run before its first step: the same sizes, the same draw."""
    header = read_header(checkpoint)
    student = Student(header.run.student, header.clip, torch.Generator().manual_seed(header.run.seed))
    return student.eval().requires_grad_(False)


def is_release(path: Path) -> bool:
    """Whether a folder holds an exported student."""
    try:
        found = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("model_type") == MODEL_TYPE


def at_layer(encoder: Encoder, layer: int | None) -> Encoder:
    """The same encoder, giving the tokens of another block.

    Raises:
        ConfigError: it is no student, or has no such block.
    """
    if layer is None:
        return encoder
    if not isinstance(encoder, StudentEncoder):
        raise ConfigError("only students give the tokens of a block", got=f"layer {layer} of {encoder.name}", fix="Leave out --layer.")
    return StudentEncoder(encoder.student, encoder.name, layer)
