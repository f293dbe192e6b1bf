"""Checkpoints: atomic, typed, and damage is told in one sentence."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import CheckpointError
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.models.checkpoint import (
    CheckpointHeader,
    checkpoint_path,
    list_checkpoints,
    list_tensors,
    newest_checkpoint,
    read_header,
    read_tensors,
    write_checkpoint,
    write_tensors,
)
from stjepa_cli.models.inspect import inspect_checkpoint

HEADER = CheckpointHeader(
    step=12,
    epoch=1,
    run=RunConfig(Path("data"), Path("cache")),
    clip=ClipSpec(),
    latent_dim=384,
    teacher=TeacherCard("tiny", "videomae", "local", "0" * 64, "unknown", 16, ClipSpec()),
    cache_digest="1" * 64,
    dataset="ssv2/train",
    software={"torch": "2"},
)
TENSORS = {"student.embed.weight": torch.randn(3, 4), "predictor.out.bias": torch.zeros(5)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = checkpoint_path(tmp_path, 12)
    write_checkpoint(file, HEADER, TENSORS, {"student.embed.weight.step": torch.tensor(12.0)})
    return file


def test_header_and_tensors_come_back(path: Path) -> None:
    assert read_header(path) == HEADER
    assert torch.equal(read_tensors(path, "student")["embed.weight"], TENSORS["student.embed.weight"])
    assert [(t.name, t.shape, t.dtype) for t in list_tensors(path)] == [
        ("predictor.out.bias", (5,), "F32"),
        ("student.embed.weight", (3, 4), "F32"),
    ]


def test_checkpoints_are_listed_by_step_and_not_by_name(tmp_path: Path, path: Path) -> None:
    for step in (2, 100):
        write_checkpoint(checkpoint_path(tmp_path, step), HEADER, TENSORS, {})
    assert [file.name for file in list_checkpoints(tmp_path)] == [f"checkpoint_step{step}.safetensors" for step in (2, 12, 100)]
    assert newest_checkpoint(tmp_path).name == "checkpoint_step100.safetensors"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_told(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        read_header(path)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        newest_checkpoint(tmp_path)
    write_tensors(tmp_path / "other.safetensors", TENSORS, {})
    with pytest.raises(CheckpointError, match="not a checkpoint of stjepa"):
        read_header(tmp_path / "other.safetensors")
    write_tensors(tmp_path / "odd.safetensors", TENSORS, {"stjepa": '{"step": 1, "colour": "red"}'})
    with pytest.raises(CheckpointError, match="unknown key: got colour"):
        read_header(tmp_path / "odd.safetensors")


def test_inspection_counts_and_sees_what_is_not_finite(path: Path) -> None:
    report = inspect_checkpoint(path.parent, stats=True)
    assert (report.parameters, report.student_parameters, report.finite) == (17, 12, True)
    broken = TENSORS | {"student.embed.weight": torch.full((3, 4), torch.nan)}
    write_checkpoint(path, HEADER, broken, {})
    assert inspect_checkpoint(path, stats=True).finite is False
    keys = ("path", "step", "parameters", "config", "teacher", "cache_digest", "finite", "tensors")
    assert set(keys) <= set(report.to_dict())


def test_a_full_disk_is_one_sentence_and_harms_nothing(path: Path) -> None:
    before = path.read_bytes()
    code = (
        "import sys, torch, resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from stjepa_cli.models.checkpoint import write_tensors; from pathlib import Path\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, {resource.RLIM_INFINITY}))\n"
        f"write_tensors(Path({str(path)!r}), {{'a': torch.zeros(10_000)}}, {{}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert "StjepaError: cannot write" in done.stderr
    assert "larger than this disk" in done.stderr
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []
