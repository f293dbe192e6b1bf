"""What scores of test videos come to: which classes are right, which are taken for which, which videos were the hardest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from stjepa_cli.data.sampling import evenly


@dataclass(frozen=True)
class ClassStats:
    """One class.

    Attributes:
        label: its number.
        videos: test videos of it.
        right: those whose best class it is.
        taken_for: the wrong class that most of the others were taken for, the lower number of equal ones; None if all are right.
        times: how many were taken for that.
    """

    label: int
    videos: int
    right: int
    taken_for: int | None
    times: int

    @property
    def accuracy(self) -> float | None:
        """Share of its videos that are right; None without any."""
        return self.right / self.videos if self.videos else None


@dataclass(frozen=True)
class Confusion:
    """A class that is taken for another.

    Attributes:
        truth: the class.
        guess: the other.
        times: videos.
        videos: all test videos of the class.
    """

    truth: int
    guess: int
    times: int
    videos: int


@dataclass(frozen=True)
class Mistake:
    """A test video that is taken for another class.

    Attributes:
        row: which one.
        truth: its class.
        guess: the best class.
        truth_share: belief in its class, 0 to 1.
        guess_share: likewise in the best.
    """

    row: int
    truth: int
    guess: int
    truth_share: float
    guess_share: float


def best(scores: Tensor) -> Tensor:
    """The best class of each row of (R, C), int64 (R,); of equal ones the lower number."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, 0]


def confusion(scores: Tensor, truths: Sequence[int]) -> Tensor:
    """int64 (C, C): videos of class `row` whose best class is `column`.

    Args:
        scores: float (R, C).
        truths: R labels.
    """
    num_classes = scores.shape[1]
    places = torch.tensor(truths, dtype=torch.int64) * num_classes + best(scores)
    return torch.bincount(places, minlength=num_classes**2).view(num_classes, num_classes)


def by_class(counts: Tensor) -> tuple[ClassStats, ...]:
    """Every class of a confusion matrix int64 (C, C), in the order of their numbers."""
    wrong = counts - torch.diag(counts.diagonal())
    times, places = wrong.max(dim=1).values.tolist(), wrong.argmax(dim=1).tolist()
    videos, right = counts.sum(dim=1).tolist(), counts.diagonal().tolist()
    return tuple(
        ClassStats(label, videos[label], right[label], places[label] if times[label] else None, times[label])
        for label in range(len(counts))
    )


def worst_first(tallies: Sequence[ClassStats]) -> list[ClassStats]:
    """Those with a test video, the least accurate first; of equal ones that with more videos, then the lower number."""
    tried = [tally for tally in tallies if tally.videos]
    return sorted(tried, key=lambda tally: (tally.right / tally.videos, -tally.videos, tally.label))


def most_frequent(counts: Tensor, limit: int) -> list[Confusion]:
    """At most `limit` confusions of a matrix int64 (C, C), those of most videos first; of equal ones those of the smaller class.

    A confusion that took a greater share of its class comes first among those of as many videos.
    """
    videos = counts.sum(dim=1).tolist()
    wrong = counts - torch.diag(counts.diagonal())
    found = [Confusion(truth, guess, int(wrong[truth, guess]), videos[truth]) for truth, guess in wrong.nonzero().tolist()]
    return sorted(found, key=lambda one: (-one.times, one.videos, one.truth, one.guess))[:limit]


def hardest(scores: Tensor, truths: Sequence[int], ids: Sequence[str], *, limit: int, per_class: int) -> list[Mistake]:
    """The videos that were most wrongly sure: the least belief in the truth first, of equal ones the most in the guess, then by id.

    Args:
        scores: float (R, C), shares of belief.
        truths: R labels.
        ids: R names.
        limit: how many.
        per_class: how many of one class, so that no class fills the list.
    """
    guesses = best(scores).tolist()
    wrong = [row for row, truth in enumerate(truths) if guesses[row] != truth]
    found = [Mistake(row, truths[row], guesses[row], float(scores[row, truths[row]]), float(scores[row, guesses[row]])) for row in wrong]
    kept: list[Mistake] = []
    taken: dict[int, int] = {}
    for mistake in sorted(found, key=lambda one: (one.truth_share, -one.guess_share, ids[one.row])):
        taken[mistake.truth] = taken.get(mistake.truth, 0) + 1
        if taken[mistake.truth] <= per_class:
            kept.append(mistake)
    return kept[:limit]


def spread_over_classes(labels: Sequence[int], ids: Sequence[str], count: int) -> list[int]:
    """At most `count` rows, from classes evenly spread over all that have one, and of a class evenly spread over its ids.

    A function of labels and ids alone, so that nobody can have picked what looks good.
    """
    rows_of: dict[int, list[int]] = {}
    for row in sorted(range(len(ids)), key=lambda row: ids[row]):
        rows_of.setdefault(labels[row], []).append(row)
    chosen = evenly(sorted(rows_of), count)
    each = -(-count // max(1, len(chosen)))
    turns = zip_longest(*(evenly(rows_of[label], each) for label in chosen))
    taken = [row for turn in turns for row in turn if row is not None][:count]
    return sorted(taken, key=lambda row: (labels[row], ids[row]))


def percent(share: float) -> str:
    """A share for people; only none at all is 0."""
    return f"{share:.1%}" if share == 0 or share >= 0.0005 else "below 0.1%"
