"""Intervals: formulas against scipy, and the coverage of simulated data sets whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from stjepa_cli.evaluation.intervals import Interval, difference, differences_of, interval, intervals_of, t_quantile, wilson
from stjepa_cli.evaluation.probes.base import ProbeResult
from stjepa_cli.evaluation.results import EvaluationResult


def hits_of(count: int, num_videos: int) -> Tensor:
    return torch.arange(num_videos) < count


def names(num_videos: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{i}" for i in range(num_videos)]


class TestFormulas:
    @pytest.mark.parametrize("freedom", [1, 2, 3, 5, 10, 30, 1000])
    def test_quantiles_are_those_of_student(self, freedom: int) -> None:
        for probability in (0.9, 0.975):
            assert t_quantile(probability, freedom) == pytest.approx(float(stats.t.ppf(probability, freedom)), rel=0.005)

    def test_near_0_and_1_the_interval_is_wilsons(self) -> None:
        for count in (0, 3, 97, 100):
            expected = stats.binomtest(count, 100).proportion_ci(method="wilson")
            assert wilson(count / 100, 100, 1.959964) == pytest.approx((expected.low, expected.high), abs=1e-6)
            found = interval([hits_of(count, 100)], [names(100)], seed=0)
            assert found == pytest.approx((expected.low, expected.high), abs=0.004)  # by a t quantile
            assert found[0] < count / 100 or count == 0
            assert found[1] > count / 100 or count == 100

    def test_the_bootstrap_agrees_with_the_binomial_it_samples(self) -> None:
        low, high = interval([hits_of(100, 400)], [names(400)], seed=0)
        error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
        assert low == pytest.approx(0.25 - error, abs=0.006)
        assert high == pytest.approx(0.25 + error, abs=0.006)

    def test_videos_of_one_source_count_as_one(self) -> None:
        single = interval([hits_of(30, 100)], [names(100)], seed=0)
        groups = [name for name in names(100) for _ in range(4)]
        assert interval([hits_of(30, 100).repeat_interleave(4)], [groups], seed=0) == pytest.approx(single, abs=1e-9)

    def test_splits_of_other_videos_narrow_an_interval_and_splits_of_the_same_do_not(self) -> None:
        hits = hits_of(100, 400)
        low, high = interval([hits], [names(400)], seed=0)
        assert interval([hits] * 3, [names(400)] * 3, seed=0) == pytest.approx((low, high))
        narrow = interval([hits] * 3, [names(400, f"{part}/") for part in range(3)], seed=0)
        assert narrow[1] - narrow[0] == pytest.approx((high - low) / math.sqrt(3), rel=0.1)

    def test_one_source_tells_next_to_nothing(self) -> None:
        low, high = interval([hits_of(5, 10)], [["g"] * 10], seed=0)
        assert (low, high) == pytest.approx((0.0, 1.0), abs=0.01)


class TestDifferences:
    def test_pairs_make_it_narrower_than_the_encoders_apart(self) -> None:
        generator = torch.Generator().manual_seed(0)
        easy = torch.rand(400, generator=generator) < 0.5
        changed = torch.rand(400, generator=generator) < 0.1
        found = difference([easy ^ changed], [easy], [names(400)], seed=0)
        apart = interval([easy], [names(400)], seed=0)
        assert found.value == pytest.approx(float((easy ^ changed).double().mean() - easy.double().mean()))
        assert found.interval[1] - found.interval[0] < 0.7 * (apart[1] - apart[0])

    def test_the_other_way_round_only_the_sign_changes(self) -> None:
        first, second = hits_of(250, 400), hits_of(200, 400).roll(60)
        there, back = (difference([a], [b], [names(400)], seed=0) for a, b in ((first, second), (second, first)))
        assert there.value == -back.value
        assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=0.005)

    def test_two_encoders_that_never_differ_are_not_certainly_equal(self) -> None:
        found = difference([hits_of(20, 40)], [hits_of(20, 40)], [names(40)], seed=0)
        assert found.value == 0
        assert found.interval[0] < -0.02 < 0.02 < found.interval[1]

    def test_only_videos_that_both_scored_are_compared(self) -> None:
        scores = torch.eye(2)[[0] * 30 + [1] * 30]
        first = EvaluationResult(
            "d", 1, "a", "mean", ("x", "y"), 1, tuple(names(60)), (0,) * 60, (), {"knn": ProbeResult({"top1": 0.5}, scores)}, 0.0
        )
        second = replace(
            first, encoder="b", ids=tuple(names(70)[10:][::-1]), probes={"knn": ProbeResult({"top1": 1.0}, torch.eye(2)[[0] * 60])}
        )
        found = differences_of([second], [first], seed=0)
        assert found.reference == "a"
        assert found.metrics["knn"].value == pytest.approx(1 - 20 / 50)
        assert intervals_of([first], seed=0)["knn"][0] < 0.5 < intervals_of([first], seed=0)["knn"][1]


SETTINGS = {  # mean of the logits, their deviation between groups, number of groups, videos in each
    "UCF-101 in small": (0.0, 2.0, 140, (2, 9)),
    "few groups": (0.0, 2.0, 21, (2, 9)),
    "mostly right": (1.5, 2.0, 60, (5, 6)),
    "nearly always right": (4.0, 1.0, 60, (5, 6)),
    "independent": (0.0, 0.0, 100, (1, 2)),
}


def simulated(setting: str, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    mean, deviation, num_groups, (fewest, most) = SETTINGS[setting]
    chances = 1 / (1 + np.exp(-(mean + deviation * rng.standard_normal(num_groups))))
    sizes = rng.integers(fewest, most, num_groups)
    hits = rng.random(sizes.sum()) < chances.repeat(sizes)
    return torch.from_numpy(hits), [str(group) for group, size in enumerate(sizes) for _ in range(size)]


def coverage(setting: str, repeats: int, *, by_group: bool) -> float:
    """Return the fraction of simulated data sets whose interval holds the true accuracy."""
    rng = np.random.default_rng(0)
    mean, deviation, *_ = SETTINGS[setting]
    truth = float((1 / (1 + np.exp(-(mean + deviation * rng.standard_normal(1_000_000))))).mean())
    found: list[Interval] = []
    for _ in range(repeats):
        hits, groups = simulated(setting, rng)
        found.append(interval([hits], [groups if by_group else names(len(groups))], seed=0))
    return sum(low <= truth <= high for low, high in found) / repeats


def test_resampling_sources_covers_the_truth_where_resampling_videos_does_not() -> None:
    assert coverage("UCF-101 in small", 150, by_group=True) > 0.9
    assert coverage("UCF-101 in small", 150, by_group=False) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_coverage_is_near_95_percent(setting: str) -> None:
    assert 0.92 <= coverage(setting, 600, by_group=True) <= 0.995


@pytest.mark.slow
@pytest.mark.parametrize(("advantage", "num_groups"), [(0.0, 140), (0.5, 60), (0.5, 16)])
def test_coverage_of_paired_differences_is_near_95_percent(advantage: float, num_groups: int) -> None:
    def chance(logits: np.ndarray) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(-logits)))

    def chances(count: int) -> Sequence[np.ndarray]:
        shared, own, other = rng.standard_normal((3, count))
        return chance(advantage + 2 * shared + 0.5 * own), chance(2 * shared + 0.5 * other)

    rng, repeats, covered = np.random.default_rng(0), 400, 0
    own, other = chances(1_000_000)
    truth = float((own - other).mean())
    for _ in range(repeats):
        own, other = chances(num_groups)
        difficulty = rng.random((2, num_groups, 5))  # half of the videos are as hard for both
        same = rng.random((num_groups, 5)) < 0.5
        first, second = difficulty[0] < own[:, None], np.where(same, difficulty[0], difficulty[1]) < other[:, None]
        groups = [str(group) for group in range(num_groups) for _ in range(5)]
        low, high = difference([torch.from_numpy(first.ravel())], [torch.from_numpy(second.ravel())], [groups], seed=0).interval
        covered += low <= truth <= high
    assert 0.92 <= covered / repeats <= 0.99
