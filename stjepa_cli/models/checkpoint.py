"""Checkpoints: a typed header and the tensors of a run in one safetensors file, the optimizer's state in a second one beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import CheckpointError, ConfigError
from stjepa_cli.core.serialization import from_dict, refuse_newer, to_dict
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.models.tensor_file import read_metadata, read_tensors, write_tensors

SCHEMA = 1
_HEADER, _STEP = "stjepa", "step"
_NAME = re.compile(r"checkpoint_step(\d+)\.safetensors")


@dataclass(frozen=True)
class CheckpointHeader:
    """Where a checkpoint comes from and how to build its student.

    Attributes:
        step: Number of optimizer steps taken.
        epoch: Number of whole epochs done.
        run: Configuration of the run.
        clip: Clips that the student takes.
        latent_dim: Width E of the latents that it predicts.
        teacher: Teacher that computed the latents.
        cache_digest: Digest of the cache's header.
        dataset: Name and split of the data set, `ssv2/train`.
        software: Versions of the software that wrote the checkpoint.
        schema: Version of this format.
        second_latent_dim: Width of the latents of a second cache, 0 without one.
        second_cache_digest: Digest of its header, empty without one.
    """

    step: int
    epoch: int
    run: RunConfig
    clip: ClipSpec
    latent_dim: int
    teacher: TeacherCard
    cache_digest: str
    dataset: str
    software: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    second_latent_dim: int = 0
    second_cache_digest: str = ""

    @staticmethod
    def upgrade(data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a header in today's layout: a run that names no schedule began with the first one."""
        run = data.get("run")
        return {**data, "run": {"schedule": 1, **run}} if isinstance(run, Mapping) else dict(data)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"checkpoint_step{step}.safetensors"


def optimizer_path(checkpoint: Path) -> Path:
    """Return the path of the optimizer's state that belongs to a checkpoint."""
    return checkpoint.with_name(checkpoint.stem + ".optimizer.safetensors")


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder by ascending step."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint_step*.safetensors") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint with the highest step in a folder.

    Raises:
        CheckpointError: The folder holds no checkpoint.
    """
    found = list_checkpoints(folder)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {folder}", fix="Type `stjepa pretrain`, or name one with --checkpoint.")
    return found[-1]


def write_checkpoint(path: Path, header: CheckpointHeader, tensors: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
    """Write a checkpoint. The optimizer's state is written first, so that a checkpoint that exists is complete.

    Args:
        path: Where the checkpoint goes, as `checkpoint_path` returns it.
        header: Header of the checkpoint.
        tensors: Tensors by name, grouped as `student.…`, `predictor.…`, `ema.…`.
        optimizer: State of the optimizer by name.

    Raises:
        StjepaError: The disk is full or cannot be written.
    """
    write_tensors(optimizer_path(path), optimizer, {_STEP: str(header.step)})
    write_tensors(path, tensors, {_HEADER: json.dumps(to_dict(header), sort_keys=True)})


def read_header(path: Path) -> CheckpointHeader:
    """Read the header of a checkpoint without loading a tensor.

    Raises:
        CheckpointError: The file is missing, truncated, damaged, or not a checkpoint of stjepa.
        UnreadableError: The file cannot be read, or a newer version wrote it.
    """
    text = read_metadata(path).get(_HEADER)
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file but not a checkpoint of stjepa", expected="a header named stjepa")
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ConfigError("it is not a JSON object")
        refuse_newer(data, SCHEMA, f"the checkpoint {path}")
        return from_dict(CheckpointHeader, data, where=f"the header of {path}")
    except (ConfigError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} cannot be understood", got=str(error)) from error


def read_optimizer(checkpoint: Path, step: int) -> dict[str, Tensor]:
    """Read the optimizer's state that belongs to a checkpoint.

    Args:
        checkpoint: Path of the checkpoint.
        step: Step of the checkpoint.

    Raises:
        CheckpointError: The state is missing, damaged, or belongs to another step.
        UnreadableError: The file cannot be read.
    """
    path = optimizer_path(checkpoint)
    found = read_metadata(path).get(_STEP)
    if found != str(step):
        raise CheckpointError(f"{path} belongs to another checkpoint", got=f"step {found}", expected=f"step {step}")
    return read_tensors(path)


def check_checkpoint(path: Path) -> CheckpointHeader:
    """Read a checkpoint and its optimizer's state completely, and return its header.

    Raises:
        CheckpointError: A file is missing or damaged, or the two do not belong together.
        UnreadableError: A file cannot be read.
    """
    header = read_header(path)
    read_tensors(path)
    read_optimizer(path, header.step)
    return header
