"""The folder of a run: one process at a time, and it resumes from the newest checkpoint that is intact."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.config import RunConfig, StudentConfig
from stjepa_cli.core.errors import CheckpointError, UnreadableError
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.data.training_clips import CachedClips, TrainingClips
from stjepa_cli.models.checkpoint import CheckpointHeader, checkpoint_path, optimizer_path, write_checkpoint
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.run_folder import Metrics, hold_run, resume_point
from tests.caches import make_cache

DAMAGED_LINES = [
    b"", b"[]", b"5", b"null", b"NaN", b"[" * 10_000, b"\xff\xfe\x00", b'{"step": 1e999}', b'{"step": true, "loss": 1}',
    b'{"step": 3, "loss": "x"}',
    b'{"step": 3, "loss": null}', b'{"step": 3, "val_loss": []}', b'{"step": 3, "loss": NaN}', b'{"step": 3, "loss": 1' + b"0" * 400 + b"}",
    b'{"step": ' + b"9" * 5000 + b"}", b'{"step": -1, "loss": 1}', b'{"loss": 1}',
]  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> TrainingClips:
    make_cache(tmp_path / "cache", num_clips=2, frames=True)
    return CachedClips(LatentStore.open(tmp_path / "cache"), tmp_path)


@pytest.fixture
def run(tmp_path: Path, source: TrainingClips) -> RunConfig:
    """A run with checkpoints at the steps 3 and 6."""
    run = RunConfig(Path("data"), tmp_path / "cache", tmp_path / "run", student=StudentConfig(16, 1, 1, 2))
    teacher = TeacherCard("tiny", "videomae", "local", "0" * 64, "unknown", 16, ClipSpec())
    header = CheckpointHeader(3, 1, run, ClipSpec(), 384, teacher, source.digest, "ssv2/train")
    for step in (3, 6):
        tensors = {"student.weight": torch.full((50,), float(step))}
        write_checkpoint(checkpoint_path(run.checkpoints, step), replace(header, step=step), tensors, {"weight.step": torch.tensor(step)})
    return run


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("which", [checkpoint_path, lambda folder, step: optimizer_path(checkpoint_path(folder, step))])
@pytest.mark.parametrize("spoil", [Path.unlink, flip, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    run: RunConfig, source: TrainingClips, which: Callable[[Path, int], Path], spoil: Callable[[Path], object]
) -> None:
    found = resume_point(run, source)
    assert found is not None
    assert (found.header.step, found.damaged) == (6, ())
    spoil(which(run.checkpoints, 6))
    found = resume_point(run, source)
    assert found is not None
    assert found.header.step == 3


def test_a_newest_checkpoint_that_cannot_be_read_stops_the_run(run: RunConfig, source: TrainingClips) -> None:
    path = checkpoint_path(run.checkpoints, 6)
    path.unlink()
    path.mkdir()  # as root nothing is forbidden: a folder cannot be read either
    with pytest.raises(UnreadableError, match="cannot be read"):
        resume_point(run, source)


@pytest.mark.parametrize("line", DAMAGED_LINES)
def test_metrics_keep_what_is_sound_and_pass_over_what_is_damaged(tmp_path: Path, line: bytes) -> None:
    metrics = Metrics(tmp_path)
    metrics.path.write_bytes(b'{"step": 1, "loss": 2.5}\n' + line + b'\n{"step": 2, "val_loss": 1.5}\n{"step": 2, "loss": 2.0}\n{"st')
    assert metrics.losses() == {1: 2.5, 2: 2.0}
    assert metrics.validations() == {2: 1.5}
    metrics.keep_until(1)
    assert metrics.losses() == {1: 2.5}


def test_a_lost_file_of_metrics_has_no_losses(tmp_path: Path) -> None:
    assert Metrics(tmp_path).losses() == {}
    assert Metrics(tmp_path).last_validation() == {}


def test_a_second_process_is_refused_and_told_who_is_there(run: RunConfig) -> None:
    code = (
        "import sys; from pathlib import Path; from stjepa_cli.training.run_folder import hold_run\nwith hold_run(Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", code, str(run.checkpoints)]
    with hold_run(run.checkpoints):
        refused = subprocess.run(command, capture_output=True, text=True)
        assert f"CheckpointError: another process trains in {run.checkpoints}: got process {os.getpid()} on " in refused.stderr
        assert "--checkpoints" in refused.stderr
        with pytest.raises(CheckpointError, match="another process trains in"), hold_run(run.checkpoints):
            pass
    assert subprocess.run(command).returncode == 0
    assert not (run.checkpoints / "run.lock").exists()


def test_holding_leaves_nothing_where_nothing_was_and_removes_what_dead_writers_left(run: RunConfig, tmp_path: Path) -> None:
    with hold_run(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    left = run.checkpoints / ".checkpoint_step9.safetensors.stjepa-0123abcd"
    left.write_bytes(b"half")
    with hold_run(run.checkpoints):
        assert not left.exists()
