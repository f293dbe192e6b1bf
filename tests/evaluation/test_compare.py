"""Several encoders and splits in one table: a real tiny UCF-101, tiny students, and the baselines."""

from __future__ import annotations

import gc
import json
import math
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import CheckpointError, ConfigError, TeacherError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import Dataset, open_dataset
from stjepa_cli.encoders.base import Encoder, EncoderCard
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.encoders.feature_store import FeatureStore
from stjepa_cli.encoders.pixel_encoder import PixelEncoder
from stjepa_cli.encoders.resolve import NamedEncoder, card_of
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.evaluation.compare import Comparison, ComparisonRow, ComparisonSettings, EncoderSource, compare_encoders
from stjepa_cli.models.student import Student

CPU = Runtime("cpu")
SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)


class TinyStudent:
    """A student with random weights that counts how often it is opened, and remembers whether it is still in memory."""

    def __init__(self) -> None:
        self.opened: list[weakref.ref[Encoder]] = []

    def card(self, clip: ClipSpec | None = None) -> EncoderCard:
        return card_of(self._encoder())

    def open(self, device: torch.device, clip: ClipSpec | None = None) -> Encoder:
        encoder = self._encoder()
        self.opened.append(weakref.ref(encoder))
        return encoder

    def _encoder(self) -> Encoder:
        config = StudentConfig(dim=32, num_factorized=1, num_joint=1, num_heads=2)
        return StudentEncoder(Student(config, SPEC, torch.Generator().manual_seed(0)), "tiny")


def named(name: str) -> NamedEncoder:
    return NamedEncoder(name, Path("nowhere"))


@pytest.fixture(scope="module")
def dataset(tiny_ucf101: Path) -> Dataset:
    return open_dataset("ucf101", tiny_ucf101)


def scored(encoders: list[EncoderSource], dataset: Dataset, folder: Path | None = None, **settings: Any) -> Comparison:
    rows = compare_encoders(encoders, ComparisonSettings(dataset, Extraction(folder=folder), **settings), CPU)
    return Comparison(tuple(rows), "stjepa infer")


@pytest.fixture(scope="module")
def comparison(dataset: Dataset) -> Comparison:
    return scored([TinyStudent(), named("hog"), named("pixels")], dataset, protocols=("knn", "retrieval"))


def test_encoders_stand_in_the_order_in_which_they_were_named(comparison: Comparison) -> None:
    found = comparison.to_json()
    assert [entry["checkpoint"] for entry in found["entries"]] == ["tiny", "hog", "pixels"]
    assert (found["dataset"], found["split"], found["command"], found["resamples"]) == ("ucf101", 1, "stjepa infer", 1000)
    assert json.loads(json.dumps(found)) == found


def test_baselines_take_the_clips_of_the_first(comparison: Comparison) -> None:
    assert {entry.results[0].clips for entry in comparison.rows} == {"4x1x1"}


def test_every_row_has_its_digests(comparison: Comparison) -> None:
    digests = [entry.results[0].digests for entry in comparison.rows]
    assert len({found["encoder"] for found in digests}) == len({found["features"] for found in digests}) == 3
    assert len({found["lists"] for found in digests}) == 1


def test_intervals_are_of_the_first_metric_of_each_protocol_and_hold_it(dataset: Dataset) -> None:
    (entry,) = scored([TinyStudent()], dataset, protocols=("knn", "linear", "retrieval", "fewshot")).rows
    assert list(entry.intervals) == ["knn", "linear", "retrieval", "fewshot"]
    for name, (low, high) in entry.intervals.items():
        first = next(iter(entry.metrics()[name].values()))
        assert 0 <= low <= first <= high <= 1
        assert low < high or first in (0, 1)


def test_all_splits_give_mean_and_deviation_and_share_their_features(dataset: Dataset, tmp_path: Path) -> None:
    entry = scored([TinyStudent()], dataset, tmp_path, split="all", protocols=("knn",)).rows[0]
    found = entry.to_json()
    accuracies = [part["knn"]["top1"] for part in found["splits"]]
    mean = sum(accuracies) / 3
    assert (found["split"], [part["split"] for part in found["splits"]]) == ("all", [1, 2, 3])
    assert found["knn"]["top1"] == pytest.approx(mean)
    assert found["deviations"]["knn"]["top1"] == pytest.approx(math.sqrt(sum((accuracy - mean) ** 2 for accuracy in accuracies) / 2))
    kept = FeatureStore(TinyStudent().open(CPU.torch_device), "ucf101", Extraction(folder=tmp_path), CPU)
    assert len(kept) == 12  # 3 classes of 4 groups, each encoded once for the three splits


def test_one_encoder_on_one_split_keeps_the_shape_of_an_evaluation(dataset: Dataset) -> None:
    found = scored([TinyStudent()], dataset, split="2", protocols=("knn",)).to_json()
    assert {"dataset", "split", "checkpoint", "videos", "knn", "chance", "intervals"} <= set(found)
    assert found["split"] == 2


def test_the_same_call_twice_gives_the_same_numbers(dataset: Dataset, comparison: Comparison) -> None:
    again = scored([TinyStudent(), named("hog"), named("pixels")], dataset, protocols=("knn", "retrieval"))
    for entry, other in zip(comparison.rows, again.rows, strict=True):
        assert (entry.metrics(), entry.intervals) == (other.metrics(), other.intervals)
        assert entry.results[0].digests == other.results[0].digests


def test_an_unknown_split_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="unknown split of UCF-101"):
        scored([TinyStudent()], dataset, split="validation")


def test_differences_from_the_first_encoder_are_paired_and_stand_in_every_form(comparison: Comparison) -> None:
    first, *others = comparison.to_json()["entries"]
    assert "differences" not in first
    for entry in others:
        assert entry["differences_from"] == "tiny"
        for name, metric in (("knn", "top1"), ("retrieval", "r1")):
            found = entry["differences"][name]
            assert found["value"] == pytest.approx(entry[name][metric] - first[name][metric])
            assert found["interval"][0] <= found["value"] <= found["interval"][1]
    columns, cells = comparison.difference_table()
    assert columns == ("encoder", "knn top1", "retrieval r1")
    assert [row[0] for row in cells] == ["hog", "pixels"]
    _, points = comparison.difference_table(percent=True)
    assert all(re.fullmatch(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", cell) for row in points for cell in row[1:])
    assert all(re.fullmatch(r"\d+\.\d% \[\d+\.\d%, \d+\.\d%\]", cell) for row in comparison.table(percent=True)[1] for cell in row[2:])
    assert all(re.fullmatch(r"[+-]\d\.\d{4} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\]", cell) for row in cells for cell in row[1:])


def test_every_form_says_whether_labels_were_used(comparison: Comparison) -> None:
    columns, cells = comparison.table()
    assert columns[:2] == ("encoder", "saw labels")
    assert [row[:2] for row in cells] == [("tiny", "no, its teacher: unknown"), ("hog", "no"), ("pixels", "no")]
    entries = comparison.to_json()["entries"]
    assert [(entry["saw_labels"], entry["teacher_saw_labels"]) for entry in entries] == [("no", "unknown"), ("no", None), ("no", None)]


def test_sources_of_test_videos_are_known(comparison: Comparison) -> None:
    assert comparison.rows[0].results[0].sources == ("g01 of class 0", "g01 of class 1", "g01 of class 2")


def test_an_encoder_that_cannot_be_scored_is_reported_before_any_is_loaded(dataset: Dataset) -> None:
    first = TinyStudent()
    for others, error in ((["hog", "pixels"], ConfigError), (["./no/such/folder"], TeacherError)):
        settings = ComparisonSettings(dataset, protocols=("finetune",) if error is ConfigError else ("knn",))
        with pytest.raises(error):
            list(compare_encoders([first, *map(named, others)], settings, CPU))
    assert first.opened == []


def test_each_encoder_is_opened_once_and_only_one_is_in_memory(dataset: Dataset) -> None:
    class Checking(TinyStudent):
        def open(self, device: torch.device, clip: ClipSpec | None = None) -> Encoder:
            gc.collect()
            assert all(encoder() is None for encoder in self.opened)
            return super().open(device, clip)

    twice = Checking()
    assert len(scored([twice, twice], dataset, protocols=("knn",)).rows) == 2
    assert len(twice.opened) == 2


def test_a_metric_that_a_split_lacks_has_no_mean(comparison: Comparison) -> None:
    (first,) = comparison.rows[0].results
    fewer = replace(first.probes["knn"], metrics={"top1": 0.5})
    entry = ComparisonRow((first, replace(first, probes=first.probes | {"knn": fewer})), {})
    assert "knn" in entry.metrics()
    assert list(entry.metrics()["knn"]) == list(entry.deviations()["knn"]) == ["top1"]


class TestPixels:
    def test_blocks_of_time_and_space_are_averaged(self) -> None:
        clips = torch.zeros(2, 8, 3, 32, 32, dtype=torch.uint8)
        clips[0, 2:4, :, 2:4, :2] = 255  # block (1, 1, 0)
        clips[1, 0] = 255  # half of the first time step
        tokens = PixelEncoder(ClipSpec(num_frames=8, size_px=32, patch_px=16)).encode(clips)
        assert tokens.shape == (2, 1, 1024)
        first, second = tokens.view(2, 4, 16, 16)
        assert first[1, 1, 0] == pytest.approx(1.0)
        assert first.sum() == pytest.approx(1.0)
        assert second[0].eq(second[0, 0, 0]).all()
        assert second[0, 0, 0] == pytest.approx(0.5)

    def test_short_and_small_clips_have_as_many_values(self) -> None:
        assert PixelEncoder(SPEC).encode(torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)).shape == (1, 1, 1024)


class TestNamedEncoder:
    def test_unknown_names_are_one_sentence(self) -> None:
        with pytest.raises(CheckpointError, match="there is no checkpoint in nowhere"):
            named("untrained").open(CPU.torch_device)
        with pytest.raises(TeacherError):
            named("./no/such/folder").open(CPU.torch_device)

    def test_pixels_and_hog_take_any_clips(self) -> None:
        for name in ("pixels", "hog"):
            assert named(name).open(CPU.torch_device, SPEC).clip == named(name).card(SPEC).clip == SPEC
            assert named(name).open(CPU.torch_device).clip == named(name).card().clip == ClipSpec()
