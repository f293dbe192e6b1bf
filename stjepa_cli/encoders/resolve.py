"""The encoder of a name that people type: a checkpoint, an exported student, a teacher, or a baseline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from stjepa_cli.core import plugins
from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.encoders.base import Encoder, EncoderCard, LabelUse
from stjepa_cli.encoders.pixel_encoder import PixelEncoder
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.encoders.teacher_encoder import TeacherEncoder
from stjepa_cli.models.checkpoint import list_checkpoints, newest_checkpoint, read_header
from stjepa_cli.models.release import CONFIG, MODEL_TYPE, read_config
from stjepa_cli.models.student import Student
from stjepa_cli.models.tensor_file import list_tensors
from stjepa_cli.teachers.base import open_teacher, survey

UNTRAINED = "untrained"
PIXELS = PixelEncoder.name


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder that is known by its name and not loaded yet.

    Attributes:
        name: A checkpoint, a folder of checkpoints (for the newest), an exported student, `untrained`, `pixels`, a teacher that
            needs no weights (`hog`), or the folder or Hugging Face id of any other teacher.
        run: A checkpoint or a folder of checkpoints. `untrained` is its student at step 0.
    """

    name: str
    run: Path

    def card(self, clip: ClipSpec | None = None) -> EncoderCard:
        """Read the headers of the encoder, without loading its weights.

        Weights of a Hugging Face id that are not on this disk are fetched now, so that a failed download is reported early.

        Args:
            clip: Clips for the encoders that take any, those of the encoder that they are compared with.

        Raises:
            CheckpointError: A checkpoint or an export is missing or has a damaged header.
            TeacherError: There is no such teacher.
        """
        path = Path(self.name)
        if self.name == PIXELS:
            return EncoderCard(PIXELS, clip or ClipSpec())
        if self.name == UNTRAINED:
            header = read_header(_checkpoint(self.run))
            return _student_card(UNTRAINED, header.clip, header.run.student)
        if _is_checkpoint(path):
            path = _checkpoint(path)
            header = read_header(path)
            list_tensors(path)
            return _student_card(str(path), header.clip, header.run.student)
        if is_release(path):
            release = read_config(path)
            return _student_card(self.name, release.clip, release.student)
        found = survey(self.name, clip=clip if _takes_any_clip(self.name) else None)
        if not found.at_hand:
            return EncoderCard(self.name, open_teacher(self.name).card.clip)
        return EncoderCard(self.name, found.clip)

    def open(self, device: torch.device, clip: ClipSpec | None = None) -> Encoder:
        """Load the encoder onto a device.

        Args:
            device: The device.
            clip: Clips for the encoders that take any, those of the encoder that they are compared with.

        Raises:
            CheckpointError: A checkpoint or an export is missing, damaged, or of another shape.
            TeacherError: There is no such teacher, or its weights cannot be loaded.
        """
        path = Path(self.name)
        if self.name == PIXELS:
            return PixelEncoder(clip or ClipSpec())
        if self.name == UNTRAINED:
            return StudentEncoder(_untrained(_checkpoint(self.run)).to(device), UNTRAINED, saw_labels=LabelUse("no"))
        if _is_checkpoint(path):
            return StudentEncoder.open(_checkpoint(path), device)
        if is_release(path):
            provenance = read_config(path).provenance
            saw_labels = LabelUse("no" if provenance.tuning is None else "yes", provenance.teacher.saw_labels or "unknown")
            return StudentEncoder(Student.from_pretrained(path).to(device), self.name, saw_labels=saw_labels)
        return TeacherEncoder(open_teacher(self.name, clip=clip if _takes_any_clip(self.name) else None, device=device))


def card_of(encoder: Encoder) -> EncoderCard:
    """Return the card of an encoder that is loaded."""
    num_blocks = encoder.student.block_number(-1) if isinstance(encoder, StudentEncoder) else None
    return EncoderCard(encoder.name, encoder.clip, num_blocks)


def is_release(path: Path) -> bool:
    """Return True if a folder holds an exported student."""
    try:
        found = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("model_type") == MODEL_TYPE


def at_layer(encoder: Encoder, layer: int | None) -> Encoder:
    """Return an encoder that gives the tokens of another block of the same model.

    Args:
        encoder: The encoder.
        layer: Number of the block, or None for the encoder as it is.

    Raises:
        ConfigError: The encoder is not a student, or has no such block.
    """
    if layer is None:
        return encoder
    if not isinstance(encoder, StudentEncoder):
        raise layer_error(encoder.name, layer)
    return StudentEncoder(encoder.student, encoder.name, layer, encoder.saw_labels)


def layer_error(name: str, layer: int) -> ConfigError:
    """Return the error for a block of an encoder that is not a student."""
    return ConfigError("only students give the tokens of a block", got=f"layer {layer} of {name}", fix="Leave out --layer.")


def _is_checkpoint(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.is_file() or (path.is_dir() and bool(list_checkpoints(path)))


def _checkpoint(path: Path) -> Path:
    return path if path.suffix == ".safetensors" or path.is_file() else newest_checkpoint(path)


def _student_card(name: str, clip: ClipSpec, config: StudentConfig) -> EncoderCard:
    return EncoderCard(name, clip, config.num_factorized + config.num_joint)


def _takes_any_clip(teacher: str) -> bool:
    return teacher in plugins.names("teachers") and bool(plugins.load("teachers", teacher).built_in)


def _untrained(checkpoint: Path) -> Student:
    """Return the student of a run before its first step: the same sizes and the same random weights."""
    header = read_header(checkpoint)
    student = Student(header.run.student, header.clip, torch.Generator().manual_seed(header.run.seed))
    return student.eval().requires_grad_(False)
