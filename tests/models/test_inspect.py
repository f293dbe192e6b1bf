"""`inspect checkpoint`: counts, statistics and differences are those of the tensors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.config import OptimizerConfig, RunConfig
from stjepa_cli.core.errors import CheckpointError
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.models import inspect
from stjepa_cli.models.checkpoint import CheckpointHeader, checkpoint_path, write_checkpoint
from stjepa_cli.models.checkpoint_diff import Change, TensorDifference, compare_checkpoints
from stjepa_cli.models.inspect import TensorStatistics, inspect_checkpoint

CARD = TeacherCard("tiny", "videomae", "local", "0" * 64, "cc-by-4.0", 16, ClipSpec())
HEADER = CheckpointHeader(12, 1, RunConfig(Path("data"), Path("cache")), ClipSpec(), 384, CARD, "1" * 64, "ssv2/train", {"torch": "2"})


def save(folder: Path, step: int = 12, header: CheckpointHeader = HEADER, **tensors: torch.Tensor) -> Path:
    path = checkpoint_path(folder, step)
    write_checkpoint(path, replace(header, step=step), {f"student.{name}": tensor.clone() for name, tensor in tensors.items()}, {})
    return path


def test_no_tensor_is_loaded_unless_statistics_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, a=torch.full((3, 4), math.nan), b=torch.zeros(2))
    with monkeypatch.context() as patch:
        patch.delattr(inspect, "read_tensors")
        report = inspect_checkpoint(path)
    assert (report.parameters, report.student_parameters, report.finite, report.statistics) == (14, 14, None, None)
    found = report.to_dict()
    assert found["finite"] is None
    assert found["tensors"][0] == {"name": "student.a", "shape": [3, 4], "dtype": "F32"}
    assert (found["dataset"], found["cache_digest"], found["teacher"]["licence"]) == ("ssv2/train", "1" * 64, "cc-by-4.0")


def test_statistics_are_of_the_finite_numbers_and_count_the_others(tmp_path: Path) -> None:
    values = torch.tensor([2.0, 6.0, math.nan, math.inf, -math.inf])
    path = save(tmp_path, a=values, b=torch.full((2,), math.nan), c=torch.tensor(7))
    report = inspect_checkpoint(path, stats=True)
    assert report.statistics == {
        "student.a": TensorStatistics(4.0, 2.0, 2.0, 6.0, 3),
        "student.b": TensorStatistics(None, None, None, None, 2),
        "student.c": TensorStatistics(7.0, 0.0, 7.0, 7.0, 0),
    }
    assert report.finite is False
    tensors = json.loads(json.dumps(report.to_dict(), allow_nan=False))["tensors"]
    assert tensors[2] == {"name": "student.c", "shape": [], "dtype": "I64", "mean": 7, "std": 0, "min": 7, "max": 7, "nonfinite": 0}
    assert inspect_checkpoint(save(tmp_path, 13, c=torch.zeros(2)), stats=True).finite is True


def test_a_difference_names_fields_tensors_and_shapes(tmp_path: Path) -> None:
    same = torch.ones(3)
    old = save(tmp_path, 12, same=same, gone=same, cut=torch.zeros(3, 4), half=same)
    run = replace(HEADER.run, seed=3, optimizer=OptimizerConfig(lr=1.0))
    new = save(
        tmp_path, 20, replace(HEADER, run=run, software={"torch": "2", "zarr": "3"}), same=same, come=same, cut=same, half=same.half()
    )
    found = compare_checkpoints(old, new)
    assert [change.name for change in found.header] == ["run.optimizer.lr", "run.seed", "software.zarr", "step"]
    assert found.header[1:] == (Change("run.seed", 0, 3), Change("software.zarr", None, "3"), Change("step", 12, 20))
    assert (found.only_old, found.only_new) == (("student.gone",), ("student.come",))
    assert found.shapes == (Change("student.cut", "3x4 F32", "3 F32"), Change("student.half", "3 F32", "3 F16"))
    assert (found.tensors, found.equal) == ((), 2)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["new"] == str(new)


def test_differing_tensors_are_measured_and_the_largest_comes_first(tmp_path: Path) -> None:
    base = torch.tensor([3.0, 4.0])
    broken = torch.tensor([math.nan, 4.0])
    old = save(tmp_path, 1, same=broken, small=base, large=base, zero=torch.zeros(2), broken=base)
    new = save(tmp_path, 2, same=broken, small=base + torch.tensor([0.0, 0.5]), large=-base, zero=base, broken=broken)
    found = compare_checkpoints(old, tmp_path)
    assert found.new == new
    assert found.equal == 1
    assert found.tensors == (
        TensorDifference("student.broken", None, None),
        TensorDifference("student.zero", None, 4.0),
        TensorDifference("student.large", 2.0, 8.0),
        TensorDifference("student.small", 0.1, 0.5),
    )


def test_a_checkpoint_compared_with_itself_differs_in_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, a=torch.randn(3, 4), b=torch.full((2,), math.nan))
    found = compare_checkpoints(path, tmp_path)
    assert (found.header, found.only_old, found.only_new, found.shapes, found.tensors, found.equal) == ((), (), (), (), (), 2)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        compare_checkpoints(path, tmp_path / "none.safetensors")
