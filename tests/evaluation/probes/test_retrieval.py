"""Retrieval against a loop and against a case worked by hand, with both ways of centring."""

from __future__ import annotations

import math

import pytest
import torch

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes.base import Probe, build
from stjepa_cli.evaluation.probes.retrieval import rank

RECALLS = (1, 5, 10, 20, 50)


def features(values: list[list[float]], labels: list[int], side: str) -> Features:
    names = tuple(f"{side}{i:03d}" for i in range(len(labels)))
    return Features(torch.tensor(values, dtype=torch.float32), torch.tensor(labels), names, names)


@pytest.fixture(params=["retrieval", "retrieval_coclr"])
def probe(request: pytest.FixtureRequest) -> Probe:
    return build(request.param)


def random_sides() -> tuple[Features, Features]:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(120, 4, generator=generator) + 3
    labels = torch.randint(30, (160,), generator=generator).tolist()
    test = torch.randn(40, 4, generator=generator) + 2
    return features(train.tolist(), labels[:120], "train"), features(test.tolist(), labels[120:], "test")


def test_the_published_protocol_worked_by_hand() -> None:
    """The mean of the gallery is (10, 0), that of the queries (0, 5); without them both point right, left, up, down.

    Query 0 (right, class 0) meets row 0 (class 1), then 2 and 3 at a right angle, then 1.
    """
    gallery = features([[11, 0], [9, 0], [10, 1], [10, -1]], [1, 0, 2, 0], "train")
    queries = features([[1, 5], [-1, 5], [0, 6], [0, 4]], [0, 0, 2, 3], "test")
    # class 0 of query 0 comes at rank 3 (row 3 before row 1); query 1 hits at once; query 2 too; class 3 is not there
    found = build("retrieval_coclr").fit_score(gallery, queries, 4, seed=0).metrics
    assert found == {"r1": 0.5, "r5": 0.75, "r10": 0.75, "r20": 0.75, "r50": 0.75}


def test_metrics_equal_a_loop(probe: Probe) -> None:
    train, test = random_sides()
    train_mean, test_mean = ([sum(column) / len(side) for column in zip(*side.values.tolist(), strict=True)] for side in (train, test))
    query_mean = train_mean if type(probe) is type(build("retrieval")) else test_mean

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    gallery = [[a - m for a, m in zip(row, train_mean, strict=True)] for row in train.values.tolist()]
    hits = dict.fromkeys(RECALLS, 0)
    for query, label in zip(test.values.tolist(), test.labels.tolist(), strict=True):
        centred = [a - m for a, m in zip(query, query_mean, strict=True)]
        ranking = sorted(range(120), key=lambda row: -cosine(centred, gallery[row]))
        for k in RECALLS:
            hits[k] += label in [int(train.labels[row]) for row in ranking[:k]]
    metrics = probe.fit_score(train, test, 30, seed=0).metrics
    assert metrics == pytest.approx({f"r{k}": hits[k] / 40 for k in RECALLS})
    assert list(metrics.values()) == sorted(metrics.values())


def test_by_default_a_test_video_does_not_depend_on_the_others() -> None:
    train, test = random_sides()
    alone = [build("retrieval").fit_score(train, test.rows(torch.tensor([row])), 30, seed=0).hits for row in range(40)]
    together = build("retrieval").fit_score(train, test, 30, seed=0).hits
    assert together is not None
    assert torch.equal(torch.cat([hit for hit in alone if hit is not None]), together)
    rows = rank(train.values, test.values, 1)[1][:, 0]
    assert torch.equal((train.labels[rows] == test.labels).double(), together)


def test_in_the_published_protocol_an_offset_of_the_test_set_does_not_matter() -> None:
    train, test = random_sides()
    moved = features((test.values + 7).tolist(), test.labels.tolist(), "test")
    for name, same in (("retrieval_coclr", True), ("retrieval", False)):
        metrics = [build(name).fit_score(train, side, 30, seed=0).metrics for side in (test, moved)]
        assert (metrics[0] == metrics[1]) == same


def test_the_published_protocol_needs_two_queries() -> None:
    train, test = random_sides()
    with pytest.raises(
        StjepaError, match="retrieval_coclr subtracts the mean of the test set: got a test set of 1 video, expected 2 or more"
    ):
        build("retrieval_coclr").fit_score(train, test.rows(torch.tensor([0])), 30, seed=0)
