"""The linear probe against scikit-learn, and the choice of its strength."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes._folds import assign_folds, group_splits
from stjepa_cli.evaluation.probes.linear import FINAL_TOLERANCE, STRENGTHS, LinearProbe, choose_strength, fit


def draw(
    num_classes: int, num_groups: int, clips: int, *, side: str = "train", seed: int = 0, noise: float = 1.5, shared: bool = False
) -> Features:
    """`clips` rows of each of `num_groups` groups of each class; `shared` groups hold clips of every class."""
    centres = torch.randn(num_classes, 12, generator=torch.Generator().manual_seed(99))
    rows = [(c, g, k) for c in range(num_classes) for g in range(num_groups) for k in range(clips)]
    labels = torch.tensor([c for c, _, _ in rows])
    values = centres[labels] + noise * torch.randn(len(rows), 12, generator=torch.Generator().manual_seed(seed))
    groups = tuple(f"g{g}" if shared else f"{c}/g{g}" for c, g, _ in rows)
    return Features(values * torch.arange(1, 13) + 5, labels, groups, tuple(f"{side}{c}_{g}_{k}" for c, g, k in rows))


def pairs_of(train: Features, seed: int = 0) -> list[tuple[Features, Features]]:
    return [(train.rows(fit_rows), train.rows(held_out)) for fit_rows, held_out in group_splits(train, seed)]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_logits_equal_scikit_learn_at_the_same_strength(strength: float) -> None:
    train, test = draw(5, 6, 8), draw(5, 2, 10, side="test", seed=1)
    scaler = StandardScaler().fit(train.values.double().numpy())
    model = LogisticRegression(C=1 / (strength * len(train)), tol=1e-8, max_iter=5000)
    model.fit(scaler.transform(train.values.double().numpy()), train.labels.numpy())
    wanted = torch.from_numpy(model.predict_proba(scaler.transform(test.values.double().numpy()))).float()
    found = fit(train, 5, strength, FINAL_TOLERANCE).predict(test.values)
    assert torch.allclose(found, wanted, atol=5e-3)
    assert (found.argmax(dim=1) == wanted.argmax(dim=1)).float().mean() >= 0.99


def test_the_probe_is_refitted_on_all_of_train_at_the_chosen_strength() -> None:
    train, test = draw(4, 6, 3), draw(4, 2, 5, side="test", seed=1)
    result = LinearProbe().fit_score(train, test, 4, seed=0)
    order = torch.tensor(sorted(range(len(train)), key=lambda row: train.ids[row]))
    logits = fit(train.rows(order), 4, result.chosen["strength"], FINAL_TOLERANCE).logits(test.values)
    assert result.scores is not None
    assert torch.equal(result.scores, logits.softmax(dim=1))
    assert result.metrics == {"top1": (logits.argmax(dim=1) == test.labels).double().mean().item(), "top5": 1.0}


def test_the_same_seed_gives_the_same_bits() -> None:
    train, test = draw(4, 6, 3), draw(4, 2, 5, side="test", seed=1)
    first, second = (LinearProbe().fit_score(train, test, 4, seed=3) for _ in range(2))
    assert torch.equal(first.scores, second.scores)  # type: ignore[arg-type]
    assert first.chosen == second.chosen


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("num_groups", [1, 2, 3, 5, 9])
def test_no_group_is_ever_on_both_sides(num_groups: int, shared: bool) -> None:
    train = draw(4, num_groups, 3, shared=shared)
    for seed in range(5):
        for fitted, held_out in pairs_of(train, seed):
            assert len(fitted)
            assert len(held_out)
            assert not set(fitted.groups) & set(held_out.groups)
            assert len(fitted) + len(held_out) == len(train)


@pytest.mark.parametrize("shared", [False, True])
def test_with_groups_enough_a_fifth_is_held_out_once_with_every_class_on_both_sides(shared: bool) -> None:
    train = draw(4, 10, 2, shared=shared)
    ((fitted, held_out),) = pairs_of(train)
    assert len(held_out) == len(train) / 5
    assert set(fitted.labels.tolist()) == set(held_out.labels.tolist()) == {0, 1, 2, 3}


def test_with_too_few_groups_each_is_held_out_in_its_turn() -> None:
    train = draw(3, 3, 2, shared=True)
    pairs = pairs_of(train)
    assert sorted(group for _, held_out in pairs for group in set(held_out.groups)) == ["g0", "g1", "g2"]
    chosen = choose_strength(train, seed=0)
    assert chosen["folds"] == 3
    assert chosen["held_out_videos"] == len(train)
    assert chosen["held_out_groups"] == 3


def test_a_single_group_leaves_nothing_to_choose_on() -> None:
    train = draw(3, 1, 4, shared=True)
    assert pairs_of(train) == []
    assert choose_strength(train, seed=0) == {"strength": 0.01, "folds": 0.0}


def test_each_class_is_spread_over_the_folds_and_the_seed_decides_how() -> None:
    train = draw(3, 10, 1)
    folds = assign_folds(train, seed=0)
    for label in range(3):
        assert sorted(folds[f"{label}/g{g}"] for g in range(10)) == sorted(list(range(5)) * 2)
    assert folds == assign_folds(train, seed=0)
    assert folds != assign_folds(train, seed=1)


def test_the_chosen_strength_is_the_best_on_held_out_groups() -> None:
    train = draw(4, 10, 4, noise=3.0)
    chosen = choose_strength(train, seed=0)
    ((fitted, held_out),) = pairs_of(train)
    accuracies = [float((fit(fitted, 4, s, 1e-4).logits(held_out.values).argmax(1) == held_out.labels).float().mean()) for s in STRENGTHS]
    assert chosen["strength"] == STRENGTHS[accuracies.index(max(accuracies))]
    assert chosen["held_out_top1"] == pytest.approx(max(accuracies))


def test_a_class_that_train_lacks_is_never_guessed() -> None:
    train, test = draw(3, 6, 3), draw(3, 2, 5, side="test", seed=1)
    result = LinearProbe().fit_score(train, test, 9, seed=0)
    assert result.scores is not None
    assert result.scores[:, 3:].abs().max() == 0
