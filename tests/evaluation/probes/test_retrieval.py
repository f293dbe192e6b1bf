"""Retrieval against a loop and against a case worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes.retrieval import RECALLS, RetrievalProbe


def features(values: list[list[float]], labels: list[int], side: str) -> Features:
    names = tuple(f"{side}{i:03d}" for i in range(len(labels)))
    return Features(torch.tensor(values, dtype=torch.float32), torch.tensor(labels), names, names)


def test_a_case_worked_by_hand() -> None:
    """The gallery's mean is (10, 0), the queries' (0, 5); without them both look right, left, up, down.

    Query 0 (right, class 0) meets rows 0 (class 1), then 2 and 3 at a right angle, then 1.
    """
    gallery = features([[11, 0], [9, 0], [10, 1], [10, -1]], [1, 0, 2, 0], "train")
    queries = features([[1, 5], [-1, 5], [0, 6], [0, 4]], [0, 0, 2, 3], "test")
    # class 0 of query 0 comes at rank 3 (row 3 before row 1); query 1 hits at once; query 2 too; class 3 is not there
    assert RetrievalProbe().fit_score(gallery, queries, 4, seed=0).metrics == {
        "r1": 0.5,
        "r5": 0.75,
        "r10": 0.75,
        "r20": 0.75,
        "r50": 0.75,
    }


def test_figures_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    train = features(
        (torch.randn(120, 4, generator=generator) + 3).tolist(), torch.randint(30, (120,), generator=generator).tolist(), "train"
    )
    test = features((torch.randn(40, 4, generator=generator) - 2).tolist(), torch.randint(30, (40,), generator=generator).tolist(), "test")

    def centred(side: Features) -> list[list[float]]:
        means = [sum(column) / len(side) for column in zip(*side.values.tolist(), strict=True)]
        return [[a - m for a, m in zip(row, means, strict=True)] for row in side.values.tolist()]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    gallery, hits = centred(train), dict.fromkeys(RECALLS, 0)
    for query, truth in zip(centred(test), test.labels.tolist(), strict=True):
        ranking = sorted(range(120), key=lambda row: -cosine(query, gallery[row]))
        for k in RECALLS:
            hits[k] += truth in [int(train.labels[row]) for row in ranking[:k]]
    figures = RetrievalProbe().fit_score(train, test, 30, seed=0).metrics
    assert figures == pytest.approx({f"r{k}": hits[k] / 40 for k in RECALLS})
    assert list(figures.values()) == sorted(figures.values())


def test_an_offset_of_a_whole_set_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    values, labels = torch.randn(60, 6, generator=generator), (torch.arange(60) % 5).tolist()
    train, test = features(values[:40].tolist(), labels[:40], "train"), features(values[40:].tolist(), labels[40:], "test")
    moved = features((values[40:] + 7).tolist(), labels[40:], "test")
    assert RetrievalProbe().fit_score(train, test, 5, seed=0).metrics == RetrievalProbe().fit_score(train, moved, 5, seed=0).metrics


def test_a_single_query_is_refused_because_its_set_has_no_spread() -> None:
    with pytest.raises(StjepaError, match="subtracts the mean of the test set: got a test set of 1 video, expected 2 or more"):
        RetrievalProbe().fit_score(features([[1, 2], [3, 4]], [0, 1], "train"), features([[1, 2]], [0], "test"), 2, seed=0)
