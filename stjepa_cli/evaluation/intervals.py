"""95 % intervals of metrics over test videos, and of the difference between two encoders on the same videos.

Videos from one source are resampled together (a cluster bootstrap), because they succeed and fail together: resampling single videos
gives intervals that are far too narrow. Percentiles are widened where there are few sources (Hesterberg, arXiv 1411.5279). Where a
bootstrap has too few events to resample, near 0 and 1, the interval is Wilson's with an effective number of videos (Korn and Graubard,
Survey Methodology 1998), and that of a difference is the adjusted Wald interval of Bonett and Price (J. Educ. Behav. Stat. 2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from stjepa_cli.evaluation.confusion import best_class
from stjepa_cli.evaluation.results import EvaluationResult

RESAMPLES = 1000
CONFIDENCE = 0.95
FEWEST_EVENTS = 10
"""With fewer hits or misses (or videos on which two encoders differ) than this, in effective numbers, nothing is resampled."""

_TAIL = (1 - CONFIDENCE) / 2
_CHUNK = 100

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between two encoders on the same videos.

    Attributes:
        value: Metric of this encoder minus that of the other one.
        interval: Paired 95 % bootstrap interval of the difference.
    """

    value: float
    interval: Interval

    def __str__(self) -> str:
        return "{:+.4f} [{:+.3f}, {:+.3f}]".format(self.value, *self.interval)

    def points(self) -> str:
        """Return the difference and its interval in percentage points, as text."""
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in (self.value, *self.interval)))


@dataclass(frozen=True)
class Differences:
    """The differences of an encoder from a reference encoder.

    Attributes:
        reference: Name of the reference encoder.
        metrics: The difference of the first metric of each protocol.
    """

    reference: str
    metrics: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        metrics = {name: {"value": one.value, "interval": list(one.interval)} for name, one in self.metrics.items()}
        return {"differences_from": self.reference, "differences": metrics}


@dataclass(frozen=True)
class GroupSums:
    """Sums of a quantity of videos over the sources that the videos were cut from.

    Attributes:
        sums: float64 (S, G), sums for each of S splits and G groups.
        sizes: float64 (S, G), numbers of videos.
    """

    sums: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, values: Sequence[Tensor], groups: Sequence[Sequence[str]]) -> GroupSums:
        """Sum values of videos over their groups.

        Args:
            values: bool or float (R,) for each split.
            groups: Names of the groups of these videos for each split. Videos of several splits can share a group.
        """
        index_of = {name: i for i, name in enumerate(dict.fromkeys(name for names in groups for name in names))}
        sums, sizes = torch.zeros(2, len(values), len(index_of), dtype=torch.float64)
        for i, (part, names) in enumerate(zip(values, groups, strict=True)):
            rows = torch.tensor([index_of[name] for name in names], dtype=torch.int64)
            sums[i].index_add_(0, rows, part.double())
            sizes[i].index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
        return cls(sums, sizes)

    @property
    def num_groups(self) -> int:
        """G, the number of groups."""
        return self.sums.shape[1]

    @property
    def mean(self) -> float:
        """The mean over the videos of a split, averaged over splits."""
        return float((self.sums.sum(dim=1) / self.sizes.sum(dim=1)).mean())

    def effective_size(self, variance_of_a_video: float) -> float:
        """Return how many independent videos would give a mean with the same variance.

        Args:
            variance_of_a_video: The variance of the quantity over single videos.
        """
        totals = self.sizes.sum(dim=1, keepdim=True)
        influence = ((self.sums - self.sums.sum(dim=1, keepdim=True) / totals * self.sizes) / totals).mean(dim=0)
        variance = float(influence.square().sum()) * self.num_groups / max(1, self.num_groups - 1)
        fewest = 1 / float((self.sizes / totals).mean(dim=0).square().sum())  # as if the videos of a group were all alike (Kish, 1965)
        found = variance_of_a_video / variance if variance > 0 else fewest
        return min(max(found, fewest), float(self.sizes.sum()))

    def resampled_means(self, seed: int) -> Tensor:
        """Return the means of 1,000 resamples of the groups with replacement, float64 (1000,).

        Groups are resampled from all splits together. The same seed gives every encoder the same resamples.
        """
        generator, means = torch.Generator().manual_seed(seed), []
        for _ in range(RESAMPLES // _CHUNK):
            chosen = torch.randint(self.num_groups, (_CHUNK, self.num_groups), generator=generator)
            times = torch.zeros(_CHUNK, self.num_groups, dtype=torch.float64)
            times.scatter_add_(1, chosen, torch.ones_like(times))
            means.append((times @ self.sums.T / (times @ self.sizes.T)).nanmean(dim=1))  # a small split can be missing from a resample
        return torch.cat(means)

    def percentiles(self, seed: int) -> Interval:
        """Return the percentile interval of the mean, widened for few groups."""
        spread = t_quantile(1 - _TAIL, self.num_groups - 1) * math.sqrt(self.num_groups / (self.num_groups - 1))
        tail = NormalDist().cdf(-spread)
        low, high = self.resampled_means(seed).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return low, high


def interval(hits: Sequence[Tensor], groups: Sequence[Sequence[str]], seed: int) -> Interval:
    """Return the 95 % interval of a fraction of hits, as a mean over splits.

    Args:
        hits: bool or float (R,) for each split.
        groups: Names of the sources of these videos for each split.
        seed: Seed of the resamples.
    """
    sums = GroupSums.of(hits, groups)
    mean = sums.mean
    size = sums.effective_size(mean * (1 - mean))
    if sums.num_groups > 1 and size * min(mean, 1 - mean) >= FEWEST_EVENTS:
        return sums.percentiles(seed)
    return wilson(mean, size, t_quantile(1 - _TAIL, max(1, sums.num_groups - 1)))


def wilson(mean: float, size: float, quantile: float) -> Interval:
    """Return Wilson's interval of a fraction.

    Args:
        mean: The fraction.
        size: Number of independent videos.
        quantile: Quantile of the normal (or t) distribution.
    """
    shrink = 1 + quantile**2 / size
    centre = (mean + quantile**2 / (2 * size)) / shrink
    radius = quantile / shrink * math.sqrt(mean * (1 - mean) / size + quantile**2 / (4 * size**2))
    return max(0.0, centre - radius), min(1.0, centre + radius)


def difference(hits: Sequence[Tensor], others: Sequence[Tensor], groups: Sequence[Sequence[str]], seed: int) -> Difference:
    """Return the difference between two encoders with its paired 95 % interval, as a mean over splits.

    Args:
        hits: bool or float (R,) of one encoder for each split.
        others: The same of the other encoder, for the same videos.
        groups: Names of the sources of these videos for each split.
        seed: Seed of the resamples.
    """
    gains = [own.double() - other.double() for own, other in zip(hits, others, strict=True)]
    sums = GroupSums.of(gains, groups)
    wins, losses = (GroupSums.of([(sign * gain).clamp(min=0) for gain in gains], groups).mean for sign in (1, -1))
    size = sums.effective_size(wins + losses - sums.mean**2)
    if sums.num_groups > 1 and size * (wins + losses) >= FEWEST_EVENTS:
        return Difference(sums.mean, sums.percentiles(seed))
    wins, losses = ((size * fraction + 1) / (size + 2) for fraction in (wins, losses))
    radius = t_quantile(1 - _TAIL, max(1, sums.num_groups - 1)) * math.sqrt((wins + losses - (wins - losses) ** 2) / (size + 2))
    return Difference(sums.mean, (max(-1.0, wins - losses - radius), min(1.0, wins - losses + radius)))


def t_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution (Abramowitz and Stegun 26.7.5; exact for 1 and 2 degrees of freedom)."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / float(freedom) ** (i + 1) for i, term in enumerate(terms))


def intervals_of(results: Sequence[EvaluationResult], seed: int) -> dict[str, Interval]:
    """Return the interval of the first metric of each protocol, as a mean over the splits of `results`."""
    groups = [result.groups for result in results]
    return {name: interval([hits_of(result, name) for result in results], groups, seed) for name in results[0].probes}


def differences_of(results: Sequence[EvaluationResult], others: Sequence[EvaluationResult], seed: int) -> Differences:
    """Return the differences between two encoders, on the videos that both scored.

    Args:
        results: One result per split of an encoder.
        others: The results of the reference encoder on the same splits.
        seed: Seed of the resamples.
    """
    rows, other_rows = _common_rows(results, others), _common_rows(others, results)
    groups = [tuple(result.groups[i] for i in part.tolist()) for result, part in zip(results, rows, strict=True)]
    metrics = {
        name: difference(
            [hits_of(result, name)[part] for result, part in zip(results, rows, strict=True)],
            [hits_of(other, name)[part] for other, part in zip(others, other_rows, strict=True)],
            groups,
            seed,
        )
        for name in results[0].probes
        if name in others[0].probes and all(groups)
    }
    return Differences(others[0].encoder, metrics)


def _common_rows(results: Sequence[EvaluationResult], others: Sequence[EvaluationResult]) -> list[Tensor]:
    """Return for each split the rows of videos that both encoders scored, sorted by id."""
    rows = []
    for result, other in zip(results, others, strict=True):
        row_of = {name: i for i, name in enumerate(result.ids)}
        rows.append(torch.tensor([row_of[name] for name in sorted(set(result.ids) & set(other.ids))], dtype=torch.int64))
    return rows


def hits_of(result: EvaluationResult, protocol: str) -> Tensor:
    """Return the contribution of each test video to the first metric of a protocol, float64 (R,)."""
    probe = result.probes[protocol]
    if probe.hits is not None:
        return probe.hits.double()
    assert probe.scores is not None  # a protocol has one or the other
    return (best_class(probe.scores) == torch.tensor(result.labels)).double()
