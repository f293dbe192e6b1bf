"""The contract of every probe, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes._attention import AttentiveProbeBase, Setting
from stjepa_cli.evaluation.probes._nearest import highest, nearest
from stjepa_cli.evaluation.probes.base import Probe, VideoProbe, build, top_k_accuracy


def make_features(num_rows: int, *, num_classes: int = 4, dim: int = 6, noise: float = 1.0, side: str = "train", seed: int = 0) -> Features:
    """Rows scattered around one centre a class; three rows to a group; both sides share the centres."""
    centres = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num_rows) % num_classes
    values = centres[labels] + noise * torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))
    groups = tuple(f"{side}{i % num_classes}/g{i // (3 * num_classes)}" for i in range(num_rows))
    tokens = values[:, None].repeat(1, 2, 1)
    return Features(values, labels, groups, tuple(f"{side}{i:04d}" for i in range(num_rows)), tokens)


def made(name: str) -> Probe:
    """The probe, with a grid and a number of steps for tests if it has them."""
    probe = build(name)
    if isinstance(probe, AttentiveProbeBase):
        probe.settings = replace(probe.settings, grid=QUICK[: len(probe.settings.grid)], epochs=1, min_steps=25)
    return probe


QUICK = (Setting(1e-2, 0.01), Setting(1e-3, 0.1))
HEADLINES = {"retrieval": "r1", "retrieval_coclr": "r1", "fewshot": "k1"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few hundred numbers: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ON_FEATURES = [name for name in plugins.names("evaluation.probes") if not issubclass(plugins.load("evaluation.probes", name), VideoProbe)]


@pytest.mark.parametrize("name", ON_FEATURES)
class TestEveryProbe:
    """The contract; a new probe is found here by itself."""

    def test_metrics_are_fractions_and_scores_are_distributions(self, name: str) -> None:
        result = made(name).fit_score(make_features(60), make_features(21, side="test", seed=1), 4, seed=0)
        assert result.metrics
        assert all(0 <= metric <= 1 for metric in result.metrics.values())
        if result.scores is not None:
            assert result.scores.shape == (21, 4)
            assert torch.allclose(result.scores.sum(dim=1), torch.ones(21), atol=1e-5)

    def test_the_order_of_rows_changes_nothing(self, name: str) -> None:
        train, test = make_features(60), make_features(21, side="test", seed=1)
        shuffled, mixed = train.rows(torch.randperm(60)), torch.randperm(21)
        first = made(name).fit_score(train, test, 4, seed=0)
        second = made(name).fit_score(shuffled, test.rows(mixed), 4, seed=0)
        assert first.metrics == second.metrics
        assert first.chosen == second.chosen
        if first.scores is not None and second.scores is not None:
            assert torch.allclose(first.scores[mixed], second.scores, atol=1e-6)

    def test_easy_features_are_solved_and_noise_is_not(self, name: str) -> None:
        key = HEADLINES.get(name, "top1")
        easy = made(name).fit_score(make_features(80, noise=0.01), make_features(40, noise=0.01, side="test", seed=1), 4, seed=0)
        hopeless = made(name).fit_score(make_features(80, noise=1e3), make_features(400, noise=1e3, side="test", seed=1), 4, seed=0)
        assert easy.metrics[key] == 1.0
        assert abs(hopeless.metrics[key] - 0.25) < 0.1

    def test_test_labels_are_for_scoring_only(self, name: str) -> None:
        train, test = make_features(60), make_features(21, side="test", seed=1)
        lying = replace(test, labels=(test.labels + 1) % 4)
        honest, fooled = (made(name).fit_score(train, side, 4, seed=0) for side in (test, lying))
        assert honest.chosen == fooled.chosen
        assert honest.scores is None or torch.equal(honest.scores, fooled.scores)  # type: ignore[arg-type]

    def test_one_train_row_is_enough(self, name: str) -> None:
        result = made(name).fit_score(make_features(1), make_features(8, side="test", seed=1), 4, seed=0)
        assert result.metrics[HEADLINES.get(name, "top1")] == 0.25  # all are taken for the only class there is

    def test_constant_columns_and_collapsed_features_give_finite_metrics(self, name: str) -> None:
        train, test = make_features(60), make_features(21, side="test", seed=1)
        for values in (
            torch.zeros(81, 6),
            torch.full((81, 6), 3.7),
            torch.cat([torch.full((81, 5), 1e4), torch.randn(81, 1)], dim=1),
        ):
            flat_train, flat_test = (
                replace(side, values=part, tokens=part[:, None].repeat(1, 2, 1))
                for side, part in ((train, values[:60]), (test, values[60:]))
            )
            result = made(name).fit_score(flat_train, flat_test, 4, seed=0)
            assert all(0 <= metric <= 1 for metric in result.metrics.values())
            assert result.scores is None or bool(result.scores.isfinite().all())

    def test_several_clips_that_are_alike_say_what_one_says(self, name: str) -> None:
        train, test = make_features(60), make_features(21, side="test", seed=1)
        if made(name).takes_tokens:
            pytest.skip("three times the rows are other batches")
        thrice = [replace(side, clips=side.values[:, None].repeat(1, 3, 1)) for side in (train, test)]
        one, many = made(name).fit_score(train, test, 4, seed=0), made(name).fit_score(thrice[0], thrice[1], 4, seed=0)
        assert many.metrics == one.metrics
        assert one.scores is None or torch.allclose(many.scores, one.scores, atol=2e-3)  # type: ignore[arg-type]

    @pytest.mark.cuda
    @pytest.mark.parametrize("num_clips", [1, 2])
    def test_a_gpu_gives_the_metrics_of_the_cpu(self, name: str, num_clips: int) -> None:
        train, test = make_features(60, noise=0.3), make_features(40, noise=0.3, side="test", seed=1)
        if num_clips > 1:
            train, test = (replace(side, clips=side.values[:, None].repeat(1, 2, 1)) for side in (train, test))
        there = made(name)
        there.runtime = Runtime("cuda")
        found, wanted = there.fit_score(train, test, 4, seed=0), made(name).fit_score(train, test, 4, seed=0)
        assert found.metrics == pytest.approx(wanted.metrics, abs=0.05)
        assert found.scores is None or found.scores.device.type == "cpu"

    def test_what_cannot_be_fitted_is_refused_in_one_sentence(self, name: str) -> None:
        train, test, none = make_features(8), make_features(8, side="test"), torch.zeros(0, dtype=torch.int64)
        with pytest.raises(StjepaError, match="needs test features"):
            made(name).fit_score(train, test.rows(none), 4, seed=0)
        with pytest.raises(StjepaError, match="train label is out of range: got 0 to 3, expected 0 to 2"):
            made(name).fit_score(train, test, 3, seed=0)
        with pytest.raises(StjepaError, match="differ in width: got 6 and 5"):
            made(name).fit_score(train, make_features(8, dim=5), 4, seed=0)


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
