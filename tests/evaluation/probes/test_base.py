"""Every probe, found by its name, keeps the contract; how features are ranked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes._nearest import highest, nearest
from stjepa_cli.evaluation.probes.base import VideoProbe, build, top_k_accuracy
from tests.evaluation.probes.contract import ProbeContract, VideoProbeContract, make_features

VIDEO = [name for name in plugins.names("evaluation.probes") if issubclass(plugins.load("evaluation.probes", name), VideoProbe)]


class TestEveryProbe(ProbeContract):
    @pytest.fixture(params=sorted(set(plugins.names("evaluation.probes")) - set(VIDEO)))
    def name(self, request: pytest.FixtureRequest) -> str:
        found: str = request.param
        return found


class TestEveryVideoProbe(VideoProbeContract):
    @pytest.fixture(params=VIDEO)
    def name(self, request: pytest.FixtureRequest) -> str:
        found: str = request.param
        return found


def test_an_unknown_probe_is_refused_with_those_that_exist() -> None:
    with pytest.raises(
        ConfigError,
        match="unknown probe: got 'quadratic', expected one of attentive, attentive_pool, fewshot, finetune, knn, linear, retrieval",
    ):
        build("quadratic")


def test_features_that_are_not_finite_name_the_first_video() -> None:
    values = torch.ones(3, 2)
    values[1, 1] = torch.nan
    with pytest.raises(StjepaError, match="1 of 3 videos hold NaN or infinity, first b"):
        Features(values, torch.zeros(3, dtype=torch.int64), ("g",) * 3, ("a", "b", "c"))


def test_features_of_other_lengths_are_refused() -> None:
    with pytest.raises(StjepaError, match="disagree"):
        Features(torch.ones(3, 2), torch.zeros(2, dtype=torch.int64), ("g",) * 3, ("a", "b", "c"))


def test_top_k_equals_scikit_learn() -> None:
    scores, labels = torch.rand(50, 7), torch.randint(7, (50,))
    labels[:7] = torch.arange(7)
    for k in (1, 3, 5):
        assert top_k_accuracy(scores, labels, k) == pytest.approx(top_k_accuracy_score(labels, scores, k=k))


def test_top_k_of_no_more_than_k_classes_is_one_and_no_guess_is_no_hit() -> None:
    scores = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert top_k_accuracy(scores, torch.tensor([2]), 3) == 1.0
    assert top_k_accuracy(scores, torch.tensor([1]), 2) == 0.0
    assert top_k_accuracy(scores, torch.tensor([0]), 2) == 1.0


def test_nearest_equals_a_loop_and_breaks_ties_by_row() -> None:
    queries, gallery = torch.randn(1100, 8), torch.randn(40, 8)  # more queries than are compared at once
    similarity, rows = nearest(queries, gallery, 5)
    for i in range(0, 1100, 100):
        wanted = sorted(range(40), key=lambda row: -float(queries[i] @ gallery[row]))[:5]
        assert rows[i].tolist() == wanted
        assert torch.allclose(similarity[i], gallery[wanted] @ queries[i], atol=1e-5)
    assert nearest(torch.ones(1, 2), torch.ones(30, 2), 4)[1].tolist() == [[0, 1, 2, 3]]
    assert nearest(torch.ones(1, 2), torch.ones(3, 2), 4)[1].shape == (1, 3)


def test_the_highest_are_those_of_a_stable_sort_whatever_is_equal() -> None:
    scores = torch.randint(6, (300, 40)).float()
    scores[::7] = torch.randn(43, 40)
    scores[3, :35] = -torch.inf
    for k in (1, 7, 40):
        wanted = scores.sort(dim=1, descending=True, stable=True)
        values, places = highest(scores, k)
        assert torch.equal(values, wanted.values[:, :k])
        assert torch.equal(places, wanted.indices[:, :k])


def test_tokens_travel_with_their_rows_and_are_checked() -> None:
    features = make_features(6)
    assert features.tokens is not None
    picked = features.rows(torch.tensor([4, 1]))
    assert picked.tokens is not None
    assert torch.equal(picked.tokens, features.tokens[[4, 1]])
    broken = features.tokens.half()
    broken[2, 1, 0] = torch.inf
    with pytest.raises(StjepaError, match="1 of 6 videos hold NaN or infinity, first train0002"):
        replace(features, tokens=broken).refuse_broken_tokens()
    with pytest.raises(
        StjepaError, match=r"tokens and ids disagree: got torch.float32 \(5, 2, 6\), expected float16 or float32 \(6, L, D\)"
    ):
        replace(features, tokens=features.tokens[:5])
