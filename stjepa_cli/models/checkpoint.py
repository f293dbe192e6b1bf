"""Checkpoints: tensors with a typed header in safetensors files, written atomically. Nothing is ever unpickled.

The one place that knows safetensors. Tensors are grouped by the first part of their names: `student.`, `predictor.`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import CheckpointError, ConfigError
from stjepa_cli.core.files import replacing
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.core.types import ClipSpec, TeacherCard

SCHEMA = 1
_NAME = re.compile(r"checkpoint_step(\d+)\.safetensors")


@dataclass(frozen=True)
class CheckpointHeader:
    """Where a checkpoint comes from and how to build its student.

    Attributes:
        step: optimizer steps taken.
        epoch: whole epochs done.
        run: the description of the run.
        clip: the clips that the student takes.
        latent_dim: E, width of the latents that it predicted.
        teacher: who made the latents.
        cache_digest: digest of the cache's header.
        dataset: name and split, `ssv2/train`.
        software: versions of what wrote it.
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


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and type of one stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"checkpoint_step{step}.safetensors"


def optimizer_path(checkpoint: Path) -> Path:
    """Where the optimizer's state of a checkpoint lies."""
    return checkpoint.with_name(checkpoint.stem + ".optimizer.safetensors")


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint_step*.safetensors") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint of the highest step in a folder.

    Raises:
        CheckpointError: there is none.
    """
    found = list_checkpoints(folder)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {folder}", fix="Type `stjepa pretrain`, or name one with --checkpoint.")
    return found[-1]


def write_checkpoint(path: Path, header: CheckpointHeader, tensors: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
    """Write a checkpoint and, before it, its optimizer state: a checkpoint that is there is whole.

    Raises:
        StjepaError: the disk is full or cannot be written.
    """
    write_tensors(optimizer_path(path), optimizer, {"step": str(header.step)})
    write_tensors(path, tensors, {"stjepa": json.dumps(to_dict(header), sort_keys=True)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file that is either there and whole, or not there."""
    with replacing(path) as part:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, metadata)
        except SafetensorError as error:
            raise _as_os_error(error) from error


def read_header(path: Path) -> CheckpointHeader:
    """The header alone, without loading a tensor.

    Raises:
        CheckpointError: missing, truncated, or not one of stjepa's checkpoints.
    """
    text = read_metadata(path).get("stjepa")
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file but not a checkpoint of stjepa", expected="a header named stjepa")
    try:
        return from_dict(CheckpointHeader, json.loads(text), where=f"the header of {path}")
    except (ConfigError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the header of {path} cannot be understood", got=str(error)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The names and texts that were given to `write_tensors`, without loading a tensor.

    Raises:
        CheckpointError: missing or truncated.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def list_tensors(path: Path) -> tuple[TensorInfo, ...]:
    """Names, shapes and types of the tensors in a file, without loading them."""
    with _opened(path) as file:
        slices = [(name, file.get_slice(name)) for name in sorted(file.keys())]
        return tuple(TensorInfo(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices)


def read_tensors(path: Path, group: str = "") -> dict[str, Tensor]:
    """The tensors of a group (`student`), without the group's name in theirs; all of them if it is empty.

    Raises:
        CheckpointError: missing or truncated.
    """
    prefix = f"{group}." if group else ""
    with _opened(path) as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}", fix="Type `stjepa pretrain` to make one.") from error
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is no whole safetensors file", got=reason, fix="Use an earlier checkpoint of the run.") from error


def _as_os_error(error: SafetensorError) -> Exception:
    """Safetensors wraps what the system said in text; get its number back."""
    match = re.search(r"os error (\d+)", str(error))
    return OSError(int(match[1]), str(error)) if match else error
