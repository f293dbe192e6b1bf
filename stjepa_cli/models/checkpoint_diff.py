"""Use case: compare two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stjepa_cli.core.serialization import to_dict
from stjepa_cli.models.checkpoint import CheckpointHeader, newest_checkpoint, read_header
from stjepa_cli.models.tensor_file import TensorInfo, list_tensors, read_tensors


@dataclass(frozen=True)
class Change:
    """A value that differs, a header field or the shape of a tensor; None where a checkpoint lacks it."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class TensorDifference:
    """Distance between two tensors of the same name and shape.

    Attributes:
        name: Name of the tensor.
        relative: L2 norm of the difference divided by that of the old tensor; None if the old tensor is all zeros or a value is not
            finite.
        max_abs: Largest absolute difference; None if a value is not finite.
    """

    name: str
    relative: float | None
    max_abs: float | None


@dataclass(frozen=True)
class CheckpointDifference:
    """Differences between two checkpoints.

    Attributes:
        old: First checkpoint.
        new: Second checkpoint.
        header: Header fields that differ, by dotted name.
        only_old: Names of tensors that only the first has.
        only_new: Names of tensors that only the second has.
        shapes: Tensors whose shape or type differs, as `3x4 F32`.
        tensors: Tensors of the same shape that differ, largest relative difference first.
        equal: Number of equal tensors.
    """

    old: Path
    new: Path
    header: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    shapes: tuple[Change, ...]
    tensors: tuple[TensorDifference, ...]
    equal: int

    def to_dict(self) -> dict[str, Any]:
        """Return the differences as JSON-able values."""
        return asdict(self) | {"old": str(self.old), "new": str(self.new)}


def compare_checkpoints(old: Path, new: Path) -> CheckpointDifference:
    """Compare headers and tensors of two checkpoints; a folder stands for its newest one.

    Raises:
        CheckpointError: A checkpoint is missing, truncated, or not one of stjepa.
    """
    old, new = (newest_checkpoint(path) if path.is_dir() else path for path in (old, new))
    header = _changes(_fields(read_header(old)), _fields(read_header(new)))
    infos = [{tensor.name: _described(tensor) for tensor in list_tensors(path)} for path in (old, new)]
    shared = infos[0].keys() & infos[1].keys()
    a, b = read_tensors(old), read_tensors(new)
    found = [_difference(name, a[name], b[name]) for name in sorted(shared) if a[name].shape == b[name].shape]
    differing = [difference for difference in found if difference is not None]
    return CheckpointDifference(
        old=old,
        new=new,
        header=header,
        only_old=tuple(sorted(infos[0].keys() - shared)),
        only_new=tuple(sorted(infos[1].keys() - shared)),
        shapes=_changes({name: infos[0][name] for name in shared}, {name: infos[1][name] for name in shared}),
        tensors=tuple(sorted(differing, key=_size, reverse=True)),
        equal=len(found) - len(differing),
    )


def _fields(header: CheckpointHeader) -> dict[str, Any]:
    """Flatten a header to dotted names, `run.optimizer.lr`."""
    flat: dict[str, Any] = {}
    pending = list(to_dict(header).items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name}.{key}", item) for key, item in value.items()]
        else:
            flat[name] = value
    return flat


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Change, ...]:
    names = sorted(old.keys() | new.keys())
    return tuple(Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name))


def _described(tensor: TensorInfo) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype}"


def _difference(name: str, old: Tensor, new: Tensor) -> TensorDifference | None:
    """Return the difference of two tensors, or None if they are equal; NaNs in the same places count as equal."""
    a, b = old.double(), new.double()
    if torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan()):
        return None
    difference = b - a
    if not bool(difference.isfinite().all()):
        return TensorDifference(name, None, None)
    norm = float(a.norm())
    return TensorDifference(name, float(difference.norm()) / norm if norm > 0 else None, float(difference.abs().max()))


def _size(difference: TensorDifference) -> tuple[bool, float, float]:
    """Sort key: values that are not finite rank highest, then tensors that were all zeros, then by relative difference."""
    relative, max_abs = difference.relative, difference.max_abs
    return max_abs is None, math.inf if relative is None else relative, max_abs or 0.0
