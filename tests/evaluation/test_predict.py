"""Predictions of a saved head for single files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import CheckpointError, ConfigError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import Dataset, open_dataset
from stjepa_cli.data.eval_clips import EvalClips
from stjepa_cli.data.video import Video
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.encoders.feature_store import FeatureStore
from stjepa_cli.encoders.heads import load_head, read_card, save_head
from stjepa_cli.encoders.resolve import NamedEncoder
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.evaluation.evaluate import score
from stjepa_cli.evaluation.predict import Prediction, predict
from stjepa_cli.evaluation.results import EvaluationResult
from stjepa_cli.evaluation.saved_heads import check_heads, newest_head, save_heads
from stjepa_cli.models.student import Student
from tests.media import ffmpeg, moving_square, truncate, turn_upright, write_video

CPU = Runtime("cpu")
SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)
PLAN = EvalClips(2, 3, sampling="dense", stride=2)


@pytest.fixture(scope="module")
def dataset(tiny_ucf101: Path) -> Dataset:
    return open_dataset("ucf101", tiny_ucf101)


def scored(dataset: Dataset, **extraction: object) -> EvaluationResult:
    """A linear head on a built-in teacher."""
    hog = NamedEncoder("hog", Path("none")).open(CPU.torch_device, SPEC)
    store = FeatureStore(hog, dataset.name, Extraction(**extraction), CPU)  # type: ignore[arg-type]
    return score(store, dataset, protocols=["knn", "linear"] if store.pool != "tokens" else ["attentive_pool", "linear"])


@pytest.fixture(scope="module")
def head(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = save_heads(scored(dataset, clips=PLAN), tmp_path_factory.mktemp("heads"))
    return path


@pytest.mark.parametrize(
    "extraction", [{}, {"pool": "time"}, {"clips": PLAN}, {"pool": "tokens", "clips": PLAN}], ids=["mean", "time", "clips", "tokens"]
)
def test_a_saved_head_says_what_the_evaluation_said(dataset: Dataset, tmp_path: Path, extraction: dict[str, object]) -> None:
    result = scored(dataset, **extraction)
    paths = [item.path for item in dataset.videos("test1")]
    assert result.inputs is not None
    for path in save_heads(result, tmp_path):
        found = predict(paths, path, top=3, runtime=CPU)
        wanted = result.probes[path.stem.removeprefix("head_")].scores
        assert wanted is not None
        for prediction, scores in zip(found.videos, wanted, strict=True):
            assert [guess.score for guess in prediction.top] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-4)
            assert prediction.top[0].name == dataset.classes[int(scores.argmax())]


def test_videos_of_a_phone_are_scored_as_they_are_shown(head: Path, tmp_path: Path) -> None:
    """Sideways frames with a display matrix, a frame rate that varies, and sound: the same answer as the upright frames alone."""
    frames = moving_square(num_frames=20, height=48, width=64, direction=2)
    upright = write_video(tmp_path / "upright.mp4", frames)
    lying = write_video(tmp_path / "lying.mp4", frames.rot90(1, (2, 3)).contiguous())
    phone = tmp_path / "phone.mp4"
    drop = "setpts='(N+0.8*gt(mod(N,5),2))/25/TB'"
    ffmpeg(
        "-i", lying, "-f", "lavfi", "-i", "sine=440:d=1", "-vf", drop, "-c:v", "libx264", "-crf", "1", "-c:a", "aac", "-vsync", "0", phone
    )
    turn_upright(phone)
    with Video(phone) as video:
        assert (video.num_frames, video.height, video.width) == (20, 48, 64)
    found = predict([upright, phone], head, runtime=CPU).videos
    assert [guess.name for guess in found[0].top] == [guess.name for guess in found[1].top]
    assert [guess.score for guess in found[0].top] == pytest.approx([guess.score for guess in found[1].top], abs=0.05)


def test_files_that_cannot_be_used_are_reported_in_their_place(dataset: Dataset, head: Path, tmp_path: Path) -> None:
    good = dataset.videos("test1")[0].path
    broken = truncate(write_video(tmp_path / "broken.webm", moving_square()))
    found = predict([tmp_path / "none.mp4", good, broken, good], head, runtime=CPU)
    assert [bool(video.error) for video in found.videos] == [True, False, True, False]
    assert found.videos[0] == Prediction(str(tmp_path / "none.mp4"), error=f"{tmp_path / 'none.mp4'}: there is no such file")
    assert "cut short" in found.videos[2].error
    assert not found.complete
    assert found.videos[1] == found.videos[3]


def test_other_clips_than_the_head_was_scored_on_can_be_asked_for(dataset: Dataset, head: Path) -> None:
    path = dataset.videos("test1")[0].path
    few, many = (predict([path], head, clips=clips, top=1, runtime=CPU) for clips in ("1x1", None))
    assert (few.clips, many.clips) == ("4x1x1", "4x2x3")
    assert (len(few.videos[0].top), few.complete) == (1, True)


def test_a_head_on_another_encoder_is_refused(dataset: Dataset, head: Path) -> None:
    with pytest.raises(CheckpointError, match="fitted on another encoder: got pixels"):
        predict([dataset.videos("test1")[0].path], head, encoder="pixels", runtime=CPU)


def test_only_classes_that_train_had_are_answers_however_sure_one_is(dataset: Dataset, head: Path, tmp_path: Path) -> None:
    kept = load_head(head, "hog", read_card(head).encoder_digest)
    sure = {"weight": 1e4 * kept.weights["weight"][:2], "bias": kept.weights["bias"][:2]}
    save_head(tmp_path / "head.safetensors", replace(kept, weights=sure, labels=torch.tensor([0, 2])))
    (answer,) = predict([dataset.videos("test1")[0].path], tmp_path / "head.safetensors", runtime=CPU).videos
    assert {guess.name for guess in answer.top} == {dataset.classes[0], dataset.classes[2]}


def test_the_newest_head_of_a_folder_is_taken(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no saved head in .*--save-head"):
        newest_head(tmp_path)
    for i, name in enumerate(("b/head_linear.safetensors", "a/head_attentive.safetensors")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (i, i))
    assert newest_head(tmp_path).parent.name == "a"
    assert newest_head(tmp_path / "b" / "head_linear.safetensors").name == "head_linear.safetensors"


def test_protocols_without_a_head_are_reported_before_they_run() -> None:
    check_heads(["knn", "linear"])
    with pytest.raises(ConfigError, match=r"no protocol has a head to save: got knn, retrieval, expected one of .*attentive.*linear"):
        check_heads(["knn", "retrieval"])


def test_a_head_names_its_encoder_so_that_it_is_found_from_every_folder(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Student(StudentConfig(dim=32, num_factorized=1, num_joint=1, num_heads=2), SPEC, torch.Generator().manual_seed(0))
    result = score(FeatureStore(StudentEncoder(student, "tiny"), dataset.name, runtime=CPU), dataset, protocols=["linear"])
    monkeypatch.chdir(tmp_path)
    (path,) = save_heads(result, tmp_path)
    assert read_card(path).encoder == "tiny"
    Path("tiny").touch()
    (path,) = save_heads(result, tmp_path)
    assert read_card(path).encoder == str(tmp_path / "tiny")
