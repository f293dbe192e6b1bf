"""Statistics of classes and videos, worked by hand."""

from __future__ import annotations

import torch

from stjepa_cli.data.sampling import evenly
from stjepa_cli.evaluation.confusion import (
    ClassStats,
    Confusion,
    Mistake,
    best_class,
    class_stats,
    confident_mistakes,
    confusion_matrix,
    most_frequent,
    percent,
    spread_over_classes,
    worst_first,
)


def test_confusion_counts_labels_against_the_best_class() -> None:
    scores = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.4, 0.4, 0.2]])
    assert best_class(scores).tolist() == [0, 0, 1, 0]
    assert confusion_matrix(scores, (0, 1, 1, 1)).tolist() == [[1, 0, 0], [2, 1, 0], [0, 0, 0]]


def test_classes_have_videos_hits_and_their_most_frequent_mistake() -> None:
    counts = torch.tensor([[3, 1, 1, 0], [0, 0, 1, 4], [0, 0, 2, 0], [0, 0, 0, 0]])
    stats = class_stats(counts)
    assert stats == (
        ClassStats(0, 5, 3, 1, 1),  # taken for 1 and for 2 as often: the lower number
        ClassStats(1, 5, 0, 3, 4),
        ClassStats(2, 2, 2, None, 0),
        ClassStats(3, 0, 0, None, 0),
    )
    assert [one.accuracy for one in stats] == [0.6, 0.0, 1.0, None]


def test_the_worst_class_comes_first_and_one_without_a_video_not_at_all() -> None:
    stats = class_stats(torch.tensor([[1, 1, 0, 0], [0, 4, 4, 0], [0, 0, 2, 0], [0, 0, 0, 0]]))
    assert [one.label for one in worst_first(stats)] == [1, 0, 2]  # of equal ones that with more videos


def test_confusions_are_ordered_by_videos_and_then_by_the_size_of_the_class() -> None:
    counts = torch.tensor([[9, 2, 0], [0, 1, 2], [3, 0, 0]])
    assert most_frequent(counts, 5) == [Confusion(2, 0, 3, 3), Confusion(1, 2, 2, 3), Confusion(0, 1, 2, 11)]
    assert len(most_frequent(counts, 1)) == 1
    assert most_frequent(torch.eye(3, dtype=torch.int64), 5) == []


def test_the_most_confident_mistakes_come_first() -> None:
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.0],  # right
            [0.3, 0.1, 0.6],  # truth 1: 0.1
            [0.0, 0.0, 1.0],  # truth 0: nothing
            [0.6, 0.0, 0.4],  # truth 1: nothing, but less sure
            [0.0, 0.0, 1.0],  # as row 2, its name comes first
            [0.4, 0.6, 0.0],  # truth 0: 0.4, the third of its class
        ]
    )
    found = confident_mistakes(scores, (0, 1, 0, 1, 0, 0), ("f", "e", "d", "c", "b", "a"), limit=9, per_class=2)
    assert [mistake.row for mistake in found] == [4, 2, 3, 1]
    assert found[0] == Mistake(4, 0, 2, 0.0, 1.0)
    assert [mistake.row for mistake in confident_mistakes(scores, (0, 1, 0, 1, 0, 0), "fedcba", limit=2, per_class=1)] == [4, 3]
    assert confident_mistakes(torch.eye(3), (0, 1, 2), "abc", limit=9, per_class=2) == []


def test_shown_videos_are_spread_over_classes_by_name_alone() -> None:
    labels, ids = [label for label in range(40) for _ in range(3)], [f"{label:02}{name}" for label in range(40) for name in "cab"]
    assert [ids[row] for row in spread_over_classes(labels, ids, 4)] == ["05b", "15b", "25b", "35b"]
    few = spread_over_classes([7, 7, 7, 7, 2], ["d", "c", "b", "a", "e"], 4)
    assert [(7, 7, 7, 7, 2)[row] for row in few] == [2, 7, 7]
    assert spread_over_classes([0], ["a"], 8) == [0]
    assert [evenly(range(16), 8), evenly(range(3), 8), evenly(range(5), 1)] == [[1, 3, 5, 7, 9, 11, 13, 15], [0, 1, 2], [2]]


def test_only_zero_is_shown_as_zero() -> None:
    assert [percent(share) for share in (0.0, 1e-9, 0.0005, 0.125, 1.0)] == ["0.0%", "below 0.1%", "0.1%", "12.5%", "100.0%"]
