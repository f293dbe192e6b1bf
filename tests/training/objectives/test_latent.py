"""The objective: its loss, its randomness, its monitors, and that it can be learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stjepa_cli.core.config import PredictorConfig, RunConfig, StudentConfig
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.loader import Batch
from stjepa_cli.models.masking import tube_mask
from stjepa_cli.models.student import Student
from stjepa_cli.training.objectives._distances import cosine_loss, monitors
from stjepa_cli.training.objectives.base import build, objective_class

SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)
DIM = 12


def _run(**changes: object) -> RunConfig:
    settings = {"student": StudentConfig(32, 1, 1, 2), "predictor": PredictorConfig(24, 1, 2), "mask_ratio": 0.5} | changes
    return RunConfig(Path("data"), Path("cache"), **settings)  # type: ignore[arg-type]


def _objective(name: str = "latent", **settings: Any) -> Any:
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


def test_the_total_is_the_weighted_sum_of_its_named_terms() -> None:
    settings: dict[str, Any] = {"hidden_weight": 0.5, "visible_weight": 2.0, "visible_predictor_weight": 3.0}
    loss = _objective(**settings)(_batch(), torch.Generator().manual_seed(5))
    assert set(loss.parts) == {"hidden", "visible", "visible_predictor"}
    total = sum(settings[f"{name}_weight"] * value.item() for name, value in loss.parts.items())
    assert loss.total.item() == pytest.approx(total, rel=1e-6)


def test_each_term_is_that_of_a_loop_over_its_own_tokens() -> None:
    objective, batch = _objective(visible_weight=1.0), _batch()
    parts = objective(batch, torch.Generator().manual_seed(5)).parts
    mask = tube_mask(SPEC.grid, 4, 0.5, torch.Generator().manual_seed(5))
    context = objective.student(batch.clips, mask)
    answers = {"hidden": objective.predictor(context, mask), "visible": objective.head(context)}
    for name, places in (("hidden", mask.predict), ("visible", mask.visible)):
        cosines = [
            torch.cosine_similarity(answers[name][b, i], batch.latents[b, token].float(), dim=0).item()
            for b in range(4)
            for i, token in enumerate(places[b].tolist())
        ]
        assert parts[name].item() == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-5)


def test_the_dense_term_sees_every_token_of_the_whole_clip() -> None:
    objective, batch = _objective(hidden_weight=0.0, dense_fraction=1.0), _batch()
    assert not hasattr(objective, "predictor")
    loss = objective(batch, torch.Generator())
    cosines = torch.cosine_similarity(objective.head(objective.student(batch.clips)), batch.latents.float(), dim=-1)
    assert set(loss.parts) == {"dense"}
    assert loss.total.item() == pytest.approx(1 - cosines.mean().item(), abs=1e-5)


def test_the_seed_decides_which_steps_are_dense_and_held_out_clips_are_always_masked() -> None:
    objective, batch = _objective(visible_weight=1.0, dense_fraction=0.3), _batch()
    dense = [["dense" in objective(batch, torch.Generator().manual_seed(step)).parts for step in range(200)] for _ in range(2)]
    assert dense[0] == dense[1]
    assert 0.2 < sum(dense[0]) / 200 < 0.4
    objective.eval()
    assert all("hidden" in objective(batch, torch.Generator().manual_seed(step)).parts for step in range(20))


def test_a_second_cache_adds_its_own_distance() -> None:
    run = _run(objective={"name": "latent", "visible_weight": 1.0, "second_weight": 0.25})
    generator = torch.Generator().manual_seed(0)
    objective: Any = build(Student(run.student, SPEC, generator), run, [DIM, 5], generator)
    batch = _batch()
    second = torch.randn(4, SPEC.grid.num_tokens, 5, generator=generator).half()
    both = replace(batch, second_latents=second)
    context = torch.randn(4, 3, DIM + 5, generator=generator)
    targets = [batch.latents[:, :3], second[:, :3]]
    expected = cosine_loss(context[..., :DIM], targets[0]) + 0.25 * cosine_loss(context[..., DIM:], targets[1])
    assert torch.equal(objective.term(context, targets), expected)
    assert objective(both, torch.Generator().manual_seed(1)).total.isfinite()


def test_the_position_answer_is_the_mean_of_the_other_clips_at_the_same_place() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(5, 4, DIM, generator=generator)
    places = torch.stack([torch.randperm(8, generator=generator)[:4] for _ in range(5)])
    total, known = 0.0, torch.nn.functional.normalize(targets, dim=-1)
    fallback = known.mean(dim=(0, 1))
    for b in range(5):
        for i in range(4):
            others = [known[c, j] for c in range(5) if c != b for j in range(4) if places[c, j] == places[b, i]]
            answer = torch.stack(others).mean(0) if others else fallback
            total += 1 - torch.cosine_similarity(answer, known[b, i], dim=0).item()
    found = monitors(torch.randn(5, 4, 8), targets, places, 8, "cosine")["position_loss"]
    assert found.item() == pytest.approx(total / 20, abs=1e-5)


def test_flops_follow_the_mix_of_masked_and_dense_steps() -> None:
    masked, dense, half = (
        _objective(visible_weight=1.0, dense_fraction=fraction, hidden_weight=0.0).flops() for fraction in (0.0, 1.0, 0.5)
    )
    assert masked < dense
    assert half == pytest.approx((masked + dense) / 2, abs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_weight": 0.0}, "the loss has no term: all its weights are 0"),
        ({"dense_fraction": 1.0, "dense_weight": 0.0}, "the loss has no term"),
        ({"hidden_weight": 0.0, "dense_fraction": 0.5}, "the loss has no term"),
        ({"dense_fraction": 1.5}, "dense_fraction is a fraction of the steps: got 1.5, expected 0 to 1"),
        ({"visible_weight": -1.0}, "visible_weight cannot be negative"),
        ({"visible_weight": float("nan")}, "visible_weight is out of range: got nan, expected 0 to 1000000.0"),
        ({"loss": "l3"}, "unknown loss: got 'l3', expected one of cosine, smooth_l1, l1"),
        ({"mask": 3}, r"\[objective\] has an unknown key: got mask"),
    ],
)
def test_wrong_settings_are_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _objective(**settings)
    assert "\n" not in str(caught.value)


def test_trivial_answers_are_comparable_with_the_total() -> None:
    alone, both = (_objective(visible_weight=weight)(_batch(), torch.Generator().manual_seed(5)).monitors for weight in (0.0, 2.0))
    for name in ("constant_loss", "position_loss"):
        assert both[name].item() == pytest.approx(3 * alone[name].item(), rel=1e-5)
    assert both["token_std"].item() == pytest.approx(alone["token_std"].item())
