"""The contract of an objective, as a class; `test_base.py` runs it for every plug-in of the folder."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.config import PredictorConfig, RunConfig, StudentConfig
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.loader import Batch
from stjepa_cli.models.student import Student
from stjepa_cli.training.objectives.base import Objective, build, objective_class, settings_of

SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)
DIM = 12


def seeded(seed: int) -> torch.Generator:
    """Return a generator with a seed."""
    return torch.Generator().manual_seed(seed)


def make_objective(name: str, **settings: object) -> Objective:
    """Build an objective with a tiny student."""
    student = StudentConfig(dim=32, num_factorized=1, num_joint=1, num_heads=2)
    predictor = PredictorConfig(dim=24, depth=1, num_heads=2)
    objective = {"name": name} | settings
    run = RunConfig(Path("data"), Path("cache"), student=student, predictor=predictor, mask_ratio=0.5, objective=objective)
    generator = seeded(0)
    widths = [DIM] if "latents" in objective_class(run).needs else []
    return build(Student(run.student, SPEC, generator), run, widths, generator)


def make_batch(objective: Objective, size: int = 4) -> Batch:
    """Return random clips with what the objective needs."""
    generator = seeded(1)
    clips = torch.randint(0, 256, (size, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    shape = (size, SPEC.grid.num_tokens, DIM) if "latents" in objective.needs else (size, 0, 0)
    return Batch(torch.arange(size), clips, torch.randn(shape, generator=generator).half())


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """Return the part of a step's batch that one process takes."""
    return Batch(batch.rows[start:stop], batch.clips[start:stop], batch.latents[start:stop], start, len(batch.rows))


class ObjectiveContract:
    """Inherit it and name the objective."""

    @pytest.fixture
    @abstractmethod
    def name(self) -> str:
        """Return the name of the plug-in."""

    @pytest.fixture
    def objective(self, name: str) -> Objective:
        """Build the objective with its default settings."""
        return make_objective(name)

    @pytest.fixture
    def batch(self, objective: Objective) -> Batch:
        """Return a batch for it."""
        return make_batch(objective)

    def test_it_gives_a_loss_with_detached_terms(self, objective: Objective, batch: Batch) -> None:
        loss = objective(batch, seeded(0))
        assert loss.total.ndim == 0
        assert loss.total.dtype == torch.float32
        assert loss.total.requires_grad
        assert loss.total.isfinite()
        assert loss.parts
        assert all(not value.requires_grad and value.ndim == 0 and value.isfinite() for value in (loss.parts | loss.monitors).values())

    def test_it_says_what_it_needs_and_costs(self, objective: Objective) -> None:
        assert isinstance(objective.student, Student)
        assert {"clips", "latents"} >= objective.needs
        assert objective.flops() > 0
        assert is_dataclass(objective.Settings)
        assert type(objective).__doc__ != Objective.__doc__

    def test_all_that_it_trains_gets_a_gradient(self, objective: Objective, batch: Batch) -> None:
        for seed in range(8 if objective.skips_modules else 1):
            objective(batch, seeded(seed)).total.backward()
        missing = [name for name, parameter in objective.named_parameters() if parameter.requires_grad and parameter.grad is None]
        assert not missing

    def test_all_randomness_comes_from_the_generator(self, objective: Objective, batch: Batch) -> None:
        totals = []
        for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
            torch.manual_seed(global_seed)
            totals.append(objective(batch, seeded(seed)).total.item())
        assert totals[0] == totals[1]
        untouched = torch.get_rng_state()
        objective(batch, seeded(5))
        assert torch.equal(torch.get_rng_state(), untouched)

    def test_parts_of_a_step_give_the_loss_of_the_whole(self, objective: Objective, batch: Batch) -> None:
        whole = objective(batch, seeded(3)).total
        halves = [objective(part_of(batch, start, start + 2), seeded(3)).total for start in (0, 2)]
        torch.testing.assert_close((halves[0] + halves[1]) / 2, whole, atol=1e-5, rtol=1e-5)

    def test_it_leaves_the_batch_alone(self, objective: Objective, batch: Batch) -> None:
        before = {name: tensor.clone() for name, tensor in batch.tensors.items()}
        objective(batch, seeded(0)).total.backward()
        assert all(torch.equal(tensor, before[name]) for name, tensor in batch.tensors.items())

    def test_it_can_be_learned(self, objective: Objective, batch: Batch) -> None:
        optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
        losses = []
        for step in range(60):
            loss = objective(batch, seeded(step)).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            objective.after_step(step, 60)
            losses.append(loss.item())
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])

    def test_a_setting_that_it_does_not_have_is_refused(self, objective: Objective) -> None:
        run = replace(objective.run, objective=objective.run.objective | {"no_such_setting": 1})
        with pytest.raises(ConfigError, match="no_such_setting"):
            settings_of(run)
