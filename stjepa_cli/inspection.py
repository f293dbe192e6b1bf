"""Use case: look into a file without running anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stjepa_cli.checkpoint import CheckpointHeader, TensorInfo, list_tensors, newest_checkpoint, read_header, read_tensors
from stjepa_cli.config import to_dict


@dataclass(frozen=True)
class CheckpointReport:
    """What a checkpoint holds.

    Attributes:
        parameters: numbers in the file.
        student_parameters: numbers of the encoder among them.
        finite: no tensor holds a NaN or an infinity.
    """

    path: Path
    header: CheckpointHeader
    parameters: int
    student_parameters: int
    finite: bool
    tensors: tuple[TensorInfo, ...]

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
            "tensors": [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in self.tensors],
        }


def inspect_checkpoint(path: Path) -> CheckpointReport:
    """Read a checkpoint, or the newest of a folder.

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
        finite=all(bool(torch.isfinite(tensor).all()) for tensor in read_tensors(file).values()),
        tensors=tensors,
    )
