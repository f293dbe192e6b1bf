"""Evaluation from video files to metrics, on a real tiny UCF-101 with a real tiny student."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import ConfigError, DatasetError, StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec, TokenGrid
from stjepa_cli.data.datasets.base import Dataset, VideoItem, open_dataset
from stjepa_cli.data.eval_clips import ONE_CLIP, EvalClips
from stjepa_cli.data.video import read_clip, read_clips
from stjepa_cli.encoders.base import encode_videos, pooled
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.encoders.feature_store import FeatureStore
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.encoders.teacher_encoder import TeacherEncoder
from stjepa_cli.evaluation.evaluate import evaluate, probe_accuracies, score
from stjepa_cli.evaluation.leaks import refuse_leaks
from stjepa_cli.evaluation.results import EvaluationResult
from stjepa_cli.models.student import Student
from stjepa_cli.teachers.base import open_teacher
from tests.media import truncate, write_empty

CPU = Runtime("cpu")
SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)


def tiny_encoder() -> StudentEncoder:
    config = StudentConfig(dim=32, num_factorized=1, num_joint=1, num_heads=2)
    return StudentEncoder(Student(config, SPEC, torch.Generator().manual_seed(0)), "tiny")


@pytest.fixture(scope="module")
def dataset(tiny_ucf101: Path) -> Dataset:
    return open_dataset("ucf101", tiny_ucf101)


@pytest.fixture(scope="module")
def result(dataset: Dataset) -> EvaluationResult:
    return evaluate(tiny_encoder(), dataset, split=1, runtime=CPU)


@pytest.fixture
def broken_ucf101(tiny_ucf101: Path, tmp_path: Path) -> Path:
    """A copy of the tiny UCF-101 that a test may damage."""
    return Path(shutil.copytree(tiny_ucf101, tmp_path / "ucf101"))


def videos(root: Path, pattern: str) -> list[Path]:
    return sorted(root.rglob(pattern))


class TestEvaluate:
    def test_all_protocols_run_on_real_videos(self, result: EvaluationResult) -> None:
        found = result.to_json()
        assert (found["dataset"], found["split"], found["checkpoint"], found["pool"]) == ("ucf101", 1, "tiny", "mean")
        assert found["videos"] == {"train": 9, "test": 3, "failed": []}
        assert found["chance"] == pytest.approx(1 / 3)
        assert list(found["knn"])[:2] == list(found["linear"]) == ["top1", "top5"]
        assert list(found["retrieval"]) == ["r1", "r5", "r10", "r20", "r50"]
        assert found["knn"]["top5"] == found["linear"]["top5"] == found["retrieval"]["r10"] == 1.0
        assert found["chosen"]["knn"]["k"] == 9
        assert found["chosen"]["linear"]["folds"] > 1  # three groups a class are too few for one hold-out
        assert json.loads(json.dumps(found)) == found

    def test_protocols_that_were_not_asked_for_are_absent(self, dataset: Dataset) -> None:
        found = evaluate(tiny_encoder(), dataset, split=2, protocols=["knn"], limit=2, runtime=CPU).to_json()
        assert found["videos"] == {"train": 2, "test": 2, "failed": []}
        assert not {"linear", "retrieval"} & set(found)

    def test_metrics_depend_on_neither_batch_size_nor_threads_nor_run(self, dataset: Dataset, result: EvaluationResult) -> None:
        ways = (CPU, Runtime("cpu", batch_size=5, workers=1), Runtime("cpu", batch_size=1, workers=3))
        values = [FeatureStore(tiny_encoder(), "ucf101", runtime=way).extract(dataset.videos("train1"))[0].values for way in ways]
        assert torch.allclose(values[1], values[0], atol=1e-6)
        assert torch.allclose(values[2], values[0], atol=1e-6)
        other = evaluate(tiny_encoder(), dataset, split=1, runtime=ways[1])
        for name, probe in result.probes.items():
            assert other.probes[name].metrics == probe.metrics
            if probe.scores is not None:
                assert torch.allclose(other.probes[name].scores, probe.scores, atol=1e-3)  # type: ignore[arg-type]

    def test_a_built_in_teacher_is_scored_in_the_same_way(self, dataset: Dataset) -> None:
        teacher = open_teacher("hog", clip=SPEC)
        found = evaluate(TeacherEncoder(teacher), dataset, Extraction("time"), protocols=["knn"], runtime=CPU).to_json()
        assert found["checkpoint"] == "hog"
        assert found["videos"] == {"train": 9, "test": 3, "failed": []}

    def test_videos_that_fail_are_listed_and_the_rest_goes_on(self, broken_ucf101: Path) -> None:
        write_empty(videos(broken_ucf101, "*_g02_c01.avi")[0])
        truncate(videos(broken_ucf101, "*_g01_c01.avi")[0])
        videos(broken_ucf101, "*_g03_c01.avi")[1].unlink()
        found = evaluate(tiny_encoder(), open_dataset("ucf101", broken_ucf101), runtime=CPU).to_json()
        assert (found["videos"]["train"], found["videos"]["test"]) == (7, 2)
        errors = {failure["id"]: failure["error"] for failure in found["videos"]["failed"]}
        assert list(errors) == ["v_ApplyEyeMakeup_g02_c01", "v_BabyCrawling_g03_c01", "v_ApplyEyeMakeup_g01_c01"]
        assert [text.split(": ")[1][:12] for text in errors.values()] == ["the file is ", "there is no ", "it is cut sh"]

    def test_a_side_without_a_usable_video_is_one_sentence(self, broken_ucf101: Path) -> None:
        for path in videos(broken_ucf101, "*_g01_c01.avi"):
            write_empty(path)
        with pytest.raises(StjepaError, match=r"no video of test1 can be used: got .*the file is empty. Type"):
            evaluate(tiny_encoder(), open_dataset("ucf101", broken_ucf101), runtime=CPU)

    def test_a_planted_leak_is_refused_by_name(self, broken_ucf101: Path) -> None:
        """Group 2 of one class is moved into the test list as well, as another clip."""
        (lists,) = {path.parent for path in videos(broken_ucf101, "testlist01.txt")}
        with (lists / "testlist01.txt").open("a") as file:
            file.write("BabyCrawling/v_BabyCrawling_g02_c09.avi\r\n")
        with pytest.raises(DatasetError, match=r"train and test share 1 of their groups: got .*g02"):
            evaluate(tiny_encoder(), open_dataset("ucf101", broken_ucf101), runtime=CPU)

    def test_a_test_video_under_another_name_in_train_is_refused_or_left_out(
        self, tiny_folder: Path, broken_ucf101: Path, tmp_path: Path
    ) -> None:
        root = Path(shutil.copytree(tiny_folder, tmp_path / "folder"))
        shutil.copy(videos(root / "test", "*.mp4")[0], root / "train" / "down" / "again.mp4")
        with pytest.raises(DatasetError, match=r"share 1 files under two names: got train/down/again is .*Leave one of each pair out"):
            evaluate(tiny_encoder(), open_dataset("folder", root), runtime=CPU)
        shutil.copy(videos(broken_ucf101, "*_g01_c01.avi")[0], videos(broken_ucf101, "*_g02_c01.avi")[0])
        result = evaluate(tiny_encoder(), open_dataset("ucf101", broken_ucf101), protocols=["knn"], runtime=CPU)
        assert result.remark.startswith(
            "1 train videos were left out, since the same files are in test under other names: v_ApplyEyeMakeup_g02"
        )
        assert (result.num_train, len(result.ids)) == (8, 3)
        assert result.inputs is not None
        assert "v_ApplyEyeMakeup_g02_c01" not in result.inputs.train.ids

    def test_scores_of_clips_are_averaged_and_a_single_clip_changes_nothing(self, dataset: Dataset, result: EvaluationResult) -> None:
        one = evaluate(tiny_encoder(), dataset, Extraction(clips=EvalClips(1, 1)), runtime=CPU)
        store = FeatureStore(tiny_encoder(), dataset.name, Extraction(clips=EvalClips(3, 1)), CPU)
        many = score(store, dataset)
        assert (one.clips, many.clips, many.sampling) == ("4x1x1", "4x3x1", "uniform")
        assert one.digests == result.digests
        for name in ("knn", "linear"):
            scores = many.probes[name].scores
            assert scores is not None
            assert torch.allclose(scores.sum(dim=1), torch.ones(3))
        head, clips = many.probes["linear"].head, store.extract(dataset.videos("test1"))[0].clips
        assert head is not None
        assert clips is not None
        by_hand = torch.stack([head.predict(video).mean(dim=0) for video in clips])
        assert torch.allclose(by_hand, many.probes["linear"].scores, atol=1e-6)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"protocols": ["knn", "oracle"]}, "unknown probe: got 'oracle', expected one of .*knn, linear, retrieval"),
            ({"protocols": ["attentive_pool"]}, "attentive_pool takes single tokens: got pool mean, expected tokens"),
            ({"extraction": {"pool": "max"}}, "unknown pool: got 'max', expected one of mean, time"),
            ({"extraction": {"clips": EvalClips(sampling="random")}}, "unknown sampling: got 'random'"),
            ({"split": 4}, "unknown split"),
            ({"limit": 0}, "limit must be at least 1"),
        ],
    )
    def test_wrong_settings_are_refused_before_any_work(self, dataset: Dataset, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            evaluate(tiny_encoder(), dataset, Extraction(**options.pop("extraction", {})), runtime=CPU, **options)

    def test_an_encoder_that_gives_nan_is_named(self, dataset: Dataset) -> None:
        encoder = tiny_encoder()
        with torch.no_grad():
            encoder.student.norm.weight.fill_(torch.nan)
        with pytest.raises(StjepaError, match="features of 9 of 9 videos hold NaN or infinity"):
            evaluate(encoder, dataset, runtime=CPU)


class TestProbeAccuracies:
    def test_they_are_those_of_an_evaluation_and_intervals_hold_them(self, tiny_folder: Path) -> None:
        found = probe_accuracies(tiny_encoder(), tiny_folder, Extraction("time"), runtime=CPU)
        result = evaluate(tiny_encoder(), open_dataset("folder", tiny_folder), Extraction("time"), runtime=CPU)
        assert (found.knn, found.linear) == tuple(result.probes[name].metrics["top1"] for name in ("knn", "linear"))
        assert found.knn_interval[0] <= found.knn <= found.knn_interval[1]
        assert found.linear_interval[0] <= found.linear <= found.linear_interval[1]
        assert (found.encoder, found.num_train, found.num_test) == ("tiny", 9, 3)
        assert found.chance == pytest.approx(1 / 3)

    def test_many_calls_take_kept_features(self, tiny_folder: Path, tmp_path: Path) -> None:
        extraction = Extraction(folder=tmp_path)
        first = probe_accuracies(tiny_encoder(), tiny_folder, extraction, limit=6, runtime=CPU)
        written = sorted(tmp_path.rglob("*.safetensors"))
        assert probe_accuracies(tiny_encoder(), open_dataset("folder", tiny_folder), extraction, limit=6, runtime=CPU) == first
        assert sorted(tmp_path.rglob("*.safetensors")) == written


class TestLeaks:
    def items(self, *groups: str | None) -> list[VideoItem]:
        return [VideoItem(f"v{i}", Path(f"{i}.avi"), 0, group) for i, group in enumerate(groups)]

    def test_ids_paths_and_groups_are_compared(self) -> None:
        train, test = self.items("a", "b"), [VideoItem("w", Path("w.avi"), 0, "c")]
        refuse_leaks(train, test)
        for change, name in (
            ({"id": "v1"}, "ids: got v1"),
            ({"path": Path("0.avi")}, "paths: got 0.avi"),
            ({"group": "b"}, "groups: got b"),
        ):
            with pytest.raises(DatasetError, match=f"share 1 of their {name}"):
                refuse_leaks(train, [replace(test[0], **change)])

    def test_videos_without_a_group_share_none(self) -> None:
        refuse_leaks(self.items(None, None), [VideoItem("w", Path("w.avi"), 0, None)])


class TestEncodeVideos:
    def features(self, items: Sequence[VideoItem], plan: EvalClips = ONE_CLIP, pool: str = "mean", **options: Any) -> Tensor:
        found = list(encode_videos(tiny_encoder(), items, plan, pool=pool, runtime=Runtime("cpu", **options)))
        assert [item for item, _ in found] == list(items)
        return torch.stack([row for _, row in found if isinstance(row, Tensor)])

    def test_features_are_those_of_each_video_alone_in_any_order(self, dataset: Dataset) -> None:
        items, encoder = dataset.videos("train1"), tiny_encoder()
        found = self.features(items, batch_size=4, workers=3)
        with torch.inference_mode():
            alone = torch.stack([encoder.encode(read_clip(item.path, SPEC).pixels[None]).mean(dim=1) for item in items])
        assert (found.shape, found.dtype) == ((9, 1, 32), torch.float32)
        assert torch.allclose(found, alone, atol=1e-5)
        assert torch.allclose(self.features(items[::-1], batch_size=1, workers=1).flip(0), alone, atol=1e-5)

    def test_each_clip_is_a_row_whatever_the_batch(self, dataset: Dataset) -> None:
        items, plan = dataset.videos("test1"), EvalClips(2, 3)
        found = self.features(items, plan, batch_size=4)
        with torch.inference_mode():
            alone = torch.stack([tiny_encoder().encode(read_clips(item.path, SPEC, plan)).mean(dim=1) for item in items])
        assert found.shape == (3, 6, 32)
        assert torch.allclose(found, alone, atol=1e-5)

    def test_time_pooling_keeps_the_time_steps_apart(self, dataset: Dataset) -> None:
        mean, time = (self.features(dataset.videos("test1"), pool=pool) for pool in ("mean", "time"))
        assert (mean.shape, time.shape) == ((3, 1, 32), (3, 1, 64))
        assert torch.allclose(time.view(3, 1, 2, 32).mean(dim=2), mean, atol=1e-6)

    def test_tokens_are_kept_whole_and_clips_stand_side_by_side(self, dataset: Dataset) -> None:
        store = FeatureStore(tiny_encoder(), "ucf101", Extraction("tokens", EvalClips(2, 1)), CPU)
        found, _ = store.extract(dataset.videos("test1"))
        assert found.tokens is not None
        assert (found.tokens.shape, found.tokens.dtype) == ((3, 2 * SPEC.grid.num_tokens, 32), torch.float16)
        means = FeatureStore(tiny_encoder(), "ucf101", Extraction(clips=EvalClips(2, 1)), CPU).extract(dataset.videos("test1"))[0].values
        assert torch.allclose(found.values, means, atol=1e-3)

    def test_blocks_are_counted_from_either_end_and_the_last_is_the_student(self, dataset: Dataset) -> None:
        items = dataset.videos("test1")
        values = {
            layer: FeatureStore(tiny_encoder(), "ucf101", Extraction(layer=layer), CPU).extract(items)[0].values
            for layer in (None, 1, 2, -2, -1)
        }
        assert torch.equal(values[1], values[-2])
        assert torch.equal(values[2], values[-1])
        assert torch.equal(values[2], values[None])
        assert not torch.allclose(values[1], values[2], atol=1e-3)
        for layer in (0, 3, -3):
            with pytest.raises(ConfigError, match=r"no such block: got .*, expected 1 to 2"):
                FeatureStore(tiny_encoder(), "ucf101", Extraction(layer=layer), CPU)
        with pytest.raises(ConfigError, match="only students"):
            FeatureStore(TeacherEncoder(open_teacher("hog", clip=SPEC)), "ucf101", Extraction(layer=1), CPU)

    def test_pooling_is_worked_by_hand(self) -> None:
        tokens = torch.arange(8, dtype=torch.float16).view(1, 4, 2)  # two time steps of two tokens
        assert pooled(tokens, TokenGrid(2, 1, 2), "mean").tolist() == [[3.0, 4.0]]
        assert pooled(tokens, TokenGrid(2, 1, 2), "time").tolist() == [[1.0, 2.0, 5.0, 6.0]]
