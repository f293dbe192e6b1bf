"""Checkpoints: atomic, typed, and damage is told in one sentence."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import CheckpointError, UnreadableError
from stjepa_cli.core.serialization import to_dict
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.models.checkpoint import (
    CheckpointHeader,
    check_checkpoint,
    checkpoint_path,
    list_checkpoints,
    newest_checkpoint,
    optimizer_path,
    read_header,
    read_optimizer,
    write_checkpoint,
)
from stjepa_cli.models.inspect import inspect_checkpoint
from stjepa_cli.models.tensor_file import list_tensors, read_tensors, write_tensors

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
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
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


@pytest.mark.parametrize("text", ["[]", "5", "null", '"text"', "{", "[" * 100_000])
def test_headers_that_are_no_objects_are_one_sentence(tmp_path: Path, text: str) -> None:
    write_tensors(tmp_path / "odd.safetensors", TENSORS, {"stjepa": text})
    with pytest.raises(CheckpointError, match=r"the header of .* cannot be understood"):
        read_header(tmp_path / "odd.safetensors")


def test_a_checkpoint_of_a_newer_version_is_refused_in_words(tmp_path: Path) -> None:
    newer = to_dict(HEADER) | {"schema": 2, "something_new": {"a": 1}}
    write_tensors(tmp_path / "new.safetensors", TENSORS, {"stjepa": json.dumps(newer)})
    with pytest.raises(UnreadableError, match=r"newer version of stjepa: got schema 2, expected at most 1\. Update stjepa\."):
        read_header(tmp_path / "new.safetensors")


def test_the_optimizer_state_of_another_step_is_refused(path: Path) -> None:
    assert check_checkpoint(path) == HEADER
    assert read_optimizer(path, 12).keys() == {"student.embed.weight.step"}
    other = checkpoint_path(path.parent, 13)
    write_checkpoint(other, replace(HEADER, step=13), TENSORS, {"student.embed.weight.step": torch.tensor(13.0)})
    optimizer_path(path).write_bytes(optimizer_path(other).read_bytes())
    with pytest.raises(CheckpointError, match="belongs to another checkpoint: got step 13, expected step 12"):
        check_checkpoint(path)


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
        "from stjepa_cli.models.tensor_file import write_tensors; from pathlib import Path\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, {resource.RLIM_INFINITY}))\n"
        f"write_tensors(Path({str(path)!r}), {{'a': torch.zeros(10_000)}}, {{}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert "StjepaError: cannot write" in done.stderr
    assert "larger than this disk" in done.stderr
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []
