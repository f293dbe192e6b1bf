"""Use case: show what a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stjepa_cli.core.serialization import to_dict
from stjepa_cli.models.checkpoint import CheckpointHeader, newest_checkpoint, read_header
from stjepa_cli.models.tensor_file import TensorInfo, list_tensors, read_tensors


@dataclass(frozen=True)
class TensorStatistics:
    """Statistics over the finite values of a tensor; None if it has none.

    Attributes:
        mean: Mean.
        std: Standard deviation.
        min: Lowest value.
        max: Highest value.
        nonfinite: Number of values that are NaN or infinite.
    """

    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    nonfinite: int


@dataclass(frozen=True)
class CheckpointReport:
    """Contents of a checkpoint.

    Attributes:
        path: The file.
        header: Its header.
        parameters: Number of values in the file.
        student_parameters: Number of values that belong to the encoder.
        tensors: Names, shapes and types of the tensors.
        statistics: Statistics by tensor; None if no tensor was loaded.
    """

    path: Path
    header: CheckpointHeader
    parameters: int
    student_parameters: int
    tensors: tuple[TensorInfo, ...]
    statistics: Mapping[str, TensorStatistics] | None = None

    @property
    def finite(self) -> bool | None:
        """True if no tensor holds a NaN or an infinity; None if the tensors were not loaded."""
        return None if self.statistics is None else all(found.nonfinite == 0 for found in self.statistics.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        header = to_dict(self.header)
        return {
            "path": str(self.path),
            "step": self.header.step,
            "epoch": self.header.epoch,
            "parameters": self.parameters,
            "student_parameters": self.student_parameters,
            "config": header["run"],
            "clip": header["clip"],
            "teacher": header["teacher"],
            "dataset": self.header.dataset,
            "cache_digest": self.header.cache_digest,
            "software": header["software"],
            "finite": self.finite,
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "dtype": t.dtype} | (asdict(self.statistics[t.name]) if self.statistics else {})
                for t in self.tensors
            ],
        }


def inspect_checkpoint(path: Path, *, stats: bool = False) -> CheckpointReport:
    """Read a checkpoint, or the newest one of a folder.

    Args:
        path: Checkpoint, or a folder of checkpoints.
        stats: Load the tensors and compute their statistics; otherwise only the header is read.

    Raises:
        CheckpointError: The checkpoint is missing, truncated, or not one of stjepa.
    """
    file = newest_checkpoint(path) if path.is_dir() else path
    header, tensors = read_header(file), list_tensors(file)
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in tensors}
    return CheckpointReport(
        path=file,
        header=header,
        parameters=sum(sizes.values()),
        student_parameters=sum(size for name, size in sizes.items() if name.startswith("student.")),
        tensors=tensors,
        statistics={name: _statistics(tensor) for name, tensor in read_tensors(file).items()} if stats else None,
    )


def _statistics(tensor: torch.Tensor) -> TensorStatistics:
    values = tensor.double().flatten()
    finite = values[values.isfinite()]
    nonfinite = len(values) - len(finite)
    if not len(finite):
        return TensorStatistics(None, None, None, None, nonfinite)
    low, high = finite.aminmax()
    return TensorStatistics(float(finite.mean()), float(finite.std(correction=0)), float(low), float(high), nonfinite)
