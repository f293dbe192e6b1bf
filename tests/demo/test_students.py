"""Students in processes of their own are those that one process would pretrain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.cache.build import build
from stjepa_cli.cache.request import BuildRequest
from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.demo.students import RECORD, pretrain_all
from stjepa_cli.models.checkpoint import list_checkpoints
from stjepa_cli.models.tensor_file import read_tensors
from stjepa_cli.training.pretrain import pretrain
from stjepa_cli.training.recipes import resolve_run
from tests.demo.plans import Interrupter

CLIP = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)


@pytest.fixture(scope="module")
def run(tiny_ssv2: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Six steps on a cache of 12 clips."""
    cache = tmp_path_factory.mktemp("students") / "cache"
    build(BuildRequest.of(tiny_ssv2, cache, teacher="hog", clip=CLIP, latent_dim=8))
    flags = {"preset": "tiny", "epochs": 2, "batch_size": 4, "device": "cpu", "workers": 1}
    return resolve_run({"data_root": tiny_ssv2, "cache": cache, "checkpoints": tmp_path_factory.mktemp("alone")}, flags=flags)


def test_students_side_by_side_are_those_of_one_process_alone(run: RunConfig, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = pretrain(run)
    torch.set_num_threads(threads)
    runs = {name: replace(run, checkpoints=tmp_path / name, seed=seed) for name, seed in (("same", 0), ("other", 1))}
    listener = Interrupter()
    results = pretrain_all(runs, Runtime(device="cpu", progress=listener), at_once=2)
    assert list(results) == ["same", "other"]
    assert (results["same"].steps, results["same"].loss_last) == (alone.steps, alone.loss_last)
    ours, theirs = (read_tensors(list_checkpoints(folder)[-1]) for folder in (run.checkpoints, tmp_path / "same"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert listener.tasks == ["pretrain 2 students"]
    assert any(note.startswith("other: student tiny:") for note in listener.notes)
    again = Interrupter()
    assert pretrain_all(runs, Runtime(device="cpu", progress=again)) == results
    assert (again.tasks, again.notes) == ([], [])
    (tmp_path / "same" / RECORD).unlink()  # as if it had been killed before it was written
    assert pretrain_all(runs, Runtime(device="cpu"))["same"].steps == alone.steps


def test_what_fails_in_a_process_is_the_sentence_of_the_command(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(StjepaError, match="there is no cache at"):
        pretrain_all({"a": replace(run, cache=tmp_path / "nowhere", checkpoints=tmp_path / "a")}, Runtime(device="cpu"))
