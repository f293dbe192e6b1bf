"""Statistics of classes and videos from the scores of a probe: confusion matrix, accuracy per class, confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from stjepa_cli.data.sampling import evenly


@dataclass(frozen=True)
class ClassStats:
    """Statistics of one class.

    Attributes:
        label: The number of the class.
        videos: Number of its test videos.
        right: Number of its test videos that are predicted correctly.
        taken_for: The wrong class that is predicted most often, the lower number of equal ones, or None if there is no mistake.
        times: Number of videos with that wrong prediction.
    """

    label: int
    videos: int
    right: int
    taken_for: int | None
    times: int

    @property
    def accuracy(self) -> float | None:
        """Fraction of its videos that are predicted correctly, or None without videos."""
        return self.right / self.videos if self.videos else None


@dataclass(frozen=True)
class Confusion:
    """A class that is taken for another one.

    Attributes:
        label: The true class.
        guess: The predicted class.
        times: Number of such videos.
        videos: Number of test videos of the true class.
    """

    label: int
    guess: int
    times: int
    videos: int


@dataclass(frozen=True)
class Mistake:
    """A test video that is taken for another class.

    Attributes:
        row: Index of the video.
        label: The true class.
        guess: The predicted class.
        label_score: Probability of the true class, 0 to 1.
        guess_score: Probability of the predicted class, 0 to 1.
    """

    row: int
    label: int
    guess: int
    label_score: float
    guess_score: float


def best_class(scores: Tensor) -> Tensor:
    """Return the best class of each row of (R, C), int64 (R,). Of equal ones the lower number is taken."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, 0]


def confusion_matrix(scores: Tensor, labels: Sequence[int]) -> Tensor:
    """Return int64 (C, C), the number of videos of class `row` that are predicted as class `column`.

    Args:
        scores: float (R, C).
        labels: The R true classes.
    """
    num_classes = scores.shape[1]
    cells = torch.tensor(labels, dtype=torch.int64) * num_classes + best_class(scores)
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def class_stats(counts: Tensor) -> tuple[ClassStats, ...]:
    """Return the statistics of every class from a confusion matrix int64 (C, C), in the order of their numbers."""
    wrong = counts - torch.diag(counts.diagonal())
    times, guesses = wrong.max(dim=1).values.tolist(), wrong.argmax(dim=1).tolist()
    videos, right = counts.sum(dim=1).tolist(), counts.diagonal().tolist()
    return tuple(
        ClassStats(label, videos[label], right[label], guesses[label] if times[label] else None, times[label])
        for label in range(len(counts))
    )


def worst_first(stats: Sequence[ClassStats]) -> list[ClassStats]:
    """Sort classes with test videos by accuracy, the lowest first; of equal ones the larger class, then the lower number."""
    tested = [one for one in stats if one.videos]
    return sorted(tested, key=lambda one: (one.right / one.videos, -one.videos, one.label))


def most_frequent(counts: Tensor, limit: int) -> list[Confusion]:
    """Return at most `limit` confusions of a matrix int64 (C, C), the most frequent first; of equal ones that of the smaller class."""
    videos = counts.sum(dim=1).tolist()
    wrong = counts - torch.diag(counts.diagonal())
    found = [Confusion(label, guess, int(wrong[label, guess]), videos[label]) for label, guess in wrong.nonzero().tolist()]
    return sorted(found, key=lambda one: (-one.times, one.videos, one.label, one.guess))[:limit]


def confident_mistakes(scores: Tensor, labels: Sequence[int], ids: Sequence[str], *, limit: int, per_class: int) -> list[Mistake]:
    """Return the most confident mistakes: lowest probability of the true class first, then highest of the guess, then by id.

    Args:
        scores: float (R, C), class probabilities.
        labels: The R true classes.
        ids: Names of the R videos.
        limit: Maximum number of mistakes.
        per_class: Maximum number of mistakes of one true class.
    """
    guesses = best_class(scores).tolist()
    wrong = [row for row, label in enumerate(labels) if guesses[row] != label]
    found = [Mistake(row, labels[row], guesses[row], float(scores[row, labels[row]]), float(scores[row, guesses[row]])) for row in wrong]
    kept: list[Mistake] = []
    taken: dict[int, int] = {}
    for mistake in sorted(found, key=lambda one: (one.label_score, -one.guess_score, ids[one.row])):
        taken[mistake.label] = taken.get(mistake.label, 0) + 1
        if taken[mistake.label] <= per_class:
            kept.append(mistake)
    return kept[:limit]


def spread_over_classes(labels: Sequence[int], ids: Sequence[str], count: int) -> list[int]:
    """Return at most `count` rows from classes that are evenly spread over all, and from evenly spread ids within a class.

    The choice depends on labels and ids alone, so nobody can pick what looks good.
    """
    rows_of: dict[int, list[int]] = {}
    for row in sorted(range(len(ids)), key=lambda row: ids[row]):
        rows_of.setdefault(labels[row], []).append(row)
    chosen = evenly(sorted(rows_of), count)
    per_class = -(-count // max(1, len(chosen)))
    turns = zip_longest(*(evenly(rows_of[label], per_class) for label in chosen))
    taken = [row for turn in turns for row in turn if row is not None][:count]
    return sorted(taken, key=lambda row: (labels[row], ids[row]))


def percent(fraction: float) -> str:
    """Return a fraction as a percentage; only 0 itself is shown as 0.0%."""
    return f"{fraction:.1%}" if fraction == 0 or fraction >= 0.0005 else "below 0.1%"
