"""A file written yesterday works today: `tests/golden/README.md` says how the files were made."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stjepa_cli.cache.verify import verify
from stjepa_cli.encoders.heads import load_head
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.models.student import load_student
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.pretrain import pretrain
from stjepa_cli.training.recipes import resolve_run

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")


@pytest.fixture(params=sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir()))
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one folder, to change at will."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "golden"))


def expected(golden: Path) -> Any:
    return json.loads((golden / "expected.json").read_text())


def test_a_cache_reads_and_verifies(golden: Path) -> None:
    store = LatentStore.open(golden / "cache")
    assert store.header.digest == expected(golden)["cache_digest"]
    sums = store.read([0, 23]).astype(np.float64).sum(axis=(1, 2))
    assert sums.tolist() == expected(golden)["latent_sums"]
    assert verify(golden / "cache", level="full").ok


def test_a_checkpoint_gives_the_same_tokens(golden: Path) -> None:
    student, _ = load_student(golden / "checkpoints" / "checkpoint_step2.safetensors", CPU)
    clip = (torch.arange(8 * 3 * 32 * 32) % 251).to(torch.uint8).view(1, 8, 3, 32, 32)
    tokens = student(clip)[0]
    torch.testing.assert_close(tokens.mean(0), torch.tensor(expected(golden)["token_means"]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[0], torch.tensor(expected(golden)["first_token"]), atol=1e-5, rtol=1e-5)


def test_a_run_continues_with_the_same_losses(golden: Path) -> None:
    places = {"cache": golden / "cache", "checkpoints": golden / "checkpoints", "max_steps": 4, "workers": 1, "device": "cpu"}
    run = resolve_run({}, file=golden / "checkpoints" / "run.toml", flags=places)
    result = pretrain(run)
    assert result.steps == 4
    found = [json.loads(line) for line in (golden / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in found if "loss" in row]
    assert losses == pytest.approx(expected(golden)["losses"], rel=1e-5)
    rates, peak = [row["lr"] for row in found if "lr" in row], run.optimizer.peak_lr(6)
    assert rates == pytest.approx([peak * (0.505 + 0.495 * math.cos(math.pi * max(0, step - 1) / 3)) for step in range(4)])  # as then


@pytest.mark.parametrize("name", ["linear", "attentive1"])
def test_a_head_opens(golden: Path, name: str) -> None:
    encoder = StudentEncoder.open(golden / "checkpoints" / "checkpoint_step2.safetensors", CPU)
    head = load_head(golden / f"head_{name}.safetensors", encoder.name, encoder.digest)
    assert head.card is not None
    assert len(head.card.classes) == 3
