"""The contracts of probes, as classes; `test_base.py` runs them for every plug-in of the folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import open_dataset
from stjepa_cli.data.eval_clips import EvalClips
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes._attention import AttentiveProbeBase, Setting
from stjepa_cli.evaluation.probes.base import Probe, ProbeResult, VideoProbe, VideoSource, build
from stjepa_cli.models.student import Student

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=8)
QUICK = (Setting(1e-2, 0.01), Setting(1e-3, 0.1))


def make_features(num_rows: int, *, num_classes: int = 4, dim: int = 6, noise: float = 1.0, side: str = "train", seed: int = 0) -> Features:
    """Return rows scattered around one centre for each class, three rows to a group; both sides have the same centres."""
    centres = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num_rows) % num_classes
    values = centres[labels] + noise * torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))
    groups = tuple(f"{side}{i % num_classes}/g{i // (3 * num_classes)}" for i in range(num_rows))
    tokens = values[:, None].repeat(1, 2, 1)
    return Features(values, labels, groups, tuple(f"{side}{i:04d}" for i in range(num_rows)), tokens)


def made(name: str) -> Probe:
    """Build a probe, with a small grid and few steps if it has them."""
    probe = build(name)
    if isinstance(probe, AttentiveProbeBase):
        probe.settings = replace(probe.settings, grid=QUICK[: len(probe.settings.grid)], epochs=1, min_steps=25)
    return probe


def headline(result: ProbeResult) -> float:
    """Return the first metric of a result."""
    return next(iter(result.metrics.values()))


class ProbeContract:
    """Inherit it and name a probe that is fitted on features."""

    @pytest.fixture
    @abstractmethod
    def name(self) -> str:
        """Return the name of the plug-in."""

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """Tensors have a few hundred numbers: threads would only wait for each other."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    def test_metrics_are_fractions_and_scores_are_distributions(self, name: str) -> None:
        result = made(name).fit_score(make_features(60), make_features(21, side="test", seed=1), 4, seed=0)
        assert result.metrics
        assert all(0 <= value <= 1 for value in result.metrics.values())
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
        easy = made(name).fit_score(make_features(80, noise=0.01), make_features(40, noise=0.01, side="test", seed=1), 4, seed=0)
        hopeless = made(name).fit_score(make_features(80, noise=1e3), make_features(400, noise=1e3, side="test", seed=1), 4, seed=0)
        assert headline(easy) == 1.0
        assert abs(headline(hopeless) - 0.25) < 0.1

    def test_test_labels_are_for_scoring_only(self, name: str) -> None:
        train, test = make_features(60), make_features(21, side="test", seed=1)
        lying = replace(test, labels=(test.labels + 1) % 4)
        honest, fooled = (made(name).fit_score(train, side, 4, seed=0) for side in (test, lying))
        assert honest.chosen == fooled.chosen
        assert honest.scores is None or torch.equal(honest.scores, fooled.scores)  # type: ignore[arg-type]

    def test_one_train_row_is_enough(self, name: str) -> None:
        result = made(name).fit_score(make_features(1), make_features(8, side="test", seed=1), 4, seed=0)
        assert headline(result) == 0.25  # all are taken for the only class there is

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
            assert all(0 <= value <= 1 for value in result.metrics.values())
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


class VideoProbeContract:
    """Inherit it and name a probe that is trained on videos."""

    @pytest.fixture
    @abstractmethod
    def name(self) -> str:
        """Return the name of the plug-in."""

    @pytest.fixture
    def source(self, tiny_ucf101: Path) -> VideoSource:
        """Return an untrained student and the videos of the tiny UCF-101."""
        dataset = open_dataset("ucf101", tiny_ucf101)
        config = StudentConfig(dim=24, num_factorized=1, num_joint=1, num_heads=2)
        student = Student(config, SPEC, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
        items = {item.id: item for split in ("train1", "test1") for item in dataset.videos(split)}
        return VideoSource(student, items, SPEC, EvalClips(), Runtime("cpu", workers=1))

    @pytest.fixture
    def sides(self, source: VideoSource) -> tuple[Features, Features]:
        """Return train and test videos as features, of which such a probe uses ids and labels alone."""

        def side(group_is_test: bool) -> Features:
            items = [item for item in source.items.values() if (item.group == "g01") == group_is_test]
            labels = torch.tensor([item.label or 0 for item in items])
            ids, groups = tuple(item.id for item in items), tuple(f"{item.label}/{item.group}" for item in items)
            return Features(torch.zeros(len(items), 2), labels, groups, ids)

        return side(False), side(True)

    def fitted(self, name: str, source: VideoSource, train: Features, test: Features) -> ProbeResult:
        """Fit the probe for one epoch."""
        probe = build(name)
        assert isinstance(probe, VideoProbe)
        probe.source, probe.settings = source, replace(probe.settings, epochs=1)
        return probe.fit_score(train, test, 3, seed=0)

    def test_scores_are_distributions_and_the_student_stays(self, name: str, source: VideoSource, sides: tuple[Features, Features]) -> None:
        before = {key: value.clone() for key, value in source.student.state_dict().items()}
        result = self.fitted(name, source, *sides)
        assert result.metrics
        assert all(0 <= value <= 1 for value in result.metrics.values())
        assert result.scores is not None
        assert torch.allclose(result.scores.sum(dim=1), torch.ones(3), atol=1e-5)
        assert all(torch.equal(value, before[key]) for key, value in source.student.state_dict().items())

    def test_test_labels_are_for_scoring_only(self, name: str, source: VideoSource, sides: tuple[Features, Features]) -> None:
        train, test = sides
        honest, fooled = (self.fitted(name, source, train, side) for side in (test, replace(test, labels=(test.labels + 1) % 3)))
        assert honest.scores is not None
        assert fooled.scores is not None
        assert torch.equal(honest.scores, fooled.scores)
