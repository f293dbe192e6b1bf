"""kNN against a loop and against scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.neighbors import KNeighborsClassifier

from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes.knn import NEIGHBOURS, TEMPERATURE, TEMPERATURES, K, KnnProbe, choose


def draw(num_rows: int, num_classes: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_rows,), generator=generator)
    values = torch.randn(num_rows, 5, generator=generator) + F.one_hot(labels, 5 if num_classes <= 5 else num_classes)[:, :5]
    names = tuple(f"{seed}_{i:03d}" for i in range(num_rows))
    return Features(values, labels, names, names)


def loop_votes(train: Features, test: Features, num_classes: int) -> list[list[float]]:
    """The protocol, one video at a time in plain Python."""
    table = []
    for query in test.values.tolist():
        similar = []
        for row, label in zip(train.values.tolist(), train.labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            similar.append((dot / math.hypot(*query) / math.hypot(*row), label))
        votes = [0.0] * num_classes
        for similarity, label in sorted(similar, reverse=True)[:20]:
            votes[label] += math.exp(similarity / 0.07)
        table.append([vote / sum(votes) for vote in votes])
    return table


def test_votes_and_metrics_equal_a_loop() -> None:
    train, test = draw(70, 8, seed=1), draw(30, 8, seed=2)
    result = KnnProbe().fit_score(train, test, 8, seed=0)
    votes = loop_votes(train, test, 8)
    assert result.scores is not None
    assert torch.allclose(result.scores, torch.tensor(votes), atol=1e-4)
    labels = test.labels.tolist()
    for k in (1, 5):
        hits = [label in sorted(range(8), key=lambda c: -row[c])[:k] and row[label] > 0 for row, label in zip(votes, labels, strict=True)]
        assert math.isclose(result.metrics[f"top{k}"], sum(hits) / 30)


def test_predictions_equal_scikit_learn() -> None:
    train, test = draw(300, 5, seed=3), draw(90, 5, seed=4)
    model = KNeighborsClassifier(
        K, metric="cosine", algorithm="brute", weights=lambda distance: torch.tensor((1 - distance) / TEMPERATURE).exp().numpy()
    )
    model.fit(train.values.numpy(), train.labels.numpy())
    result = KnnProbe().fit_score(train, test, 5, seed=0)
    assert result.scores is not None
    assert torch.allclose(result.scores, torch.from_numpy(model.predict_proba(test.values.numpy())).float(), atol=1e-4)
    assert math.isclose(result.metrics["top1"], model.score(test.values.numpy(), test.labels.numpy()))


def test_the_length_of_features_does_not_matter() -> None:
    train, test = draw(60, 5, seed=5), draw(20, 5, seed=6)
    longer = Features(train.values * torch.rand(60, 1).add(0.1) * 100, train.labels, train.groups, train.ids)
    assert KnnProbe().fit_score(train, test, 5, seed=0).metrics == KnnProbe().fit_score(longer, test, 5, seed=0).metrics


def test_k_shrinks_to_the_train_set() -> None:
    result = KnnProbe().fit_score(draw(7, 5, seed=7), draw(9, 5, seed=8), 5, seed=0)
    assert result.chosen["k"] == 7.0
    assert result.chosen["temperature"] == 0.07
    assert KnnProbe().fit_score(draw(50, 5, seed=7), draw(9, 5, seed=8), 5, seed=0).chosen["k"] == 20.0


def test_a_class_without_a_vote_is_no_guess_among_five() -> None:
    train = Features(torch.ones(4, 2), torch.full((4,), 6), ("a", "b", "c", "d"), ("a", "b", "c", "d"))
    test = Features(torch.ones(2, 2), torch.tensor([0, 6]), ("e", "f"), ("e", "f"))
    assert KnnProbe().fit_score(train, test, 8, seed=0).metrics == {"top1": 0.5, "top5": 0.5, "top1_chosen": 0.5}
    three = Features(torch.ones(4, 2), torch.full((4,), 1), ("a", "b", "c", "d"), ("a", "b", "c", "d"))
    two = Features(torch.ones(2, 2), torch.tensor([0, 1]), ("e", "f"), ("e", "f"))
    assert KnnProbe().fit_score(three, two, 3, seed=0).metrics == {"top1": 0.5, "top5": 1.0, "top1_chosen": 0.5}


def test_k_and_temperature_are_chosen_by_leaving_one_group_out_as_scikit_learn_does() -> None:
    features = draw(240, 5, seed=9)
    train = replace(features, groups=tuple(f"g{i % 8}" for i in range(240)))
    k, temperature, choice = choose(train, F.normalize(train.values, dim=1), 5, seed=0)
    x, y = F.normalize(train.values, dim=1).numpy(), train.labels.numpy()

    def hits(k: int, temperature: float) -> int:
        found = 0
        for fit, left_out in LeaveOneGroupOut().split(x, y, train.groups):
            model = KNeighborsClassifier(
                min(k, len(fit)), metric="cosine", algorithm="brute", weights=lambda d: torch.tensor((1 - d) / temperature).exp().numpy()
            )
            found += int((model.fit(x[fit], y[fit]).predict(x[left_out]) == y[left_out]).sum())
        return found

    assert choice == {"left_out_videos": 240.0, "left_out_groups": 8.0, "left_out_top1": hits(k, temperature) / 240}
    assert hits(k, temperature) == max(hits(n, t) for n in NEIGHBOURS for t in TEMPERATURES)


def test_a_single_group_leaves_k_and_temperature_as_they_are() -> None:
    train, test = draw(60, 5, seed=5), draw(20, 5, seed=6)
    result = KnnProbe().fit_score(replace(train, groups=("g",) * 60), test, 5, seed=0)
    assert (result.chosen["k_chosen"], result.chosen["temperature_chosen"], result.chosen["left_out_videos"]) == (20, 0.07, 0)
    assert result.metrics["top1_chosen"] == result.metrics["top1"]


def test_the_metric_is_that_of_the_chosen_settings() -> None:
    train, test = draw(300, 5, seed=3), draw(90, 5, seed=4)
    result = KnnProbe().fit_score(train, test, 5, seed=0)
    model = KNeighborsClassifier(
        int(result.chosen["k_chosen"]),
        metric="cosine",
        algorithm="brute",
        weights=lambda d: torch.tensor((1 - d) / result.chosen["temperature_chosen"]).exp().numpy(),
    ).fit(train.values.numpy(), train.labels.numpy())
    assert math.isclose(result.metrics["top1_chosen"], model.score(test.values.numpy(), test.labels.numpy()))
