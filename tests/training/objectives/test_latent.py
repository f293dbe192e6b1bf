"""The objective: its loss, its randomness, its monitors, and that it can be learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stjepa_cli.core.config import PredictorConfig, RunConfig, StudentConfig
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.loader import Batch
from stjepa_cli.models.student import Student
from stjepa_cli.training.objectives._distances import cosine_loss, monitors
from stjepa_cli.training.objectives.base import Objective, build, objective_class

SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)
DIM = 12


def _run(**changes: object) -> RunConfig:
    settings = {"student": StudentConfig(32, 1, 1, 2), "predictor": PredictorConfig(24, 1, 2), "mask_ratio": 0.5} | changes
    return RunConfig(Path("data"), Path("cache"), **settings)  # type: ignore[arg-type]


def _objective(name: str = "latent", **settings: object) -> Objective:
    generator = torch.Generator().manual_seed(0)
    run = _run(objective={"name": name} | settings)
    widths = [DIM] if "latents" in objective_class(run).needs else []
    return build(Student(run.student, SPEC, generator), run, widths, generator)


def _batch(size: int = 4) -> Batch:
    g = torch.Generator().manual_seed(1)
    clips = torch.randint(0, 256, (size, 4, 3, 16, 16), generator=g, dtype=torch.uint8)
    return Batch(torch.arange(size), clips, torch.randn(size, SPEC.grid.num_tokens, DIM, generator=g).half())


def test_the_loss_equals_a_loop() -> None:
    predicted, targets = torch.randn(3, 5, DIM), torch.randn(3, 5, DIM).half()
    total = 0.0
    for p, t in zip(predicted.flatten(0, 1), targets.float().flatten(0, 1), strict=True):
        dot = sum(a * b for a, b in zip(p.tolist(), t.tolist(), strict=True))
        total += 1 - dot / (p.norm().item() * t.norm().item())
    assert cosine_loss(predicted, targets).item() == pytest.approx(total / 15, abs=1e-5)


def test_the_loss_is_zero_for_the_right_direction_at_any_length() -> None:
    targets = torch.randn(2, 5, DIM)
    assert cosine_loss(3 * targets, targets).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(-targets, targets).item() == pytest.approx(2, abs=1e-6)


def test_a_target_of_zeros_gives_a_finite_loss_and_gradient() -> None:
    predicted = torch.randn(1, 2, DIM, requires_grad=True)
    cosine_loss(predicted, torch.zeros(1, 2, DIM)).backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def test_latents_of_visible_tokens_do_not_enter_the_loss() -> None:
    objective, batch = _objective(), _batch()
    loss = objective(batch, torch.Generator().manual_seed(5))
    from stjepa_cli.models.masking import tube_mask

    mask = tube_mask(SPEC.grid, 4, 0.5, torch.Generator().manual_seed(5))
    for b in range(4):
        batch.latents[b, mask.visible[b]] = 100.0
    assert torch.equal(objective(batch, torch.Generator().manual_seed(5)).total, loss.total)


def test_the_generator_decides_the_mask_and_with_it_the_loss() -> None:
    objective, batch = _objective(), _batch()
    losses = [objective(batch, torch.Generator().manual_seed(seed)).total.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_monitors_see_a_constant_answer_and_a_collapse() -> None:
    aligned = torch.ones(2, 3, DIM)
    assert monitors(torch.randn(2, 3, 8), aligned, None, 3, "cosine")["constant_loss"].item() == pytest.approx(0, abs=1e-6)
    assert monitors(torch.ones(2, 3, 8), aligned, None, 3, "cosine")["token_std"].item() == 0


def test_a_tiny_student_learns_four_clips_by_heart() -> None:
    objective, batch = _objective(), _batch()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    first = last = 0.0
    for step in range(150):
        loss = objective(batch, torch.Generator().manual_seed(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert first > 0.9
    assert last < 0.3
