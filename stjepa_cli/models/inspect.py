"""Use case: look into a file without running anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stjepa_cli.core.serialization import to_dict
from stjepa_cli.models.checkpoint import CheckpointHeader, TensorInfo, list_tensors, newest_checkpoint, read_header, read_tensors


@dataclass(frozen=True)
class TensorStatistics:
    """Of the finite numbers of one tensor; None where there are none.

    Attributes:
        nonfinite: how many are a NaN or an infinity.
    """

    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    nonfinite: int


@dataclass(frozen=True)
class CheckpointReport:
    """What a checkpoint holds.

    Attributes:
        parameters: numbers in the file.
        student_parameters: numbers of the encoder among them.
        tensors: names, shapes and types.
        statistics: by tensor; None if no tensor was loaded.
    """

    path: Path
    header: CheckpointHeader
    parameters: int
    student_parameters: int
    tensors: tuple[TensorInfo, ...]
    statistics: Mapping[str, TensorStatistics] | None = None

    @property
    def finite(self) -> bool | None:
        """No tensor holds a NaN or an infinity; None if that was not looked at."""
        return None if self.statistics is None else all(found.nonfinite == 0 for found in self.statistics.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
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
    """Read a checkpoint, or the newest of a folder.

    Args:
        path: a checkpoint or a folder of them.
        stats: load the tensors too, for their statistics; without it only the header is read.

    Raises:
        CheckpointError: missing, truncated, or not a checkpoint of stjepa.
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
