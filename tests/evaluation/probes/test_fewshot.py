"""Few-shot classification: samples against a loop, and numbers of shots that are not reported."""

from __future__ import annotations

import statistics

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestCentroid

from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes.fewshot import NUM_SAMPLES, FewShotProbe, correct, sample


def make(num_groups: int, clips: int, *, side: str = "train", seed: int = 0) -> Features:
    """Three classes of `num_groups` groups of `clips` videos."""
    rows = [(c, g, k) for c in range(3) for g in range(num_groups) for k in range(clips)]
    labels = torch.tensor([c for c, _, _ in rows])
    values = F.one_hot(labels, 6) + 0.7 * torch.randn(len(rows), 6, generator=torch.Generator().manual_seed(seed))
    return Features(values, labels, tuple(f"g{g}" for _, g, _ in rows), tuple(f"{side}{c}_{g}_{k}" for c, g, k in rows))


@pytest.mark.parametrize("k", [1, 4, 6, 9])
def test_each_class_gives_k_videos_of_as_many_groups_as_it_has(k: int) -> None:
    train = make(5, 3)
    for seed in range(4):
        sampled = train.rows(sample(train, k, str(seed)))
        assert len(set(sampled.ids)) == 3 * k
        for label in range(3):
            groups = [group for group, own in zip(sampled.groups, sampled.labels.tolist(), strict=True) if own == label]
            counts = sorted(groups.count(group) for group in set(groups))
            assert len(groups) == k
            assert len(counts) == min(k, 5)
            assert counts[-1] - counts[0] <= 1


def test_the_seed_decides_the_sample() -> None:
    train = make(5, 3)
    assert torch.equal(sample(train, 2, "0/1"), sample(train, 2, "0/1"))
    assert not torch.equal(sample(train, 2, "0/1"), sample(train, 2, "0/2"))


def test_accuracy_equals_scikit_learn() -> None:
    shots, test = make(5, 2), make(8, 5, side="test", seed=1)
    mean = shots.values.mean(dim=0)
    model = NearestCentroid().fit(F.normalize(shots.values - mean, dim=1).numpy(), shots.labels.numpy())
    assert float(correct(shots, test).mean()) == pytest.approx(
        model.score(F.normalize(test.values - mean, dim=1).numpy(), test.labels.numpy())
    )


def test_metrics_are_mean_and_deviation_over_the_samples() -> None:
    train, test = make(5, 3), make(4, 4, side="test", seed=1)
    metrics = FewShotProbe().fit_score(train, test, 3, seed=7).metrics
    assert list(metrics) == ["k1", "k1_std", "k5", "k5_std", "k10", "k10_std"]
    ordered = train.rows(train.by_id())
    accuracies = [float(correct(ordered.rows(sample(ordered, 5, f"7/{i}")), test).mean()) for i in range(NUM_SAMPLES)]
    assert metrics["k5"] == pytest.approx(statistics.mean(accuracies))
    assert metrics["k5_std"] == pytest.approx(statistics.stdev(accuracies))
    assert metrics["k10"] > metrics["k1"]


def test_numbers_of_shots_that_a_class_lacks_are_left_out() -> None:
    train, test = make(3, 2), make(4, 4, side="test", seed=1)
    assert list(FewShotProbe().fit_score(train, test, 3, seed=0).metrics) == ["k1", "k1_std", "k5", "k5_std"]
    fewer = train.rows(torch.arange(2, len(train)))
    assert list(FewShotProbe().fit_score(fewer, test, 3, seed=0).metrics) == ["k1", "k1_std"]
